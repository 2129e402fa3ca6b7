"""Photographs with masks -> moving pictures that know which pixels show what.

A scene is a stack of layers, each a picture that covers its region of the canvas (a photograph) or lies on it (an
object cut out of one). Layers drift, grow and turn a little over the clip, as objects and hand-held cameras do. The
canvas is one unit high and `aspect` units wide; a scene can be drawn at any time and size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from combo_hf.files.pictures import open_image, read_bytes


ZOOM = (1.0, 1.5)  # of a photograph over what is needed to cover its region
DRIFT = 0.25  # share of the free way that a photograph moves over the clip
ZOOM_DRIFT = 0.08  # by which it grows or shrinks
SWAY = 0.008  # units, of a hand that holds the camera
LEAST_SEEN = 0.6  # of an object, when its photograph is placed
CUT_OUT_HEIGHTS = (0.3, 0.8)  # units
CUT_OUT_WALK = 0.25  # units that a cut-out object moves over the clip
CUT_OUT_TURN = 0.15  # radians
GAMMA, CONTRAST, TINT = 0.25, 0.2, 0.06  # how far the colours of a clip may be off
PLACEMENTS = 8  # tried; the one that shows most is taken


@dataclass(frozen=True)
class Picture:
    """A photograph and where its object is.

    Attributes:
        image: RGB.
        mask: L of the same size, 0 or 255; `None`: nothing of interest in it.
    """

    image: Image.Image
    mask: Image.Image | None

    def flipped(self) -> Picture:
        """Left and right exchanged."""
        mask = None if self.mask is None else ImageOps.mirror(self.mask)
        return Picture(ImageOps.mirror(self.image), mask)

    def cut_out(self) -> Picture:
        """The box around the object."""
        if self.mask is None:
            return self
        box = self.mask.getbbox()
        return self if box is None else Picture(self.image.crop(box), self.mask.crop(box))


def read_picture(image: Path, mask: Path | None) -> Picture:
    """Decode a photograph, upright, and its mask (anything but 0 is the object).

    Raises:
        ValueError: a file that is no picture, an empty mask, or sizes that differ; names the file.
    """
    picture = ImageOps.exif_transpose(open_image(read_bytes(image), str(image))).convert("RGB")
    if mask is None:
        return Picture(picture, None)
    file = open_image(read_bytes(mask), str(mask))
    values = np.asarray(file if file.mode in ("1", "L", "P", "I;16", "I") else file.convert("L"))
    if values.shape != (picture.height, picture.width):
        raise ValueError(f"{mask}: {values.shape[1]} x {values.shape[0]} pixels, its picture {picture.size}.")
    if not values.any():
        raise ValueError(f"{mask}: the mask is empty; wanted the pixels of the object, anything but 0.")
    return Picture(picture, Image.fromarray(np.where(values > 0, 255, 0).astype(np.uint8)))


@dataclass(frozen=True)
class Path2D:
    """Where a layer is: from one place to another over the clip, with a slow sway. Units of the canvas."""

    start: tuple[float, float, float, float]  # x, y, log of the scale, turn
    end: tuple[float, float, float, float]
    seconds: float
    sway: tuple[float, float, float] = (0.0, 0.0, 0.0)  # width, turns a second, phase

    def at(self, time: float) -> np.ndarray:
        """x, y, log of the scale, turn at a time in seconds."""
        place = np.asarray(self.start) + (np.asarray(self.end) - self.start) * min(time / self.seconds, 1.0)
        width, speed, phase = self.sway
        angle = 2 * np.pi * speed * time + phase
        return place + np.array([width * np.cos(angle), width * np.sin(1.3 * angle), 0.0, 0.0])


@dataclass(frozen=True)
class Layer:
    """A picture on its way over the canvas.

    Attributes:
        picture: what is shown.
        path: of its middle.
        region: x0, y0, x1, y1 in units that it may fill.
        cut: only the pixels of the mask are drawn; otherwise the whole picture.
        number: that its object has in the owner map, 0 for none.
    """

    picture: Picture
    path: Path2D
    region: tuple[float, float, float, float]
    cut: bool
    number: int

    def draw(self, canvas: np.ndarray, owner: np.ndarray, time: float, aspect: float) -> None:
        """Paint into canvas (H, W, 3) float32 and owner (H, W) uint8."""
        height, width = owner.shape
        left, top, right, bottom = (
            round(side * scale)
            for side, scale in zip(self.region, (width / aspect, height, width / aspect, height), strict=True)
        )
        right, bottom = min(right, width), min(bottom, height)
        if right <= left or bottom <= top:
            return
        image, mask = self.picture.image, self.picture.mask
        transform, shrink = self._transform(time, (width / aspect, height), (left, top))
        if shrink < 0.75:  # fewer pixels than the picture has: reduced first, so that nothing flickers
            smaller = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
            factors = image.width / smaller[0], image.height / smaller[1]
            image, mask = (
                image.resize(smaller, Image.Resampling.BOX),
                mask and mask.resize(smaller, Image.Resampling.BOX),
            )
            transform = [value / factors[index // 3] for index, value in enumerate(transform)]
        size = (right - left, bottom - top)

        def placed(source: Image.Image) -> np.ndarray:
            drawn = source.transform(size, Image.Transform.AFFINE, transform, Image.Resampling.BILINEAR)
            return np.asarray(drawn, np.float32)

        part, owned = canvas[top:bottom, left:right], owner[top:bottom, left:right]
        inside = np.zeros(part.shape[:2], np.float32) if mask is None else placed(mask) / 255
        if self.cut:
            part += (placed(image) - part) * inside[..., None]
            owned[inside >= 0.5] = self.number
        else:
            part[...] = placed(image)
            owned[...] = np.where(inside >= 0.5, self.number, 0)

    def _transform(self, time: float, unit: tuple[float, float], corner: tuple[int, int]) -> tuple[list[float], float]:
        """PIL's affine numbers (canvas pixel -> picture pixel), and canvas pixels per picture pixel."""
        x, y, log_scale, turn = self.path.at(time)
        scale = float(np.exp(log_scale))  # units per pixel of the picture
        cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
        across, down = 1 / unit[0], 1 / unit[1]
        first_x, first_y = corner[0] * across - x, corner[1] * down - y
        numbers = [
            *(cos * across, sin * down, cos * first_x + sin * first_y + self.picture.image.width / 2),
            *(-sin * across, cos * down, -sin * first_x + cos * first_y + self.picture.image.height / 2),
        ]
        return [float(number) for number in numbers], scale * min(unit)


