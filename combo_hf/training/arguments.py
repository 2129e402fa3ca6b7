"""Everything that defines a training run, as typed values in one YAML file.

The file is read by a safe loader: unknown keys, repeated keys and wrong types are errors, and no code in it is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from combo_hf import RECIPES
from combo_hf.data.subsets import OWN, SUBSETS
from combo_hf.data.transforms import TrainTransform
from combo_hf.files.atomic import write_text
from combo_hf.files.typed_yaml import apply_override, build_typed, dump_yaml, find_yaml, parse_yaml


PRECISIONS = ("no", "bf16", "fp16")
METRICS = ("M_J", "M_F", "miou", "fscore")
TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "swanlab", "trackio")
# None of it moves a weight.
FREE = (
    *("num_workers", "log_every", "save_every", "time_limit_s", "progress", "trackers", "push_to_hub", "push_private"),
    *("data.cache", "data.num_processes", "data.path", "model.pretrained"),
    *("model.encoders", "model.backbone", "model.vggish"),
)
# What a resumed run may change; of the latter two the product with the number of processes must stay.
FREE_ON_RESUME = (*FREE, "max_steps", "clips_per_batch", "accumulation_steps")


@dataclass
class ModelRecipe:
    """What is trained, and from which weights.

    Attributes:
        preset: of [`ComboConfig.from_preset`].
        pretrained: folder or Hub id of a COMBO checkpoint to start from; the preset is then not used, and the network
            is the checkpoint's (other classes or sizes are an error). `null`: random weights.
        new_head: the checkpoint may know other classes: its class head is made anew, but for classes of the same name,
            and everything else is kept.
        encoders: folder or Hub id of a COMBO checkpoint, of any classes, from which the visual, the Maskige and the
            audio encoder start, see [`load_encoders`]; the network has its audio encoder's sizes, unless `overrides`
            say others. `null`: none.
        backbone: ImageNet start of both visual encoders, see [`load_pretrained_backbones`]; `null`: none.
        vggish: start of the audio encoder, torchvggish's file, see [`load_vggish`]; `null`: none.
        overrides: fields of [`ComboConfig`] that replace the preset's, such as `freeze_audio_encoder`.
    """

    preset: str = "tiny"
    pretrained: str | None = None
    new_head: bool = False
    encoders: str | None = None
    backbone: str | None = None
    vggish: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class SyntheticRecipe:
    """Synthetic clips to train and to evaluate on, see [`prepare_synthetic`].

    Attributes:
        source: "synthetic".
        kind: "s4", "ms3" or "avss", or several joined by "+", such as "s4+ms3+avss".
        labels: "binary" or "semantic".
        seed: of the clips, not of the training.
        train_clips, val_clips: how many, of each kind.
        num_processes: that prepare them.
        cache: folder that keeps the prepared clips; `null`: none.
        silence_audio: train and evaluate without sound, to measure what sound contributes.
        blank_maskige: train and evaluate with black Maskiges, to measure what they contribute.
    """

    source: str = "synthetic"
    kind: str = "ms3"
    labels: str = "binary"
    seed: int = 0
    train_clips: int = 400
    val_clips: int = 50
    num_processes: int = 1
    cache: str | None = None
    silence_audio: bool = False
    blank_maskige: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 1, "train_clips", "val_clips", "num_processes")
        _at_least(self, 0, "seed")
        if not set(self.kinds) <= set(SUBSETS) or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kind: wanted one of {list(SUBSETS)} or several joined by '+', got {self.kind!r}.")
        _one_of(self, "labels", ("binary", "semantic"))

    @property
    def kinds(self) -> list[str]:
        """The kinds one by one."""
        return self.kind.split("+")


@dataclass
class AvsbenchRecipe:
    """AVSBench or clips of your own, as rows that `combo-hf data build` made, see [`load_avsbench`].

    Attributes:
        source: "avsbench".
        path: folder, or a Hub id of your own.
        subset: "s4", "ms3" or "avss": which clips, classes and augmentation; "own": the classes are those of the data
            set.
        revision: of a Hub id.
        train_split, val_split: names of the splits.
        train_clips, val_clips: use only so many, the first ones; `null`: all.
        official_jitter: draw the colours of every frame and Maskige anew, as released; off: one draw a clip, and
            Maskiges keep their colours.
        official_maskige_resize: blend the colours of Maskiges when resizing, as released.
        proposal_generator: makes the Maskiges of rows without, such as "superpixels", again in every epoch; `null`:
            such rows are an error.
        silence_audio: train and evaluate without sound.
        frames: of a training clip, "all" or "annotated": those with masks only, such as the one of S4, whose others
            cost four fifths of the time and bring no mask.
        frames_per_clip: train on at most so many neighbouring frames of a clip, others in every epoch; `null`: all.
        geometry: "scale_crop" or "centre_crop"; `null`: what the subset has in the release ("own": "scale_crop").
        min_scale, max_scale, jitter_strength: of the training pictures, see [`TrainTransform`].
    """

    source: str = "avsbench"
    path: str = "data/avsbench"
    subset: str = "s4"
    revision: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    train_clips: int | None = None
    val_clips: int | None = None
    official_jitter: bool = False
    official_maskige_resize: bool = False
    proposal_generator: str | None = None
    silence_audio: bool = False
    frames: str = "all"
    frames_per_clip: int | None = None
    geometry: str | None = None
    min_scale: float = 0.5
    max_scale: float = 2.0
    jitter_strength: float = 1.0

    def __post_init__(self) -> None:
        _at_least(self, 1, "train_clips", "val_clips", "frames_per_clip")
        _one_of(self, "subset", (*SUBSETS, OWN))
        _one_of(self, "frames", ("all", "annotated"))
        TrainTransform(  # refuses what is out of range before anything is loaded
            geometry=self.geometry or "scale_crop",
            min_scale=self.min_scale,
            max_scale=self.max_scale,
            jitter_strength=self.jitter_strength,
        )
        for name in ("path", "train_split", "val_split"):
            if not getattr(self, name):
                raise ValueError(f"{name}: wanted a name, got nothing.")


@dataclass
class MixedRecipe:
    """Several data sets together; a class that two of them name is one class.

    Attributes:
        source: "mixed".
        parts: each as it would stand under `data` alone.
    """

    source: str = "mixed"
    parts: list[SyntheticRecipe | AvsbenchRecipe] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts: wanted at least one data set, got none.")


@dataclass
class TrainingRecipe:
    """One training run; the defaults of the numbers of the optimizer are the release's.

    A step is one move of the optimizer; it sees `clips_per_batch` x `accumulation_steps` x processes clips, and its
    loss is that of all these clips in one batch, however they are spread.

    Attributes:
        model: what is trained.
        data: which clips; not looked at by [`train`], which is handed its data sets.
        seed: of weights, order, augmentation, dropout and sampled points.
        max_steps: optimizer steps. A resumed run may have more of them than it was begun with: the learning rate then
            follows the schedule of the new number from the step where the run stands.
        clips_per_batch: clips that a process brings through the network together.
        accumulation_steps: such batches per optimizer step.
        learning_rate, weight_decay, backbone_scale, backbone_pattern: see [`parameter_groups`].
        frozen_pattern: parameters whose names it matches are not trained, such as those of the first blocks of a
            backbone that starts from ImageNet (a third less time on a CPU); `null`: none.
        poly_power, warmup_steps: see [`build_scheduler`].
        max_grad_norm: L2 norm of all gradients together is clipped to it.
        mixed_precision: "no", "bf16" or "fp16" (a GPU only).
        gradient_checkpointing: compute layers again in the backward pass instead of keeping what they made: less
            memory, more time, the same gradients. Layers of PVTv2, pixel decoder and query decoder; not of ResNet.
        ema_decay: evaluate and save a running mean of the weights, in which each step's have this little less than
            one as the share of the past, for example 0.999; `null`: the weights themselves.
        flip: probability of a horizontal flip.
        jitter: strength of the colour jitter of synthetic clips, see [`Augmentation`]; AVSBench has the release's
            jitter, which 0 switches off.
        num_workers: processes that assemble batches; 0: the training process itself.
        log_every: steps per line of metrics.jsonl.
        eval_every: steps between evaluations; the last step is always evaluated. A checkpoint is written with each.
        save_every: steps between states to resume from, besides those written with each evaluation; `null`: no others.
        eval_clips_per_batch: clips per batch of an evaluation.
        calibrate_background: before each evaluation, choose the weight of the background with the best M_J on the
            validation clips and keep it in the configuration, see [`calibrate_background`]. For short trainings and
            few clips; the release has none.
        best_metric: decides which checkpoint is the best; higher is better.
        trackers: programs that are told the metrics too, such as "tensorboard" (files in output_dir/logs).
        time_limit_s: stop in good order after so many seconds; `null`: never.
        progress: show a bar on a terminal.
        push_to_hub: repository that gets the best checkpoint at the end; `null`: none.
        push_private: make that repository a private one if it is new.
    """

    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: SyntheticRecipe | AvsbenchRecipe | MixedRecipe = field(default_factory=SyntheticRecipe)
    seed: int = 0
    max_steps: int = 1000
    clips_per_batch: int = 8
    accumulation_steps: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    backbone_scale: float = 0.1
    backbone_pattern: str = r"encoder\.(maskige_)?backbone\."
    frozen_pattern: str | None = None
    poly_power: float = 0.9
    warmup_steps: int = 0
    max_grad_norm: float = 0.01
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    ema_decay: float | None = None
    flip: float = 0.5
    jitter: float = 0.2
    num_workers: int = 0
    log_every: int = 10
    eval_every: int = 500
    save_every: int | None = None
    eval_clips_per_batch: int = 8
    calibrate_background: bool = False
    best_metric: str = "M_J"
    trackers: list[str] = field(default_factory=list)
    time_limit_s: float | None = None
    progress: bool = True
    push_to_hub: str | None = None
    push_private: bool = True

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_steps", "clips_per_batch", "accumulation_steps", "log_every", "eval_every")
        _at_least(self, 1, "save_every", "eval_clips_per_batch")
        _at_least(self, 0, "seed", "weight_decay", "backbone_scale", "warmup_steps", "num_workers")
        for name in ("learning_rate", "max_grad_norm", "poly_power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: wanted more than 0, got {getattr(self, name)}.")
        _one_of(self, "mixed_precision", PRECISIONS)
        _one_of(self, "best_metric", METRICS)
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise ValueError(f"time_limit_s: wanted more than 0 seconds or null, got {self.time_limit_s}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay: wanted more than 0 and less than 1, or null, got {self.ema_decay}.")
        unknown = [name for name in self.trackers if name not in TRACKERS]
        if unknown:
            raise ValueError(f"trackers: wanted some of {list(TRACKERS)}, got {unknown[0]!r}.")
        if self.push_to_hub is not None and self.push_to_hub.count("/") != 1:
            raise ValueError(f"push_to_hub: wanted owner/name or null, got {self.push_to_hub!r}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingRecipe:
        """From nested plain values.

        Raises:
            ValueError: unknown keys, wrong types or values out of range; names the key.
        """
        return build_typed(cls, values)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> TrainingRecipe:
        """Read a recipe.

        Args:
            path: YAML file, or the name of a recipe of this package, see [`find_yaml`].
            overrides: such as `"max_steps=100"` or `"data.silence_audio=true"`; the value is read as YAML.

        Raises:
            ValueError: not a YAML mapping, or as for [`from_dict`].
            OSError: the file cannot be read.
            ImportError: PyYAML is not installed.
        """
        path = find_yaml(path, RECIPES)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: wanted a YAML text in UTF-8.") from error
        values = parse_yaml(text, str(path)) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{path}: wanted 'key: value' lines, got {type(values).__name__}.")
        for entry in overrides:
            apply_override(values, entry)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; [`from_dict`] reads them."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write a YAML file that [`from_yaml`] reads."""
        write_text(path, dump_yaml(self.to_dict()))

    def differences(self, other: TrainingRecipe, free: Collection[str] = FREE) -> list[str]:
        """`"key: ours, theirs"` of the values that differ, but for the keys that are free to change."""
        ours, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        keys = [key for key in {**ours, **theirs} if key not in free]
        absent = "absent"
        return [
            f"{key}: {ours.get(key, absent)!r}, {theirs.get(key, absent)!r}"
            for key in keys
            if ours.get(key, absent) != theirs.get(key, absent)
        ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _at_least(recipe: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(recipe, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name}: wanted at least {least}, got {value}.")


def _one_of(recipe: object, name: str, known: Sequence[str]) -> None:
    if getattr(recipe, name) not in known:
        raise ValueError(f"{name}: wanted one of {list(known)}, got {getattr(recipe, name)!r}.")
