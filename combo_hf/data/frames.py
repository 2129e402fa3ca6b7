"""Clips of fewer frames for training: only those with masks, or a few neighbours drawn anew in every epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from combo_hf.data.collate import ClipExample
from combo_hf.data.rows import ClipPictures
from combo_hf.data.transforms import EvalTransform, TrainTransform


@dataclass(frozen=True)
class FrameChoice:
    """Leaves out frames of a clip, with their seconds of sound, and hands the others to a transform.

    Attributes:
        transform ([`TrainTransform`] or [`EvalTransform`]): what follows.
        annotated: only frames with masks; a clip without any stays whole.
        count: at most so many neighbouring frames, an annotated one among them if there is one; `None`: all.

    Raises:
        ValueError: fewer than one frame.
    """

    transform: TrainTransform | EvalTransform
    annotated: bool = False
    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"count: wanted at least one frame, got {self.count}.")

    @property
    def image_size(self) -> int:
        """Side of the clips in pixels."""
        return self.transform.image_size

    def __call__(self, clip: ClipPictures, generator: torch.Generator) -> ClipExample:
        """A clip of the frames that are kept; nothing is drawn where there is nothing to choose."""
        known = clip.label_frames.tolist()
        kept = [index for index, flag in enumerate(known) if flag] if self.annotated and any(known) else None
        kept = list(range(len(known))) if kept is None else kept
        if self.count is not None and len(kept) > self.count:
            starts = range(len(kept) - self.count + 1)
            seen = [start for start in starts if any(known[index] for index in kept[start : start + self.count])]
            start = (seen or starts)[int(torch.randint(len(seen or starts), (), generator=generator))]
            kept = kept[start : start + self.count]
        return self.transform(_only(clip, kept), generator)


def _only(clip: ClipPictures, kept: list[int]) -> ClipPictures:
    if len(kept) == len(clip.frames):
        return clip
    masks = dict(zip(clip.label_frames.nonzero()[:, 0].tolist(), clip.masks, strict=True))
    return replace(
        clip,
        frames=[clip.frames[index] for index in kept],
        maskiges=None if clip.maskiges is None else [clip.maskiges[index] for index in kept],
        masks=[masks[index] for index in kept if index in masks],
        label_frames=clip.label_frames[kept],
        input_features=clip.input_features[kept],
    )