@dataclass
class Scene:
    """Layers, from the back to the front, and the colours of the camera.

    Attributes:
        aspect: width of the canvas over its height.
        gamma, contrast, tint: of the whole clip.
        blur: radius in units.
    """

    aspect: float
    layers: list[Layer]
    gamma: float = 1.0
    contrast: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0
    _table: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        grey = (np.arange(256) / 255) ** self.gamma
        grey = (grey - 0.5) * self.contrast + 0.5
        self._table = np.clip(grey[:, None] * np.asarray(self.tint) * 255, 0, 255)  # (256, 3)

    def render(self, time: float, height: int, width: int) -> tuple[Image.Image, np.ndarray]:
        """The picture at a time in seconds, and the number of the visible object of every pixel, uint8 (H, W)."""
        canvas, owner = np.full((height, width, 3), 128, np.float32), np.zeros((height, width), np.uint8)
        for layer in self.layers:
            layer.draw(canvas, owner, time, self.aspect)
        levels = np.clip(np.rint(canvas), 0, 255).astype(np.intp)
        graded = np.stack([self._table[levels[..., channel], channel] for channel in range(3)], -1)
        image = Image.fromarray(np.rint(graded).astype(np.uint8))
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur * height))
        return image, owner


def cover(
    picture: Picture,
    region: tuple[float, float, float, float],
    seconds: float,
    motion: float,
    number: int,
    rng: np.random.Generator,
    zoom: tuple[float, float] = ZOOM,
) -> Layer:
    """A photograph that fills a region at all times, placed so that its object is well in sight."""
    if rng.random() < 0.5:
        picture = picture.flipped()
    best, most = None, -1.0
    for _ in range(PLACEMENTS):
        path = _covering_path(picture.image.size, region, seconds, motion, rng, zoom)
        seen = 1.0 if picture.mask is None else min(_seen(picture, path, region, time) for time in (0.0, seconds))
        if seen > most:
            best, most = path, seen
        if seen > LEAST_SEEN:
            break
    assert best is not None
    return Layer(picture, best, region, False, number)


