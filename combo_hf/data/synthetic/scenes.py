"""Drawing of the synthetic clips: eight recognisable objects, clutter, backgrounds, motion, and what is visible.

Every object is drawn once as a sprite (at twice its size, then halved) and put into each frame by an affine
transform. All random numbers are drawn in units of the frame, so a clip looks the same at every size.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


Color = tuple[int, int, int]
Range = tuple[float, float]
INK: Color = (32, 30, 36)
BACKGROUND_MARGIN = 0.08  # room for the slow pan, in frame sizes


def hsv(hue: float, saturation: float, value: float) -> Color:
    """Colour from hue in degrees, saturation and value in 0..1 (values outside are clipped)."""
    r, g, b = colorsys.hsv_to_rgb(hue / 360 % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(255 * r), round(255 * g), round(255 * b)


def scaled(color: Color, factor: float) -> Color:
    """The same colour, darker (`factor` < 1) or lighter (> 1)."""
    return min(255, round(color[0] * factor)), min(255, round(color[1] * factor)), min(255, round(color[2] * factor))


def pick_color(rng: np.random.Generator, hues: Sequence[Range], saturation: float, values: Range) -> Color:
    """Draw a colour whose hue lies in one of several ranges."""
    return hsv(rng.uniform(*hues[int(rng.integers(len(hues)))]), saturation, rng.uniform(*values))


class Brush:
    """`ImageDraw` in sprite units: x to the right and y down, both in -1..1."""

    def __init__(self, pixels: int) -> None:
        self.image = Image.new("RGBA", (pixels, pixels), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)
        self._half = pixels / 2

    def _xy(self, points: Iterable[Range]) -> list[tuple[float, float]]:
        return [((x + 1) * self._half, (y + 1) * self._half) for x, y in points]

    def polygon(self, points: Iterable[Range], fill: Color) -> None:
        self._draw.polygon(self._xy(points), fill=fill)

    def line(self, points: Iterable[Range], fill: Color, width: float) -> None:
        self._draw.line(self._xy(points), fill=fill, width=max(1, round(width * self._half)), joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        self._draw.ellipse(sum(self._xy([(x - rx, y - ry), (x + rx, y + ry)]), ()), fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Color, radius: float = 0.0) -> None:
        corners = sum(self._xy([(x0, y0), (x1, y1)]), ())
        self._draw.rounded_rectangle(corners, radius=radius * self._half, fill=fill)


def draw_bell(brush: Brush, rng: np.random.Generator) -> None:
    """Golden bell with a flared mouth, bands, handle and clapper."""
    gold = hsv(rng.uniform(36, 50), rng.uniform(0.65, 0.85), rng.uniform(0.8, 0.98))
    flare = rng.uniform(0.28, 0.4)
    y = np.linspace(-0.68, 0.62, 40)
    u = (y + 0.68) / 1.3
    half = 0.42 * np.sqrt(np.clip(u * 4, 0, 1)) + 0.1 * u + flare * u**6
    brush.ellipse(0, -0.76, 0.17, 0.2, scaled(gold, 0.7))
    brush.ellipse(0, -0.76, 0.08, 0.1, scaled(gold, 0.35))
    brush.ellipse(0, 0.7, 0.18, 0.18, scaled(gold, 0.45))
    brush.polygon([*zip(half, y, strict=True), *zip(-half[::-1], y[::-1], strict=True)], gold)
    for at in (10, 13, 31):
        brush.line([(-half[at], y[at]), (half[at], y[at])], scaled(gold, 0.6), 0.05)
    brush.polygon([(-0.3, -0.4), (-0.18, -0.45), (-0.25, 0.4), (-0.42, 0.45)], scaled(gold, 1.25))
    brush.box(-half[-1] - 0.05, 0.56, half[-1] + 0.05, 0.7, scaled(gold, 0.75), 0.06)


def draw_bird(brush: Brush, rng: np.random.Generator) -> None:
    """Song bird in profile: round body, pale belly, wing, tail, beak, legs."""
    body = pick_color(rng, ((195, 225), (48, 62), (95, 130)), 0.75, (0.75, 0.95))
    dark = scaled(body, 0.6)
    tail = rng.uniform(-0.15, 0.15)
    for leg in (-0.05, 0.12):
        brush.line([(leg, 0.5), (leg + 0.03, 0.88), (leg + 0.18, 0.9)], (196, 110, 40), 0.06)
    brush.polygon([(-0.4, 0.0), (-0.98, tail - 0.12), (-0.92, tail + 0.2), (-0.35, 0.32)], dark)
    brush.ellipse(-0.02, 0.18, 0.55, 0.42, body)
    brush.ellipse(0.1, 0.33, 0.38, 0.26, (245, 232, 205))
    brush.polygon([(0.68, -0.4), (0.99, -0.24), (0.68, -0.16)], (240, 150, 30))
    brush.ellipse(0.45, -0.28, 0.33, 0.32, body)
    brush.polygon([(0.2, -0.5), (0.3, -0.82), (0.52, -0.55)], dark)
    brush.ellipse(0.54, -0.34, 0.1, 0.1, (255, 255, 255))
    brush.ellipse(0.56, -0.34, 0.055, 0.055, INK)
    brush.polygon([(0.22, 0.0), (-0.1, -0.12), (-0.72, 0.12), (-0.3, 0.38), (0.05, 0.3)], dark)
    for row in range(3):
        brush.line([(0.05 - 0.2 * row, 0.02 + 0.03 * row), (-0.12 - 0.2 * row, 0.26)], scaled(body, 1.2), 0.035)


def _wheels(brush: Brush, centres: tuple[float, float], y: float, radius: float) -> None:
    for x in centres:
        brush.ellipse(x, y, radius, radius, INK)
        brush.ellipse(x, y, radius * 0.55, radius * 0.55, (190, 192, 198))
        brush.ellipse(x, y, radius * 0.2, radius * 0.2, (90, 92, 98))


def draw_car(brush: Brush, rng: np.random.Generator) -> None:
    """Low private car in one strong colour, round cabin, two wheels."""
    paint = pick_color(rng, ((-12, 12), (130, 160), (210, 300)), 0.8, (0.6, 0.9))
    roof = rng.uniform(-0.46, -0.36)
    brush.polygon([(-0.68, 0.0), (-0.42, roof), (0.22, roof), (0.58, 0.0)], paint)
    glass = hsv(205, 0.35, rng.uniform(0.7, 0.9))
    brush.polygon([(-0.53, -0.02), (-0.36, roof + 0.08), (-0.1, roof + 0.08), (-0.1, -0.02)], glass)
    brush.polygon([(-0.02, -0.02), (-0.02, roof + 0.08), (0.18, roof + 0.08), (0.43, -0.02)], glass)
    brush.box(-0.97, -0.04, 0.97, 0.4, paint, 0.16)
    brush.box(-0.97, 0.24, 0.97, 0.4, scaled(paint, 0.6), 0.08)
    brush.line([(-0.06, 0.0), (-0.06, 0.3)], scaled(paint, 0.5), 0.025)
    brush.ellipse(0.88, 0.1, 0.09, 0.08, (255, 240, 170))
    brush.box(-0.97, 0.04, -0.88, 0.16, (200, 30, 30), 0.03)
    _wheels(brush, (-0.55, 0.55), 0.4, rng.uniform(0.2, 0.24))


def draw_emergency_car(brush: Brush, rng: np.random.Generator) -> None:
    """Tall white van with a warning stripe, a cross and blue lamps."""
    white = scaled((246, 246, 242), rng.uniform(0.9, 1.0))
    stripe = hsv(rng.uniform(2, 22), 0.9, rng.uniform(0.85, 1.0))
    hood = rng.uniform(0.5, 0.6)
    brush.box(-0.12, -0.72, 0.3, -0.5, (40, 90, 245), 0.07)
    brush.box(0.02, -0.72, 0.14, -0.5, (150, 190, 255), 0.0)
    outline = [(-0.95, 0.44), (-0.95, -0.55), (0.42, -0.55), (hood + 0.12, -0.06), (0.96, 0.06), (0.96, 0.44)]
    brush.polygon(outline, white)
    brush.polygon([(0.2, -0.06), (0.2, -0.44), (0.38, -0.44), (hood, -0.06)], hsv(205, 0.4, 0.65))
    brush.polygon([(-0.95, 0.08), (0.96, 0.14), (0.96, 0.27), (-0.95, 0.24)], stripe)
    for at in np.arange(-0.9, 0.9, 0.3):
        brush.polygon([(at, 0.09), (at + 0.12, 0.09), (at + 0.04, 0.24), (at - 0.08, 0.24)], (250, 225, 60))
    brush.box(-0.52, -0.46, -0.38, 0.0, (215, 30, 40))
    brush.box(-0.68, -0.3, -0.22, -0.16, (215, 30, 40))
    brush.box(-0.95, 0.36, 0.96, 0.46, (90, 92, 98), 0.03)
    brush.ellipse(0.9, 0.16, 0.07, 0.07, (255, 240, 170))
    _wheels(brush, (-0.55, 0.55), 0.46, 0.21)


def draw_clock(brush: Brush, rng: np.random.Generator) -> None:
    """Alarm clock: pale face with twelve marks and hands, coloured rim, two feet and two caps."""
    rim = pick_color(rng, ((340, 360), (165, 185), (270, 300)), 0.65, (0.6, 0.85))
    for side in (-1, 1):
        brush.line([(0.4 * side, 0.5), (0.62 * side, 0.94)], scaled(rim, 0.6), 0.13)
        brush.ellipse(0.5 * side, -0.68, 0.25, 0.22, scaled(rim, 0.75))
    brush.ellipse(0, 0.02, 0.8, 0.8, rim)
    brush.ellipse(0, 0.02, 0.64, 0.64, hsv(50, 0.1, 0.97))
    for hour in range(12):
        angle = hour * math.pi / 6
        inner = 0.45 if hour % 3 == 0 else 0.52
        spoke = [(r * math.sin(angle), 0.02 - r * math.cos(angle)) for r in (inner, 0.59)]
        brush.line(spoke, INK, 0.075 if hour % 3 == 0 else 0.04)
    for length, width in ((0.32, 0.09), (0.48, 0.06)):
        angle = rng.uniform(0, 2 * math.pi)
        brush.line([(0, 0.02), (length * math.sin(angle), 0.02 - length * math.cos(angle))], INK, width)
    brush.ellipse(0, 0.02, 0.07, 0.07, (200, 40, 40))


def draw_drum(brush: Brush, rng: np.random.Generator) -> None:
    """Barrel seen from above its rim: pale skin, coloured shell, white zig-zag ropes."""
    shell = pick_color(rng, ((-10, 10), (215, 235), (15, 25)), 0.8, (0.55, 0.8))
    gold = (226, 178, 60)
    tall = rng.uniform(0.42, 0.56)
    brush.ellipse(0, tall, 0.85, 0.3, gold)
    brush.ellipse(0, tall - 0.08, 0.83, 0.3, shell)
    brush.polygon([(-0.83, -0.4), (0.83, -0.4), (0.83, tall - 0.08), (-0.83, tall - 0.08)], shell)
    angles = np.linspace(0, math.pi, 13)
    low, high = tall - 0.1, -0.36
    ropes = [(0.83 * math.cos(a), (low if k % 2 else high) + 0.28 * math.sin(a)) for k, a in enumerate(angles)]
    brush.line(ropes, (244, 240, 226), 0.06)
    brush.ellipse(0, -0.36, 0.87, 0.34, gold)
    brush.ellipse(0, -0.43, 0.85, 0.32, scaled(gold, 0.7))
    brush.ellipse(0, -0.44, 0.77, 0.27, hsv(rng.uniform(38, 48), 0.18, 0.95))
    brush.ellipse(0.1, -0.46, 0.36, 0.12, hsv(40, 0.25, 0.86))


def draw_flute(brush: Brush, rng: np.random.Generator) -> None:
    """Silver tube with rings, a lip plate and a row of keys."""
    silver = hsv(rng.uniform(190, 230), rng.uniform(0.04, 0.14), rng.uniform(0.8, 0.95))
    half = rng.uniform(0.12, 0.15)
    brush.box(-0.99, -half, 0.99, half, scaled(silver, 0.55), 0.05)
    brush.box(-0.99, -half * 0.85, 0.99, half * 0.6, silver, 0.05)
    brush.box(-0.97, -half * 0.6, 0.97, -half * 0.25, (255, 255, 255), 0.03)
    for at in (-0.96, -0.42, 0.72):
        brush.box(at - 0.035, -half * 1.25, at + 0.035, half * 1.25, (212, 172, 70), 0.02)
    brush.ellipse(-0.7, -half * 0.2, 0.15, half * 0.9, scaled(silver, 0.7))
    brush.ellipse(-0.7, -half * 0.2, 0.06, half * 0.4, INK)
    for at in np.linspace(-0.3, 0.6, 7):
        brush.ellipse(at, 0, 0.056, half * 0.75, scaled(silver, 0.4))
        brush.ellipse(at, -half * 0.1, 0.04, half * 0.5, (228, 206, 140))


def draw_guitar(brush: Brush, rng: np.random.Generator) -> None:
    """Acoustic guitar: waisted wooden body, sound hole, neck with frets, head with pegs."""
    wood = hsv(rng.uniform(18, 36), rng.uniform(0.65, 0.85), rng.uniform(0.65, 0.92))
    edge = scaled(wood, 0.45)
    waist = rng.uniform(-0.02, 0.04)
    for grow, color in ((0.045, edge), (0.0, wood)):
        brush.ellipse(0, 0.55, 0.5 + grow, 0.42 + grow, color)
        brush.ellipse(0, 0.02 + waist, 0.37 + grow, 0.31 + grow, color)
        brush.box(-0.3 - grow, 0.1, 0.3 + grow, 0.4, color)
    brush.box(-0.09, -0.84, 0.09, 0.1, (74, 44, 28))
    for fret in np.linspace(-0.7, 0.0, 8):
        brush.line([(-0.09, fret), (0.09, fret)], (215, 205, 180), 0.025)
    brush.polygon([(-0.15, -0.99), (0.15, -0.99), (0.11, -0.76), (-0.11, -0.76)], edge)
    for peg in (-0.94, -0.86):
        brush.line([(-0.22, peg), (0.22, peg)], (225, 220, 205), 0.045)
    brush.ellipse(0, 0.22, 0.18, 0.18, edge)
    brush.ellipse(0, 0.22, 0.14, 0.14, INK)
    brush.box(-0.2, 0.66, 0.2, 0.74, edge, 0.02)
    for string in (-0.05, 0.0, 0.05):
        brush.line([(string, -0.9), (string, 0.7)], (240, 235, 215), 0.015)


def draw_clutter(brush: Brush, rng: np.random.Generator) -> None:
    """Something that belongs to no category: a crate, a ball, a plant, a cone or a cushion."""
    what, color = rng.integers(5), hsv(rng.uniform(0, 360), rng.uniform(0.3, 0.8), rng.uniform(0.45, 0.9))
    if what == 0:
        brush.box(-0.8, -0.8, 0.8, 0.8, scaled(color, 0.6), 0.04)
        for at in (-0.72, -0.22, 0.28):
            brush.box(-0.72, at, 0.72, at + 0.42, color)
    elif what == 1:
        brush.ellipse(0, 0, 0.85, 0.85, color)
        brush.ellipse(0, 0, 0.3, 0.85, scaled(color, 1.4))
        brush.ellipse(-0.3, -0.35, 0.2, 0.15, scaled(color, 1.7))
    elif what == 2:
        for lean in np.linspace(-0.8, 0.8, 7):
            leaf = hsv(rng.uniform(85, 150), 0.6, rng.uniform(0.35, 0.75))
            brush.polygon([(-0.08, 0.6), (lean * 0.8 - 0.14, -0.2), (lean, -0.92), (lean * 0.8 + 0.14, -0.1)], leaf)
        brush.polygon([(-0.4, 0.4), (0.4, 0.4), (0.28, 0.95), (-0.28, 0.95)], color)
    elif what == 3:
        brush.polygon([(0, -0.95), (0.6, 0.8), (-0.6, 0.8)], color)
        brush.polygon([(-0.2, -0.35), (0.2, -0.35), (0.34, 0.05), (-0.34, 0.05)], scaled(color, 1.5))
    else:
        brush.box(-0.9, -0.6, 0.9, 0.6, color, 0.4)
        for at in (-0.45, 0.0, 0.45):
            brush.line([(at, -0.58), (at, 0.58)], scaled(color, 0.7), 0.1)


DRAWINGS: Mapping[str, Callable[[Brush, np.random.Generator], None]] = {
    "bell": draw_bell,
    "bird": draw_bird,
    "car": draw_car,
    "clock": draw_clock,
    "drum": draw_drum,
    "emergency-car": draw_emergency_car,
    "flute": draw_flute,
    "guitar": draw_guitar,
    "clutter": draw_clutter,
}
# (diameter in units of a common one, largest tilt in degrees): long thin things are drawn larger and may lie anyhow
BUILDS: Mapping[str, tuple[float, float]] = {
    "bell": (0.95, 20), "bird": (1.0, 15), "car": (1.1, 12), "clock": (0.9, 15), "drum": (0.95, 15),
    "emergency-car": (1.1, 10), "flute": (1.3, 80), "guitar": (1.25, 60), "clutter": (0.55, 30),
}  # fmt: skip


def value_noise(rng: np.random.Generator, pixels: int, cells: tuple[int, ...]) -> np.ndarray:
    """Sum smooth random grids, each at half the weight of the last. Returns float32 (pixels, pixels) in 0..1."""
    total, weight = np.zeros((pixels, pixels), np.float32), 1.0
    for count in cells:
        grid = Image.fromarray(rng.random((count, count), np.float32), "F")
        total += weight * np.asarray(grid.resize((pixels, pixels), Image.Resampling.BICUBIC))
        weight /= 2
    return np.clip((total - total.min()) / (np.ptp(total) + 1e-6), 0, 1)


def render_sprite(category: str, rng: np.random.Generator, pixels: int) -> Image.Image:
    """Draw one object with shading and a faint surface texture, anti-aliased. Returns RGBA (pixels, pixels)."""
    brush = Brush(2 * pixels)
    DRAWINGS[category](brush, rng)
    sprite = brush.image.reduce(2)
    ramp = np.linspace(1, -1, pixels, dtype=np.float32)
    light = 1 + 0.16 * ramp[:, None] + 0.08 * ramp[None, :] + 0.22 * (value_noise(rng, pixels, (9, 23)) - 0.5)
    flat = np.asarray(sprite)
    shaded = np.clip(flat[..., :3] * light[..., None], 0, 255).astype(np.uint8)
    return Image.fromarray(np.concatenate([shaded, flat[..., 3:]], axis=-1))


def render_background(rng: np.random.Generator, pixels: int) -> Image.Image:
    """Two-colour noise with patches, stripes and soft blobs. Returns RGB (pixels, pixels)."""
    base, hue = value_noise(rng, pixels, (3, 6, 13, 27, 55))[..., None], rng.uniform(0, 360)
    first = np.array(hsv(hue, rng.uniform(0.1, 0.45), rng.uniform(0.3, 0.6)), np.float32)
    second = np.array(hsv(hue + rng.uniform(20, 140), rng.uniform(0.1, 0.45), rng.uniform(0.5, 0.85)), np.float32)
    image = Image.fromarray((first + base * (second - first)).astype(np.uint8), "RGB")
    soft = Image.new("RGBA", (pixels, pixels), (0, 0, 0, 0))
    draw = ImageDraw.Draw(soft)
    for _ in range(rng.integers(6, 12)):
        x, y = rng.uniform(0, pixels, 2)
        reach, turn = rng.uniform(0.04, 0.22) * pixels, rng.uniform(0, 360)
        color = (*hsv(rng.uniform(0, 360), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.9)), int(rng.uniform(60, 150)))
        if rng.random() < 0.35:
            draw.ellipse((x - reach, y - reach * 0.7, x + reach, y + reach * 0.7), fill=color)
        elif rng.random() < 0.5:
            draw.regular_polygon((x, y, reach), int(rng.integers(3, 8)), rotation=turn, fill=color)
        else:
            dx, dy = 3 * reach * math.cos(turn), 3 * reach * math.sin(turn)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=color, width=max(1, round(reach / 4)))
    soft = soft.filter(ImageFilter.BoxBlur(pixels * rng.uniform(0.002, 0.012)))
    image.paste(soft, (0, 0), soft)
    return image


@dataclass(frozen=True)
class Motion:
    """A smooth path: `kind` is drift, bounce or pendulum; lengths in frame sizes, `period` in s, angles in degrees."""

    kind: str
    centre: tuple[float, float]
    reach: tuple[float, float]
    period: float
    phase: float
    tilt: float
    swing: float

    @classmethod
    def draw(cls, rng: np.random.Generator, radius: float, max_tilt: float) -> Motion:
        """Draw a path on which an object of this `radius` stays inside the frame."""
        room = 0.48 - 0.8 * radius
        reach = np.minimum(rng.uniform(0.03, 0.22, 2), room)
        centre = 0.5 + rng.uniform(-1, 1, 2) * (room - reach)
        kind = ("drift", "bounce", "pendulum")[rng.integers(3)]
        numbers = rng.uniform([3.5, 0, -max_tilt, 3], [8.0, 1, max_tilt, 12])
        return cls(kind, tuple(centre), tuple(reach), *numbers.tolist())

    def position(self, t: np.ndarray | float) -> np.ndarray:
        """Return the centre (..., 2) at time `t` in s."""
        turn = 2 * np.pi * (np.asarray(t) / self.period + self.phase)
        if self.kind == "drift":
            x, y = np.sin(turn), np.sin(0.7 * turn + 1)
        elif self.kind == "bounce":
            x, y = np.sin(0.8 * turn), 1 - 2 * np.abs(np.sin(turn))
        else:
            x, y = np.sin(turn), np.cos(2 * turn) * 0.4
        return np.stack([self.centre[0] + self.reach[0] * x, self.centre[1] + self.reach[1] * y], -1)

    def transform(self, t: float) -> np.ndarray:
        """Return the (2, 2) matrix of the object's turn, breathing size and slight shear at time `t` in s."""
        turn = 2 * math.pi * (t / self.period + self.phase)
        angle = math.radians(self.tilt + self.swing * math.sin(turn))
        stretch, shear = 0.05 * math.sin(1.3 * turn), 0.05 * math.cos(turn)
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return rotation @ np.array([[1 + stretch, shear], [0.0, 1 - stretch]]) * (1 + 0.06 * math.sin(0.6 * turn))


