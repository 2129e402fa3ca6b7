"""What sounds, cut out of a video: pictures with an alpha channel for editors, and the label map of every picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from combo_hf.media_combo_tracks import PictureTrack
from combo_hf.results.painting import even, even_picture, plane_values
from combo_hf.results.video import PictureWriter, container


MARGIN = 16  # pixels around the box of what sounds that keep their colour, for edges that are softened later


@dataclass(frozen=True)
class MatteFormat:
    """How a video with an alpha channel is encoded: terms of FFmpeg."""

    encoder: str
    pixels: str
    bits: int
    options: Mapping[str, str]


FORMATS = {
    "mov": MatteFormat("prores_ks", "yuva444p10le", 10, {"profile": "4444", "alpha_bits": "16", "vendor": "apl0"}),
    # with alternative reference pictures the encoder cannot write an alpha channel
    "webm": MatteFormat("libvpx-vp9", "yuva420p", 8, {"crf": "20", "b": "0", "cpu-used": "5", "deadline": "good",
                        "auto-alt-ref": "0"}),
}  # fmt: skip


class Matte:
    """The video's own pictures, at its own rate, transparent where nothing sounds: one file, or one for every class.

    Colours are not multiplied by alpha ("straight"); far from what sounds they are black, which keeps files small. A
    [`MapSink`] and a context manager.

    Args:
        path: of the file; of a folder, which is made, where there is one for every class.
        kind: `mov` (ProRes 4444) or `webm` (VP9).
        labels: class number -> name: a file for each class that is found, from the video's first picture on.

    Raises:
        ValueError: another kind, or one that this build of PyAV cannot write.
    """

    def __init__(self, path: Path, kind: str = "mov", labels: Mapping[int, str] | None = None) -> None:
        if kind not in FORMATS:
            raise ValueError(f"a matte is one of {', '.join(FORMATS)}, got {kind!r}.")
        try:
            av.codec.Codec(FORMATS[kind].encoder, "w")
        except av.codec.codec.UnknownCodecError:
            raise ValueError(f"this PyAV has no {FORMATS[kind].encoder}; pip install av has it.") from None
        self.path, self.kind, self._labels = path, kind, labels
        self._stack = ExitStack()
        self._writers: dict[int, PictureWriter] = {}
        self._names: set[str] = set()
        self._written: list[int] = []  # ticks

    def __enter__(self) -> Matte:
        if self._labels is not None:
            self.path.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def open(self, track: PictureTrack, zero: Fraction) -> None:
        """See [`MapSink`]."""
        self._track, self._zero = track, zero
        if self._labels is None:
            self._writers[0] = self._writer(self.path)

    def write(self, frame: VideoFrame, label_map: np.ndarray, ticks: int) -> None:
        """See [`MapSink`]."""
        if self._labels is not None:
            for index in np.flatnonzero(np.bincount(label_map.ravel())).tolist():
                if index and index not in self._writers:
                    self._begin(index, self._labels[index], frame)
        picture = even_picture(self._track, frame)
        for index, writer in self._writers.items():
            writer.write(self._cut(picture, label_map == index if index else label_map > 0), ticks)
        if self._labels is not None:
            self._written.append(ticks)

    def finish(self, ticks: int) -> None:
        """See [`MapSink`]."""
        for writer in self._writers.values():
            writer.finish(ticks)
        self._stack.close()

    def _begin(self, index: int, label: str, frame: VideoFrame) -> None:
        """The file of a class that is found for the first time; all pictures before this one are transparent."""
        name = re.sub(r"[^\w .-]", "_", label).strip(" .") or "class"
        name = f"{name}_{index}" if name in self._names else name
        self._names.add(name)
        self._writers[index] = writer = self._writer(self.path / f"{name}.{self.kind}")
        picture = even_picture(self._track, frame)
        nothing = np.zeros((picture.height, picture.width), bool)
        for ticks in self._written:
            writer.write(self._cut(picture, nothing), ticks)

    def _writer(self, path: Path) -> PictureWriter:
        form = FORMATS[self.kind]
        output = self._stack.enter_context(container(path, self._track.media.error, self.kind))
        return PictureWriter(output, self._track, self._zero, form.encoder, form.pixels, form.options)

    def _cut(self, picture: VideoFrame, mask: np.ndarray) -> VideoFrame:
        """A picture (yuv420p, even) with the mask (H, W) as its alpha channel."""
        mask = even(mask)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (_around(rows), _around(columns))
        colour = self._track.colour
        cut = av.VideoFrame(picture.width, picture.height, "yuv420p")
        for number, (old, new) in enumerate(zip(picture.planes, cut.planes, strict=True)):
            values, step = plane_values(new), 1 if number == 0 else 2
            values[:] = 128 if number else (0 if colour.full else 16)
            place = tuple(slice(side.start // step, side.stop // step) for side in box)
            values[place] = plane_values(old)[place]
        form = FORMATS[self.kind]
        matte = cut.reformat(format=form.pixels, src_color_range=colour.range, dst_color_range=1)
        plane = matte.planes[3]
        dtype = np.dtype(np.uint8 if form.bits == 8 else np.uint16)
        alpha = np.frombuffer(memoryview(plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)
        alpha[: plane.height, : plane.width] = mask * dtype.type(2**form.bits - 1)
        return matte


def _around(places: np.ndarray) -> slice:
    """From the first to the last of them with a margin, on even numbers; the end of an axis cuts a slice by itself."""
    if not len(places):
        return slice(0, 0)
    return slice(max(0, int(places[0]) - MARGIN) // 2 * 2, (int(places[-1]) + MARGIN) // 2 * 2 + 2)


class MaskPictures:
    """The label map of every picture as an index PNG, its time in the name. A [`MapSink`].

    Args:
        folder: is there.
        colors: uint8 RGB `(K, 3)` of the classes, for the palette.
    """

    def __init__(self, folder: Path, colors: np.ndarray) -> None:
        self.folder, self._colors, self._count = folder, colors, 0

    def open(self, track: PictureTrack, zero: Fraction) -> None:
        """See [`MapSink`]."""
        self._track = track

    def write(self, frame: VideoFrame, label_map: np.ndarray, ticks: int) -> None:
        """See [`MapSink`]."""
        write_mask(self.folder, self._count, self._track.seconds(ticks), label_map, self._colors)
        self._count += 1

    def finish(self, ticks: int) -> None:
        """See [`MapSink`]."""


def write_mask(folder: Path, number: int, time: float, label_map: np.ndarray, colors: np.ndarray) -> None:
    """A label map (H, W) as `000003_3.938s.png`: class numbers, with a palette of the colours."""
    picture = Image.fromarray(label_map.astype(np.uint8))
    picture.putpalette(colors.tobytes())
    picture.save(folder / f"{number:06d}_{time:.3f}s.png")