def paste(
    picture: Picture, slot: tuple[float, float], seconds: float, motion: float, number: int, rng: np.random.Generator
) -> Layer:
    """An object cut out of its photograph, in a slot (x0, x1) of the canvas."""
    picture = picture.cut_out()
    if rng.random() < 0.5:
        picture = picture.flipped()
    width, height = picture.image.size
    room = slot[1] - slot[0]
    tall = min(rng.uniform(*CUT_OUT_HEIGHTS), 1.2 * room * height / width)
    scale = np.log(tall / height)
    half = min(tall * width / height / 2, room / 2)
    x = rng.uniform(slot[0] + half, slot[1] - half) if room > 2 * half else (slot[0] + slot[1]) / 2
    y = rng.uniform(min(0.45, 1 - tall / 2), max(0.55, 1 - tall / 2))  # rather on the ground than in the air
    walk = motion * rng.uniform(-1, 1, 2) * CUT_OUT_WALK * np.array([1.0, 0.3])
    turn = motion * rng.uniform(-1, 1, 2) * CUT_OUT_TURN
    end = (x + walk[0], y + walk[1], scale + motion * rng.uniform(-1, 1) * ZOOM_DRIFT, turn[1])
    return Layer(picture, Path2D((x, y, scale, turn[0]), end, seconds), (0.0, 0.0, 1e3, 1.0), True, number)


def grade(scene: Scene, strength: float, rng: np.random.Generator) -> Scene:
    """The scene by another camera in other light."""
    gamma, contrast = np.exp(strength * GAMMA * rng.uniform(-1, 1)), 1 + strength * CONTRAST * rng.uniform(-1, 1)
    tint = tuple(1 + strength * TINT * rng.uniform(-1, 1, 3))
    blur = float(strength * rng.uniform(0, 0.008)) if rng.random() < 0.3 else 0.0
    return Scene(scene.aspect, scene.layers, float(gamma), float(contrast), tint, blur)


def _covering_path(
    size: tuple[int, int],
    region: Sequence[float],
    seconds: float,
    motion: float,
    rng: np.random.Generator,
    limits: tuple[float, float],
) -> Path2D:
    sides = np.array([region[2] - region[0], region[3] - region[1]])
    sway = motion * SWAY * rng.random()
    least = np.log(((sides + 2 * sway) / size).max())  # units per pixel
    zoom = rng.uniform(*np.log(limits))
    zooms = np.maximum(0, zoom + motion * ZOOM_DRIFT * rng.uniform(-1, 1) * np.array([-0.5, 0.5]))
    at = rng.uniform(-1, 1, 2)
    drift = motion * DRIFT * rng.uniform(-1, 1, 2)
    places = []
    for zoom, where in zip(zooms, (at - drift, at + drift), strict=True):
        free = (np.exp(least + zoom) * np.array(size) - sides) / 2 - sway
        middle = (np.array([region[0] + region[2], region[1] + region[3]])) / 2
        x, y = middle + np.clip(where, -1, 1) * np.maximum(free, 0)
        places.append((float(x), float(y), float(least + zoom), 0.0))
    return Path2D(places[0], places[1], seconds, (sway, float(rng.uniform(0.1, 0.6)), float(rng.uniform(0, 6))))


def _seen(picture: Picture, path: Path2D, region: Sequence[float], time: float) -> float:
    """Share of the box around the object that lies in the region."""
    x, y, log_scale, _ = path.at(time)
    scale = np.exp(log_scale)
    assert picture.mask is not None
    box = np.array(picture.mask.getbbox() or (0, 0, *picture.image.size), float).reshape(2, 2)
    corners = (box - np.array(picture.image.size) / 2) * scale + (x, y)
    inside = np.minimum(corners[1], region[2:]) - np.maximum(corners[0], region[:2])
    return float(np.prod(np.maximum(inside, 0)) / max(np.prod(corners[1] - corners[0]), 1e-9))
