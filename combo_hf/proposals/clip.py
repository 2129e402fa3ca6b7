"""Maskiges of the frames of one clip, with colours by rank (the release) or kept from frame to frame (an option).

The release gives every frame its own colours, by area rank: one mask more, and most objects change colour. Here a mask
may keep the number of the mask of the frame before that it overlaps most.

Axes: K masks of a frame, J of the frame before, H W its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from combo_hf.maskige_combo import MAX_MASKS, PALETTE, by_area, check_masks, maskige_index, paint_numbers


MATCH_SIDE = 128  # masks are compared at this size
MIN_IOU = 0.5


def paint_maskige_clip(
    masks_per_frame: Iterable[Any], size: tuple[int, int] | None = (224, 224), stable: bool = True
) -> list[np.ndarray]:
    """Paint the masks of all frames of a clip.

    Args:
        masks_per_frame: for every frame, in time order, masks (K, H, W) as `paint_maskige` takes them.
        size (`tuple[int, int]`, *optional*): height and width of the pictures; `None`: that of the frame.
        stable (`bool`, *optional*, defaults to `True`): keep colours from frame to frame; off: `paint_maskige`.

    Returns:
        For every frame uint8 (height, width, 3), RGB.

    Raises:
        ValueError: as `paint_maskige`.
    """
    return [PALETTE.take(index, axis=0) for index in clip_indices(masks_per_frame, size, stable)]


def clip_indices(
    masks_per_frame: Iterable[Any], size: tuple[int, int] | None = (224, 224), stable: bool = False
) -> Iterator[np.ndarray]:
    """Colour numbers instead of colours: uint8 (height, width) per frame, one frame held at a time."""
    if size is not None and min(size) < 1:
        raise ValueError(f"size: wanted (height, width) of at least 1 pixel, got {size}.")
    numbers = StableNumbers()
    for masks in masks_per_frame:
        masks = check_masks(masks)
        index = numbers.index(masks) if stable else maskige_index(masks)
        height, width = size or index.shape
        yield np.asarray(Image.fromarray(index).resize((width, height), Image.Resampling.NEAREST))


class StableNumbers:
    """Gives masks their numbers, frame after frame.

    Masks of two frames belong together if their IoU is at least `min_iou`, best pairs first. What is new takes the
    lowest number that neither this frame nor the one before uses; the first frame has the release's.
    """

    def __init__(self, min_iou: float = MIN_IOU) -> None:
        self.min_iou = min_iou
        self.before: np.ndarray | None = None  # (J, MATCH_SIDE * MATCH_SIDE)
        self.numbers = np.zeros(0, dtype=np.int64)  # (J,)

    def index(self, masks: np.ndarray) -> np.ndarray:
        """Numbers of the next frame's pixels: bool (K, H, W) -> uint8 (H, W); small masks lie on top."""
        order = by_area(masks)
        small = _sample(masks[order])  # (K, n)
        numbers = self._assign(small)
        self.before, self.numbers = small, numbers
        return paint_numbers(masks, order, numbers)

    def _assign(self, masks: np.ndarray) -> np.ndarray:
        if self.before is None:
            return np.arange(1, len(masks) + 1)
        numbers = np.zeros(len(masks), dtype=np.int64)
        overlap = iou_matrix(masks, self.before)
        for pair in np.argsort(-overlap, axis=None, kind="stable"):
            mask, other = np.unravel_index(pair, overlap.shape)
            if overlap[mask, other] < self.min_iou:
                break
            if not numbers[mask] and self.numbers[other] not in numbers:
                numbers[mask] = self.numbers[other]
        taken = set(numbers.tolist())
        fresh = [number for number in range(1, MAX_MASKS + 1) if number not in taken]
        fresh.sort(key=lambda number: number in self.numbers)  # stable: those of the frame before come last
        unmatched = np.flatnonzero(numbers == 0)
        numbers[unmatched] = fresh[: len(unmatched)]
        return numbers


def iou_matrix(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of every pair: bool (K, n) and (J, n) -> float32 (K, J); two empty masks have 0."""
    first, second = masks.astype(np.float32), others.astype(np.float32)
    shared = first @ second.T
    union = first.sum(1)[:, None] + second.sum(1)[None, :] - shared
    return shared / np.maximum(union, 1)


def _sample(masks: np.ndarray) -> np.ndarray:
    """Nearest neighbour on a square grid: (K, H, W) -> (K, MATCH_SIDE * MATCH_SIDE)."""
    rows, columns = (((np.arange(MATCH_SIDE) + 0.5) * side / MATCH_SIDE).astype(np.int64) for side in masks.shape[1:])
    return masks[:, rows][:, :, columns].reshape(len(masks), MATCH_SIDE**2)