@dataclass
class Item:
    """One sprite and its path; `category` is a category or "clutter"."""

    category: str
    sprite: Image.Image
    motion: Motion
    flip: bool

    def patch(self, t: float, pixels: int) -> tuple[Image.Image, tuple[int, int]]:
        """Return the moved sprite at time `t` (RGBA) and where its top left corner lies in a frame of `pixels`."""
        matrix = self.motion.transform(t) @ np.diag([-1.0 if self.flip else 1.0, 1.0])
        x, y = self.motion.position(t) * pixels
        half = self.sprite.width / 2
        reach = half * np.abs(matrix).sum(1)
        left, top = int(x - reach[0]), int(y - reach[1])
        extent = (int(2 * reach[0]) + 2, int(2 * reach[1]) + 2)
        (a, b), (d, e) = np.linalg.inv(matrix)
        back = (a, b, a * (left - x) + b * (top - y) + half, d, e, d * (left - x) + e * (top - y) + half)
        return self.sprite.transform(extent, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR), (left, top)


@dataclass
class Scene:
    """Item from back to front over a background that pans slowly."""

    pixels: int
    background: Image.Image
    pan: tuple[float, float]
    items: list[Item]

    def render(self, t: float) -> tuple[Image.Image, np.ndarray]:
        """Draw the moment `t` in s; returns the RGB frame and who is visible where.

        The uint8 array (H, W) holds 1 + the number of the front item at each pixel, and 0 for background.
        """
        spare = self.background.width - self.pixels
        left, top = (spare * (0.5 + 0.5 * math.sin(0.35 * t + phase)) for phase in self.pan)
        frame = self.background.crop((round(left), round(top), round(left) + self.pixels, round(top) + self.pixels))
        owner = Image.new("L", (self.pixels, self.pixels), 0)
        for number, item in enumerate(self.items, start=1):
            patch, (x, y) = item.patch(t, self.pixels)
            alpha = patch.getchannel("A")
            soft = np.asarray(alpha.filter(ImageFilter.BoxBlur(self.pixels * 0.012)))
            offset = round(self.pixels * 0.018)
            frame.paste((0, 0, 0), (x + offset, y + offset), Image.fromarray(soft // 5 * 2))
            frame.paste(patch, (x, y), alpha)
            solid = np.where(np.asarray(alpha) >= 128, 255, 0).astype(np.uint8)
            owner.paste(number, (x, y), Image.fromarray(solid))
        return frame, np.asarray(owner)
