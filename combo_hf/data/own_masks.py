"""Masks of own data -> class indices: index PNGs, and the polygons and run lengths of COCO.

Where objects of one frame overlap, the smaller one is on top. Holes of run lengths and of index PNGs stay background;
polygons of one object are united. Objects marked `iscrowd` are ignored in training (255).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from combo_hf.configuration_combo import IGNORE_INDEX
from combo_hf.files.pictures import open_image, read_bytes


MAX_SIDE = 16384  # pixels of a mask that is only described


@dataclass(frozen=True)
class IndexMask:
    """A PNG of class indices; `path=None`: annotated, and nothing sounds."""

    path: Path | None


@dataclass(frozen=True)
class CocoMask:
    """Objects of one image of a COCO file.

    Attributes:
        size: height and width.
        objects: (class index, segmentation, crowd) each.
    """

    size: tuple[int, int]
    objects: tuple[tuple[int, Any, bool], ...]


@dataclass(frozen=True)
class Annotation:
    """A mask at a time.

    Attributes:
        time: in s from the first picture; with `is_frame` the number of a picture.
        mask: where it comes from.
        where: of the file, for messages.
    """

    time: float
    mask: IndexMask | CocoMask
    where: str
    is_frame: bool = False

    def seconds(self, fps: float) -> float:
        """Its time in a video of so many pictures a second."""
        return self.time / fps if self.is_frame else self.time


@dataclass
class OwnVideo:
    """A video and its masks."""

    name: str
    path: Path
    split: str = ""
    annotations: list[Annotation] = field(default_factory=list)


def read_mask(source: IndexMask | CocoMask, num_classes: int) -> np.ndarray | None:
    """Class indices (H, W) uint8; `None`: nothing sounds, whatever the size.

    Raises:
        ValueError: a file that is missing, damaged, in colours, or holds a class without a name.
    """
    if isinstance(source, CocoMask):
        return _paint(source)
    if source.path is None:
        return None
    image = open_image(read_bytes(source.path), source.path.name)
    array = np.asarray(image)
    if array.ndim != 2 or array.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
        raise ValueError(f"has mode {image.mode}; wanted 8 bit class indices (mode L or P), not colours")
    ids = array.astype(np.uint8)
    unknown = np.unique(ids[(ids >= num_classes) & (ids != IGNORE_INDEX)])[:8].tolist()
    if unknown:
        raise ValueError(f"holds the classes {unknown}; classes.txt names 0 to {num_classes - 1}, 255 is ignored")
    return ids


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """A COCO segmentation (polygons, or run lengths, compressed or not) as a mask, bool (H, W).

    Raises:
        ValueError: none of these, or of another size.
    """
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("has no segmentation (a box alone marks no pixels)")
    mask = np.zeros(size, bool)
    for polygon in segmentation:
        if not _is_polygon(polygon):
            raise ValueError("has a polygon that is no list of at least three points x, y")
        mask |= _filled(np.array(polygon, np.float64).reshape(-1, 2), size)
    return mask


def _paint(source: CocoMask) -> np.ndarray:
    """One mask at a time: any number of them may be described in a few bytes each."""
    ids = np.zeros(source.size, np.uint8)
    areas = [int(decode_segmentation(segmentation, source.size).sum()) for _, segmentation, _ in source.objects]
    for number in sorted(range(len(areas)), key=lambda number: -areas[number]):  # the smallest comes last
        index, segmentation, crowd = source.objects[number]
        ids[decode_segmentation(segmentation, source.size)] = IGNORE_INDEX if crowd else index
    return ids


def _filled(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie inside a polygon, corners (N, 2) as x, y: bool (H, W)."""
    # Edges that a row meets left of a pixel's centre; only odd or even counts, so that eight bits are enough.
    crossings = np.zeros((size[0], size[1] + 1), np.uint8)
    for (x, y), (next_x, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = sorted((y, next_y))
        rows = np.arange(max(0, math.ceil(low - 0.5)), min(size[0], math.ceil(high - 0.5)))
        if len(rows):
            columns = x + (rows + 0.5 - y) * (next_x - x) / (next_y - y)
            np.add.at(crossings, (rows, np.clip(np.ceil(columns - 0.5), 0, size[1]).astype(int)), 1)
    return np.cumsum(crossings, axis=1, dtype=np.uint8)[:, : size[1]] % 2 == 1


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    return all(type(value) in (int, float) and abs(value) < 1e6 for value in polygon)


def _run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Column by column, zeros first."""
    counts = segmentation.get("counts")
    if segmentation.get("size") != list(size):
        raise ValueError(
            f"has run lengths of size {segmentation.get('size')}; its image is {list(size)} (height, width)"
        )
    runs = _unpack_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("has run lengths that are neither a list of numbers nor COCO's packed text")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"has run lengths for {sum(runs)} pixels; its image has {size[0] * size[1]}")
    flags = np.arange(len(runs)) % 2 == 1
    return np.repeat(flags, np.array(runs, np.int64)).reshape(size[::-1]).T


def _unpack_counts(text: str) -> Sequence[int]:
    """COCO's packing: five bits a character, the lowest first; from the third number on, differences to the last but
    one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("has packed run lengths that are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("has packed run lengths that are cut off")
    return runs
