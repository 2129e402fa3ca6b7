"""Everything that defines a training run, as typed values in one YAML file.

The file is read by a safe loader: unknown keys, repeated keys and wrong types are errors, and no code in it is run.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


PRECISIONS = ("no", "bf16", "fp16")
METRICS = ("M_J", "M_F", "miou", "fscore")


@dataclass
class ModelRecipe:
    """What is trained.

    Attributes:
        preset: of [`ComboConfig.from_preset`].
        pretrained: folder or Hub id to start from; the preset is then not used. `null`: random weights.
        overrides: fields of [`ComboConfig`] that replace the preset's.
    """

    preset: str = "tiny"
    pretrained: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class SyntheticRecipe:
    """Synthetic clips to train and to evaluate on, see [`prepare_synthetic`].

    Attributes:
        kind: "s4", "ms3" or "avss".
        labels: "binary" or "semantic".
        seed: of the clips, not of the training.
        train_clips, val_clips: how many.
        num_processes: that prepare them.
        cache: folder that keeps the prepared clips; `null`: none.
        silence_audio: train and evaluate without sound, to measure what sound contributes.
    """

    kind: str = "ms3"
    labels: str = "binary"
    seed: int = 0
    train_clips: int = 400
    val_clips: int = 50
    num_processes: int = 1
    cache: str | None = None
    silence_audio: bool = False


@dataclass
class TrainingRecipe:
    """One training run; the defaults of the numbers of the optimizer are the release's.

    Attributes:
        model: what is trained.
        data: synthetic clips; not looked at by [`train`], which is handed its data sets.
        seed: of weights, order, augmentation, dropout and sampled points.
        max_steps: optimizer steps.
        clips_per_batch: clips per process and optimizer step.
        learning_rate, weight_decay, backbone_scale, backbone_pattern: see [`parameter_groups`].
        poly_power, warmup_steps: see [`build_scheduler`].
        max_grad_norm: L2 norm of all gradients together is clipped to it.
        mixed_precision: "no", "bf16" or "fp16".
        flip, jitter: see [`Augmentation`].
        num_workers: processes that assemble batches; 0: the training process itself.
        log_every: steps per line of metrics.jsonl.
        eval_every: steps between evaluations; the last step is always evaluated. A checkpoint is written with each.
        eval_clips_per_batch: clips per batch of an evaluation.
        best_metric: decides which checkpoint is the best; higher is better.
        time_limit_s: stop in good order after so many seconds; `null`: never.
        progress: show a bar.
    """

    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: SyntheticRecipe = field(default_factory=SyntheticRecipe)
    seed: int = 0
    max_steps: int = 1000
    clips_per_batch: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    backbone_scale: float = 0.1
    backbone_pattern: str = r"encoder\.(maskige_)?backbone\."
    poly_power: float = 0.9
    warmup_steps: int = 0
    max_grad_norm: float = 0.01
    mixed_precision: str = "no"
    flip: float = 0.5
    jitter: float = 0.2
    num_workers: int = 0
    log_every: int = 10
    eval_every: int = 500
    eval_clips_per_batch: int = 8
    best_metric: str = "M_J"
    time_limit_s: float | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("max_steps", "clips_per_batch", "log_every", "eval_every", "eval_clips_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "max_grad_norm", "poly_power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: wanted more than 0, got {getattr(self, name)}.")
        for name in ("seed", "weight_decay", "backbone_scale", "warmup_steps", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: wanted at least 0, got {getattr(self, name)}.")
        for name, known in (("mixed_precision", PRECISIONS), ("best_metric", METRICS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: wanted one of {list(known)}, got {getattr(self, name)!r}.")
        if self.time_limit_s is not None and self.time_limit_s <= 0:
            raise ValueError(f"time_limit_s: wanted more than 0 seconds or null, got {self.time_limit_s}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingRecipe:
        """From nested plain values.

        Raises:
            ValueError: unknown keys, wrong types or values out of range; names the key.
        """
        return _build(cls, values, "")

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> TrainingRecipe:
        """Read a recipe.

        Args:
            path: YAML file.
            overrides: such as `"max_steps=100"` or `"data.silence_audio=true"`; the value is read as YAML.

        Raises:
            ValueError: not a YAML mapping, or as for [`from_dict`].
            ImportError: PyYAML is not installed.
        """
        values = parse_yaml(Path(path).read_text(encoding="utf-8"), str(path)) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{path}: wanted 'key: value' lines, got {type(values).__name__}.")
        for entry in overrides:
            _override(values, entry)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; [`from_dict`] reads them."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write a YAML file that [`from_yaml`] reads."""
        import yaml

        temporary = Path(path).with_name(f".partial-{Path(path).name}")
        temporary.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")
        os.replace(temporary, path)


def parse_yaml(text: str, name: str = "text") -> Any:
    """Plain values of a YAML text; tags that build objects and repeated keys are refused.

    Raises:
        ValueError: not YAML, a forbidden tag or a repeated key.
        ImportError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("recipes need PyYAML: pip install 'combo-hf[train]'") from error

    class Loader(yaml.SafeLoader):
        """The safe loader, which would let the last of two equal keys win."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise yaml.constructor.ConstructorError(None, None, f"repeated key {twice[0]!r}", node.start_mark)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # noqa: S506 (derived from SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not plain YAML: {error}") from error


def _override(values: dict[str, Any], entry: str) -> None:
    path, equals, text = entry.partition("=")
    if not equals or not path.strip():
        raise ValueError(f"override: wanted key=value, for example max_steps=100, got {entry!r}.")
    *parents, last = path.strip().split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ValueError(f"override {entry!r}: {parent} has no parts.")
    values[last] = parse_yaml(text, f"override {entry!r}")


def _build(cls: type, values: Any, prefix: str) -> Any:
    """A dataclass from a mapping, checked against its annotations."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'recipe'}: wanted keys and values, got {values!r}.")
    kinds = typing.get_type_hints(cls)
    unknown = [str(key) for key in values if key not in kinds]
    if unknown:
        raise ValueError(f"unknown key {prefix}{unknown[0]}; known here: {', '.join(kinds)}.")
    return cls(**{key: _convert(kinds[key], value, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, {} if value is None else value, f"{name}.")
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and types.NoneType in options:
        return None
    wanted = next(option for option in options if option is not types.NoneType)
    wanted = typing.get_origin(wanted) or wanted
    if wanted is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4, without a point, as text
        except ValueError:
            pass
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(f"{name}: wanted {wanted.__name__}, got {value!r}.")
    return value
