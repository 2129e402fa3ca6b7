"""Names of classes on the objects of an overlay, and a legend with their colours."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont


LINES = 28  # of text would fill the height of a picture: readable at 320 and at 1920 pixels
LEAST_SIZE = 10  # pixels
PLACING = 180  # lines of a picture that are looked at for the place of a name: enough, and 16 times faster at 720
DARK = (20, 22, 26)
LIGHT = (255, 255, 255)
OPACITY = 230  # of 256
MAX_LEGEND = 8  # classes
Piece = tuple[tuple[slice, slice], np.ndarray, np.ndarray]  # box, RGB (H, W, 3) uint8, share (H, W) of 256


def write_labels(label_map: np.ndarray, labels: Mapping[int, str], colors: np.ndarray) -> Iterator[Piece]:
    """What is written over a picture: boxes on even numbers, with their pixels.

    Args:
        label_map: `(H, W)`, even sizes.
        labels: class number -> name; classes without one are left out.
        colors: uint8 RGB `(K, 3)`.
    """
    height, width = label_map.shape
    step = max(1, min(height, width) // PLACING)
    coarse = label_map[::step, ::step]
    areas = np.bincount(coarse.ravel())
    present = [int(index) for index in np.argsort(-areas, kind="stable") if index and areas[index] and index in labels]
    size = max(LEAST_SIZE, round(min(height, width) / LINES))
    for index in present:
        plate = _plate(labels[index], tuple(int(part) for part in colors[index]), size)
        yield from _placed(plate, _anchor(coarse == index, step, plate), (height, width))
    entries = tuple((labels[index], tuple(int(part) for part in colors[index])) for index in present[:MAX_LEGEND])
    if entries:
        yield from _placed(_legend(entries, size), (size // 2, size // 2), (height, width))


def _anchor(region: np.ndarray, step: int, plate: np.ndarray) -> tuple[int, int]:
    """Top and left of a plate on a region, of which every `step`-th pixel is given.

    Near its centre, which moves little when its outline does.
    """
    row = _nearest(np.flatnonzero(region.any(axis=1)), _centre(region.sum(axis=1)))
    column = _nearest(np.flatnonzero(region[row]), _centre(region.sum(axis=0)))
    return row * step - plate.shape[0] // 2, column * step - plate.shape[1] // 2


def _centre(counts: np.ndarray) -> float:
    return float(np.arange(len(counts)) @ counts / counts.sum())


def _nearest(places: np.ndarray, wanted: float) -> int:
    return int(places[np.abs(places - wanted).argmin()])


def _placed(plate: np.ndarray, place: tuple[int, int], size: tuple[int, int]) -> Iterator[Piece]:
    """A plate inside the picture, on even numbers; what does not fit is cut off."""
    sides = []
    for begin, length, whole in zip(place, plate.shape, size, strict=False):
        start = max(0, min(begin, whole - length)) // 2 * 2
        sides.append(slice(start, start + min(length, whole - start) // 2 * 2))
    pixels = plate[: sides[0].stop - sides[0].start, : sides[1].stop - sides[1].start]
    if pixels.size:
        yield (sides[0], sides[1]), pixels, np.full(pixels.shape[:2], OPACITY, np.uint16)


@functools.lru_cache(maxsize=256)
def _plate(text: str, color: tuple[int, int, int], size: int) -> np.ndarray:
    """A name on the colour of its class, (H, W, 3)."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (_even(right - left + size), _even(bottom - top + size * 0.6)), color)
    is_bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    place = ((picture.width - right - left) / 2, (picture.height - bottom - top) / 2)
    ImageDraw.Draw(picture).text(place, text, fill=DARK if is_bright else LIGHT, font=font)
    return np.asarray(picture)


@functools.lru_cache(maxsize=64)
def _legend(entries: tuple[tuple[str, tuple[int, ...]], ...], size: int) -> np.ndarray:
    """Colours and names below each other on dark ground, (H, W, 3)."""
    font = ImageFont.load_default(size)
    line = round(1.4 * size)
    width = max(font.getlength(text) for text, _ in entries) + 3 * size
    picture = Image.new("RGB", (_even(width), _even(line * len(entries) + size * 0.6)), DARK)
    draw = ImageDraw.Draw(picture)
    for number, (text, color) in enumerate(entries):
        middle = round(0.3 * size + (number + 0.5) * line)
        draw.rectangle((size // 2, middle - size // 3, size // 2 + 2 * size // 3, middle + size // 3), fill=color)
        draw.text((round(1.8 * size), middle), text, fill=LIGHT, font=font, anchor="lm")
    return np.asarray(picture)


def _even(value: float) -> int:
    return int(value + 1) // 2 * 2
