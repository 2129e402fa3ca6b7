"""Decoded frames -> pictures as a player shows them: deinterlaced, upright, with square pixels, in SDR colours; and
which of them are taken.

Sources: display matrix as in ISO 14496-12 and FFmpeg's `-autorotate`; BT.709 assumed from 720 lines up, as players do;
PQ and HLG as in ITU-R BT.2100, brought to BT.709 by Reinhard's curve, 100 cd/m2 being 1.
"""

from __future__ import annotations

import functools
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image


try:
    import av
    from av.filter import Graph
    from av.sidedata.sidedata import Type as SideDataType
    from av.video.frame import VideoFrame
except ImportError:  # the model itself needs no media files
    av = None  # type: ignore[assignment]
try:
    import cv2
except ImportError:  # then every change counts as unexplained
    cv2 = None


FRAME_OFFSET = 15 / 16  # where the picture lies inside its second (or its 1/fps)
AUTO = "auto"  # more pictures of the seconds in which something moves
AUTO_RATES = (4, 2, 1)  # pictures of a second; always the one at FRAME_OFFSET, and others 1/rate s apart before it
AUTO_BUDGET = 2  # pictures per second at most, counted from the beginning of the video
AUTO_SAVED = 8  # pictures that quiet seconds can leave to later ones
# Difference of grey values (0 to 255) that motion does not explain, over half a second and in the parts of a small
# picture where it is largest, from which on so many are taken. Pans and zooms of photographs stay below 11.
AUTO_CHANGE = {2: 12.0, 4: 24.0}
LOOK_SIZE, LOOK_BLOCK = (160, 96), 8  # pixels of such a picture, width and height, and of its parts
LIVELIEST = 0.03  # share of the parts that counts
Timed = tuple[float, Image.Image]  # time in s and picture

# Numbers of ITU-T H.273 and of FFmpeg.
RGB, BT709, UNKNOWN, BT601, BT2020 = 0, 1, 2, 6, 9  # matrices
PQ, HLG = 16, 18  # transfer functions
LIMITED_RANGE, FULL_RANGE = 1, 2  # Y in 16..235, or 0..255 (Motion JPEG, some phones)
HD_SIZE = (1280, 720)  # from here on, colours without a tag are BT.709
MAX_PIXEL_ASPECT = 8  # other shapes of pixels are damage
LUT_NODES = 49  # per channel
WHITE_NITS = 100.0  # cd/m2 that the tone curve counts as 1
PEAKS = {PQ: 100.0, HLG: 10.0}  # brightest light, in multiples of that
BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


@dataclass(frozen=True)
class Orientation:
    """How a coded picture becomes the upright one: first x and y change places, then the sides."""

    transpose: bool = False
    mirror: bool = False  # left and right
    flip: bool = False  # top and bottom

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, ...) as coded -> as shown; a view."""
        picture = picture.swapaxes(0, 1) if self.transpose else picture
        return picture[:: -1 if self.flip else 1, :: -1 if self.mirror else 1]


def orientation_of(frame: VideoFrame) -> Orientation:
    """From the display matrix, all eight of them; other angles count as the nearest of these."""
    try:
        values = struct.unpack("=9i", bytes(frame.side_data[SideDataType.DISPLAYMATRIX]))  # type: ignore[typeddict-item]
    except (KeyError, struct.error):
        return Orientation()
    a, b, c, d = values[0], values[1], values[3], values[4]  # x' = a x + c y, y' = b x + d y
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, mirror=c < 0, flip=b < 0)
    return Orientation(False, mirror=a < 0, flip=d < 0)


def square_pixels(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Size of the picture with square pixels: the lines stay, the width follows."""
    if not aspect or not Fraction(1, MAX_PIXEL_ASPECT) <= aspect <= MAX_PIXEL_ASPECT:
        return width, height
    return max(1, round(width * aspect)), height


@dataclass(frozen=True)
class Colour:
    """How numbers mean colours. matrix: of H.273; full: Y, Cb, Cr use all of 0..255."""

    matrix: int
    primaries: int
    transfer: int
    full: bool

    @property
    def range(self) -> int:
        return FULL_RANGE if self.full else LIMITED_RANGE


SDR = Colour(BT709, BT709, BT709, False)  # what RGB and HDR videos become


