"""Decoded frames -> pictures as a player shows them: deinterlaced, upright, with square pixels, in SDR colours.

Sources: display matrix as in ISO 14496-12 and FFmpeg's `-autorotate`; BT.709 assumed from 720 lines up, as players do;
PQ and HLG as in ITU-R BT.2100, brought to BT.709 by Reinhard's curve, 100 cd/m2 being 1.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


try:
    import av
    from av.filter import Graph
    from av.sidedata.sidedata import Type as SideDataType
    from av.video.frame import VideoFrame
except ImportError:  # the model itself needs no media files
    av = None  # type: ignore[assignment]


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
