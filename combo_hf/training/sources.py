"""From the data of a recipe to training and validation set, and to the classes that they know."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from combo_hf.configuration_combo import ComboConfig
from combo_hf.data.clips import AvsbenchClips
from combo_hf.data.collate import Augmentation, ClipExample
from combo_hf.data.frames import FrameChoice
from combo_hf.data.loading import load_avsbench
from combo_hf.data.row_format import class_names_of
from combo_hf.data.subsets import OWN, SUBSETS, holds_indices, subset_rule
from combo_hf.data.transforms import EvalTransform, TrainTransform, build_transform
from combo_hf.training.arguments import AvsbenchRecipe, MixedRecipe, SyntheticRecipe, TrainingRecipe
from combo_hf.training.batches import TrainingSet
from combo_hf.training.clips_in_memory import ClipTensors, prepare_synthetic, synthetic_labels


Source = SyntheticRecipe | AvsbenchRecipe
CLASS_FILE = "classes.txt"


def label_names(recipe: TrainingRecipe) -> dict[str, Any]:
    """Fields of [`ComboConfig`] that name the classes of the recipe's data.

    Raises:
        ValueError, OSError: data of your own that are not there, or name no classes.
    """
    names = list(dict.fromkeys(name for part in _parts(recipe) for name in class_names(part)))
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def class_names(data: Source) -> list[str]:
    """Names of the classes of one data set, background first."""
    if isinstance(data, SyntheticRecipe):
        return list(synthetic_labels(data.labels).values())
    if data.subset != OWN:
        return list(subset_rule(data.subset).classes)
    return _own_names(_rows(data, data.train_split), data.path)


def build_data(recipe: TrainingRecipe, config: ComboConfig) -> tuple[TrainingSet, TrainingSet]:
    """Training and validation set of a recipe.

    Args:
        recipe ([`TrainingRecipe`])
        config ([`ComboConfig`]): for the input size and the classes.

    Raises:
        ValueError, OSError: the data are not what the recipe says, or not there.
    """
    if not isinstance(recipe.data, MixedRecipe):
        return _build(recipe, recipe.data, config, True), _build(recipe, recipe.data, config, False)
    names = list((config.id2label or {}).values())
    tables = [_table(class_names(part), names) for part in recipe.data.parts]
    train, validation = (
        MixedClips([_mixed_part(recipe, part, config, training) for part in recipe.data.parts], tables)
        for training in (True, False)
    )
    return train, validation


class MixedClips:
    """Clips of several data sets, one set after the other, whose class ids are those of all of them together.

    Args:
        parts: the data sets.
        tables: uint8 (256,) each: class id in the part -> class id here.
    """

    def __init__(self, parts: Sequence[TrainingSet], tables: Sequence[torch.Tensor]) -> None:
        self.parts, self.tables = parts, tables
        self.ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> ClipExample:
        part = bisect.bisect_right(self.ends, index)
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}.")
        example = self.parts[part][index - (self.ends[part] - len(self.parts[part]))]
        return replace(example, masks=self.tables[part][example.masks.long()])

    def set_epoch(self, epoch: int) -> None:
        """Other augmentation from here on."""
        for part in self.parts:
            part.set_epoch(epoch)


def avsbench_transform(
    recipe: TrainingRecipe, data: AvsbenchRecipe, config: ComboConfig, training: bool
) -> TrainTransform | EvalTransform | FrameChoice:
    """What a clip of AVSBench goes through before it is batched, see [`build_transform`]."""
    transform = build_transform(
        data.subset,
        training,
        image_size=config.image_size,
        official_jitter=data.official_jitter,
        official_maskige_resize=data.official_maskige_resize,
        jitter=recipe.jitter > 0,
        flip=recipe.flip,
        geometry=data.geometry,
        min_scale=data.min_scale,
        max_scale=data.max_scale,
        jitter_strength=data.jitter_strength,
    )
    if training and (data.frames == "annotated" or data.frames_per_clip is not None):
        return FrameChoice(transform, data.frames == "annotated", data.frames_per_clip)
    return transform


def _parts(recipe: TrainingRecipe) -> Sequence[Source]:
    return recipe.data.parts if isinstance(recipe.data, MixedRecipe) else [recipe.data]


def _build(recipe: TrainingRecipe, data: Source, config: ComboConfig, training: bool) -> TrainingSet:
    if isinstance(data, SyntheticRecipe):
        return _synthetic(recipe, data, config, "train" if training else "val")
    return _avsbench(recipe, data, config, training, len(config.id2label or {}))


def _mixed_part(recipe: TrainingRecipe, data: Source, config: ComboConfig, training: bool) -> TrainingSet:
    """A part with its own class ids; the training loop, which sees the whole only, cannot augment clips in memory."""
    if isinstance(data, AvsbenchRecipe):
        return _avsbench(recipe, data, config, training, len(class_names(data)))
    clips = _synthetic(recipe, data, config, "train" if training else "val")
    augmentation = Augmentation(recipe.flip, recipe.jitter) if training else None
    return clips.variant(augmentation=augmentation, seed=recipe.seed)


def _synthetic(recipe: TrainingRecipe, data: SyntheticRecipe, config: ComboConfig, split: str) -> ClipTensors:
    clips, size = data.train_clips if split == "train" else data.val_clips, config.image_size
    examples = []
    for kind in data.kinds:
        name = f"{kind}-{data.labels}-{split}-{data.seed}-{clips}-{size}.npz"
        cache = None if data.cache is None else Path(data.cache) / name
        made = prepare_synthetic(
            kind, data.seed, clips, split, size, data.labels, data.num_processes, cache, progress=recipe.progress
        )
        examples += made.examples
    return ClipTensors(examples, silence_audio=data.silence_audio, blank_maskige=data.blank_maskige)


def _avsbench(
    recipe: TrainingRecipe, data: AvsbenchRecipe, config: ComboConfig, training: bool, num_labels: int
) -> AvsbenchClips:
    rows = _rows(data, data.train_split if training else data.val_split)
    if training and data.frames == "annotated":
        rows = rows.select([index for index, flags in enumerate(rows["label_frames"]) if any(flags)])
    limit = data.train_clips if training else data.val_clips
    if limit is not None and limit < len(rows):
        rows = rows.select(range(limit))
    return AvsbenchClips(
        rows,
        avsbench_transform(recipe, data, config, training),
        num_labels=num_labels,
        seed=recipe.seed,
        use_maskige=config.use_maskige,
        proposal_generator=data.proposal_generator,
        silence_audio=data.silence_audio,
    )


def _rows(data: AvsbenchRecipe, split: str) -> Any:
    try:
        return load_avsbench(data.path, split, subset=data.subset, revision=data.revision)
    except ValueError:
        if data.subset != OWN:
            raise
        return load_avsbench(data.path, split, revision=data.revision)  # its only configuration, whatever its name


def _own_names(rows: Any, path: str) -> list[str]:
    """Names of the classes that a data set brings: in its column `classes`, or in its classes.txt."""
    names = class_names_of(rows.features)
    if names:
        return names
    subsets = set(rows["subset"])
    if subsets <= {name for name in SUBSETS if not holds_indices(name)}:
        return list(subset_rule(subsets.pop()).classes)
    file = Path(path).expanduser() / CLASS_FILE
    if not file.is_file():
        raise ValueError(f"data.path: {path} names no classes: neither a column `classes` nor a {CLASS_FILE}.")
    return file.read_text(encoding="utf-8").split("\n")[:-1]


def _table(own: Sequence[str], names: Sequence[str]) -> torch.Tensor:
    table = torch.arange(256, dtype=torch.uint8)
    table[: len(own)] = torch.tensor([names.index(name) for name in own], dtype=torch.uint8)
    return table