def colour_of(frame: VideoFrame) -> Colour:
    """Of a frame, with the guesses of players for what is not said."""
    name = frame.format.name
    full = name.startswith("yuvj") or frame.color_range == FULL_RANGE
    if frame.format.is_rgb or name == "pal8":
        return Colour(RGB, frame.color_primaries, frame.color_trc, True)
    matrix, primaries, transfer = frame.colorspace, frame.color_primaries, frame.color_trc
    if matrix in (RGB, UNKNOWN):
        if primaries == BT2020:
            matrix = BT2020
        elif primaries == BT709 or frame.width >= HD_SIZE[0] or frame.height >= HD_SIZE[1]:
            matrix = BT709
            primaries, transfer = (BT709 if tag == UNKNOWN else tag for tag in (primaries, transfer))
    return Colour(matrix, primaries, transfer, full)


def is_hdr(frame: VideoFrame) -> bool:
    """PQ (HDR10, Dolby Vision with a base layer) or HLG (phones, broadcasts)."""
    return frame.color_trc in (PQ, HLG)


class Deinterlacer:
    """FFmpeg's bwdif over frames in order, from the first interlaced one on; one picture per frame, at its time."""

    def __init__(self, time_base: Fraction) -> None:
        self.used = False
        self._time_base = time_base
        self._graph: Graph | None = None
        self._form: tuple[int, int, str] | None = None

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """The frames that are ready."""
        form = (frame.width, frame.height, frame.format.name)
        if self._graph is not None and form != self._form:
            yield from self.flush()
        if self._graph is None:
            if not frame.interlaced_frame:
                yield frame
                return
            self.used, self._form = True, form
            self._graph = chain(frame, self._time_base, ("bwdif", {"mode": "send_frame", "deint": "interlaced"}))
        self._graph.vpush(frame)
        yield from self._ready()

    def flush(self) -> Iterator[VideoFrame]:
        """What is left at the end."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._ready()
            self._graph = None

    def _ready(self) -> Iterator[VideoFrame]:
        assert self._graph is not None
        while True:
            try:
                frame = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            scale = (frame.time_base or self._time_base) / self._time_base  # bwdif halves the ticks
            frame.pts, frame.duration = round((frame.pts or 0) * scale), round((frame.duration or 0) * scale)
            frame.time_base = self._time_base
            yield frame


class ToneMapper:
    """HDR frames -> SDR frames in RGB, by a table of colours that FFmpeg's lut3d applies."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._form: tuple[int, int, str, int] | None = None

    def map(self, frame: VideoFrame) -> VideoFrame:
        """A new frame of the same size, gbrp with the colours of BT.709."""
        form = (frame.width, frame.height, frame.format.name, frame.color_trc)
        if self._graph is None or form != self._form:
            self._form = form
            with tempfile.TemporaryDirectory(prefix="combo-") as folder:
                path = os.path.join(folder, "sdr.cube")
                write_cube(path, frame.color_trc)
                colours = {"in_color_matrix": "bt2020", "in_range": "full" if colour_of(frame).full else "limited"}
                self._graph = chain(
                    frame, Fraction(1, 1000), ("scale", colours if not frame.format.is_rgb else {}),
                    ("format", {"pix_fmts": "gbrp16le"}), ("lut3d", {"file": path, "interp": "tetrahedral"}),
                    ("format", {"pix_fmts": "gbrp"}))  # fmt: skip
        self._graph.vpush(frame)
        mapped = self._graph.vpull()
        mapped.colorspace, mapped.color_range, mapped.color_trc, mapped.color_primaries = RGB, FULL_RANGE, BT709, BT709
        return mapped


def chain(frame: VideoFrame, time_base: Fraction, *filters: tuple[str, dict[str, str]]) -> Graph:
    """A filter graph for frames like this one."""
    graph = Graph()
    form = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={time_base}"
    tags = f":colorspace={frame.colorspace}:range={frame.color_range}:pixel_aspect=1/1"
    nodes = [graph.add("buffer", form + tags)]
    nodes += [graph.add(name, **options) for name, options in filters]
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph


def write_cube(path: str, transfer: int) -> None:
    """The table of colours of [`sdr_colours`] as a .cube file."""
    axis = np.linspace(0, 1, LUT_NODES)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # red changes fastest
    table = sdr_colours(np.stack([red.ravel(), green.ravel(), blue.ravel()], axis=1), transfer)
    with open(path, "w", encoding="ascii") as file:
        file.write(f"LUT_3D_SIZE {LUT_NODES}\n")
        np.savetxt(file, table, fmt="%.6f")


def sdr_colours(code: np.ndarray, transfer: int) -> np.ndarray:
    """HDR colours of BT.2020, as coded, 0 to 1, to those of BT.709; `(N, 3)` both."""
    light = np.clip(_light(code, transfer) / WHITE_NITS @ BT2020_TO_BT709.T, 0, None)
    peak = PEAKS[transfer]
    light = np.clip(light / (1 + light) * (1 + 1 / peak), 0, 1)  # Reinhard: the peak becomes 1
    return np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)


