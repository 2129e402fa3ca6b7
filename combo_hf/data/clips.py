"""Data set rows as clips for training: a map-style data set, and a transform for `with_transform` and `map`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from combo_hf.data.collate import SILENCE, ClipExample, example_generator
from combo_hf.data.frames import FrameChoice
from combo_hf.data.row_format import HINT, READ_COLUMNS, REQUIRED_COLUMNS, check_columns
from combo_hf.data.rows import MaskigeMaker, decode_row, require_maskiges
from combo_hf.data.transforms import EvalTransform, TrainTransform


DEFAULT_SIZE = 224


class AvsbenchClips(torch.utils.data.Dataset):
    """Rows as clips for a loader: decoded, augmented and of one size, one at a time.

    The augmentation of a clip follows from (seed, epoch, row) and nothing else: neither the workers nor the order nor
    the place where a run was resumed play a part.

    Args:
        dataset: `datasets.Dataset` of [`load_avsbench`], or any sequence of rows.
        transform ([`TrainTransform`] or [`EvalTransform`], *optional*): default: plain resizing.
        image_size (`int`, *optional*): side in pixels, if no transform is given (default 224).
        num_labels (`int`): K, 2 for S4 and MS3, 71 for AVSS.
        seed (`int`): of the augmentation.
        use_maskige (`bool`): off, for models without: Maskiges are not even read.
        proposal_generator (*optional*): makes the Maskiges of rows without, see [`MaskigeMaker`]. Superpixels take
            about 0.1 s per frame: build the data set with Maskiges for more than a trial.
        silence_audio (`bool`): every log-mel is that of silence, to measure what the sound contributes.

    Raises:
        TypeError: no map-style data set.
        ValueError: no row, columns are missing, or sizes that differ.
    """

    def __init__(
        self,
        dataset: Any,
        transform: TrainTransform | EvalTransform | FrameChoice | None = None,
        image_size: int | None = None,
        num_labels: int = 2,
        seed: int = 0,
        use_maskige: bool = True,
        proposal_generator: Any = None,
        silence_audio: bool = False,
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"wanted a data set with a length and numbered rows, got {type(dataset).__name__}; a streamed one "
                "goes through dataset.map(ComboTransform(...), batched=True) instead."
            )
        if len(dataset) == 0:
            raise ValueError("a data set needs at least one clip, got none.")
        if transform is not None and image_size not in (None, transform.image_size):
            raise ValueError(f"image_size {image_size} differs from that of the transform, {transform.image_size}.")
        self.dataset = dataset
        self.transform = transform or EvalTransform(image_size or DEFAULT_SIZE)
        self.num_labels, self.seed = num_labels, seed
        self.use_maskige, self.proposal_generator, self.silence_audio = use_maskige, proposal_generator, silence_audio
        self._maker = None if proposal_generator is None or not use_maskige else MaskigeMaker(proposal_generator)
        self._rows = _as_rows(dataset, use_maskige)
        # shared memory: workers that live on from epoch to epoch see the change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def image_size(self) -> int:
        """Side of the clips in pixels."""
        return self.transform.image_size

    @property
    def epoch(self) -> int:
        """See [`set_epoch`]."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Other augmentation from here on; Accelerate's loader calls this."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> ClipExample:
        """Clip of a row.

        Raises:
            IndexError: no such row.
            ValueError: something in the row cannot be used; names the clip.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"row {index} of {count}.")
        index = int(index) % count
        clip = decode_row(self._rows[index], self.num_labels, self.use_maskige, self._maker)
        if self.use_maskige:
            require_maskiges(clip)
        example = self.transform(clip, example_generator(self.seed, self.epoch, index))
        if self.silence_audio:
            silence = torch.full_like(example.input_features, SILENCE)
            example = dataclasses.replace(example, input_features=silence)
        return example


class ComboTransform:
    """Rows -> tensors, for `dataset.with_transform(...)`, or `streamed.map(..., batched=True, batch_size=8)`.

    The augmentation of a clip follows from (seed, epoch, video_id); the number of the row is not known here, so it is
    not the one that [`AvsbenchClips`] draws.

    Args:
        transform ([`TrainTransform`] or [`EvalTransform`])
        epoch (`int`): other augmentation in every epoch; set the attribute, or make a new object.
        num_labels, seed, use_maskige, proposal_generator: see [`AvsbenchClips`].
    """

    def __init__(
        self,
        transform: TrainTransform | EvalTransform | FrameChoice,
        num_labels: int = 2,
        seed: int = 0,
        epoch: int = 0,
        use_maskige: bool = True,
        proposal_generator: Any = None,
    ) -> None:
        self.transform, self.num_labels, self.seed, self.epoch = transform, num_labels, seed, epoch
        self.use_maskige = use_maskige
        self._maker = None if proposal_generator is None or not use_maskige else MaskigeMaker(proposal_generator)

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Transform rows.

        Args:
            rows: column name -> values, as `datasets` passes them.

        Returns:
            `dict` of lists: the parts of [`ClipExample`]; [`ComboCollator`] takes the rows that come out.

        Raises:
            ValueError: columns are missing, or something cannot be used; names the clip.
        """
        names = [column for column in READ_COLUMNS if column in rows]
        if not set(REQUIRED_COLUMNS) <= set(names):
            missing = [column for column in REQUIRED_COLUMNS if column not in names]
            raise ValueError(f"the rows lack the columns {missing}, they have {list(rows)}. {HINT}")
        clips = []
        for values in zip(*(rows[column] for column in names), strict=True):
            clip = decode_row(dict(zip(names, values, strict=True)), self.num_labels, self.use_maskige, self._maker)
            if self.use_maskige:
                require_maskiges(clip)
            digest = hashlib.sha256(clip.video_id.encode()).digest()
            generator = example_generator(self.seed, self.epoch, int.from_bytes(digest[:8], "big"))
            clips.append(self.transform(clip, generator))
        return {field.name: [getattr(clip, field.name) for clip in clips] for field in dataclasses.fields(ClipExample)}


class _ArrowRows:
    """Rows with the stored bytes of pictures, which `datasets` would otherwise decode, used or not."""

    def __init__(self, dataset: Any, columns: Sequence[str]) -> None:
        self.dataset = dataset.select_columns(list(columns)).with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index].to_pylist()[0]


def _as_rows(dataset: Any, use_maskige: bool) -> Any:
    if not hasattr(dataset, "with_format"):
        return dataset
    check_columns(dataset.features)
    columns = [name for name in READ_COLUMNS if name in dataset.features and (use_maskige or name != "maskiges")]
    return _ArrowRows(dataset, columns)