def _light(code: np.ndarray, transfer: int) -> np.ndarray:
    """Light of a display in cd/m2 (BT.2100, tables 4 and 5)."""
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        return np.asarray(10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1))
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    luma = scene @ np.array([0.2627, 0.6780, 0.0593])
    return np.asarray(1000 * luma[:, None] ** 0.2 * scene)


def check_fps(fps: Any) -> float | str:
    """Pictures per second: a whole number, below 1 the nearest 1/n, or `"auto"`.

    Raises:
        ValueError: anything else.
    """
    if isinstance(fps, str) and fps == AUTO:
        return AUTO
    if isinstance(fps, bool) or not isinstance(fps, (int, float, np.integer, np.floating)) or not 0 < fps < math.inf:
        raise ValueError(f"fps must be a whole number, a number between 0 and 1, or 'auto'; got {fps!r}.")
    if fps >= 1 and fps != int(fps):
        raise ValueError(f"fps must be a whole number from 1 on, got {fps!r}.")
    step = seconds_between(float(fps))
    return int(fps) if fps >= 1 else 1 / step if step > 1 else 1


def seconds_between(fps: float | str) -> int:
    """Seconds from one picture to the next where there is less than one per second; otherwise 1."""
    return 1 if isinstance(fps, str) else max(1, round(1 / fps))


class Sampler:
    """Which pictures of each second are taken, and at which times."""

    def __init__(self, fps: float | str) -> None:
        self._step = seconds_between(fps)
        self._auto = isinstance(fps, str)
        count = AUTO_RATES[0] if isinstance(fps, str) else max(1, int(fps))
        # at "auto" those before the picture at FRAME_OFFSET, which is that of one picture per second
        moments = range(1 - count, 1) if self._auto else range(count)
        self.offsets = [
            FRAME_OFFSET + index / count if self._auto else (index + FRAME_OFFSET) / count for index in moments
        ]
        self._saved = 0
        self._before: ShownPicture | None = None

    def take(self, begin: float, second: int, shown: list[ShownPicture]) -> list[Timed]:
        """Of the pictures at the offsets of a second those that are taken; `begin`: of the reading, in s."""
        if second % self._step:
            return []
        chosen = self._lively(shown) if self._auto else range(len(shown))
        return [(begin + second + self.offsets[index], shown[index].image) for index in chosen]

    def _lively(self, shown: list[ShownPicture]) -> range:
        """More of them the more changes, as far as the budget goes."""
        before = shown[0] if self._before is None else self._before
        self._before, middle = shown[-1], len(shown) // 2
        change = max(_unexplained(before, shown[:middle]), _unexplained(shown[middle - 1], shown[middle:]))
        self._saved = min(self._saved + AUTO_BUDGET, AUTO_SAVED)
        wanted = (rate for rate in AUTO_RATES if rate <= self._saved and change >= AUTO_CHANGE.get(rate, 0.0))
        rate = next(wanted)
        self._saved -= rate
        step = len(shown) // rate
        return range(step - 1, len(shown), step)


def _unexplained(key: ShownPicture, way: list[ShownPicture]) -> float:
    """How much the last picture of a way differs from the key where that is moved to resemble it, in grey values."""
    moved, last = key.look, way[-1].look
    if last is moved:
        return 0.0
    if cv2 is not None:
        search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        search.setVariationalRefinementIterations(0)
        flow = functools.reduce(  # step by step, which finds large motions
            lambda found, picture: search.calc(picture.look, key.look, found), way, None
        )
        grid = np.stack(np.meshgrid(*map(np.arange, LOOK_SIZE)), -1).astype(np.float32)
        moved = cv2.remap(key.look, grid + flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = np.abs(moved.astype(np.int16) - last)
    parts = difference.reshape(LOOK_SIZE[1] // LOOK_BLOCK, LOOK_BLOCK, -1, LOOK_BLOCK).mean((1, 3)).ravel()
    most = max(1, round(LIVELIEST * len(parts)))
    return float(np.sort(parts)[-most:].mean())


class ShownPicture:
    """A picture on the screen, converted at most once."""

    def __init__(self, frame: VideoFrame, convert: Callable[[VideoFrame], Image.Image]) -> None:
        self._frame, self._convert = frame, convert

    @functools.cached_property
    def image(self) -> Image.Image:
        """As shown, RGB."""
        return self._convert(self._frame)

    @functools.cached_property
    def look(self) -> np.ndarray:
        """Small and grey, `LOOK_SIZE` whatever its shape, uint8, as coded."""
        return self._frame.reformat(*LOOK_SIZE, "gray", interpolation="AREA").to_ndarray()
