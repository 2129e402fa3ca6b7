"""Label maps mixed into the pictures of a video, in YUV: what a map leaves alone goes to the encoder as it came.

H.264 with 4:2:0 colour needs even sizes: an odd width or height is padded by one pixel, a copy of the edge, on the
right or at the bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Protocol

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane

from combo_hf.media_combo_tracks import PictureTrack
from combo_hf.results.lettering import write_labels


CONTOUR_ALPHA = 0.35  # added to alpha on the contour of a segment
# Shares of R, G, B in the luma, by number of the matrix in H.273; all others are those of BT.601.
LUMA = {
    1: (0.2126, 0.7152, 0.0722),  # BT.709
    4: (0.30, 0.59, 0.11),  # FCC
    7: (0.212, 0.701, 0.087),  # SMPTE 240M
    9: (0.2627, 0.6780, 0.0593),  # BT.2020
}
LUMA_BT601 = (0.299, 0.587, 0.114)
# Box, keep and add of a part of a plane: value * keep + add, / 256.
Patch = tuple[tuple[slice, slice], np.ndarray, np.ndarray]


class MapSink(Protocol):
    """What is made of the label map of every picture beside the overlay; its calls come in the order below."""

    def open(self, track: PictureTrack, zero: Fraction) -> None:
        """The pictures' track, and what becomes 0 on its clock, in s."""

    def write(self, frame: VideoFrame, label_map: np.ndarray, ticks: int) -> None:
        """A picture with its map (H, W), shown from `ticks` of the track on."""

    def finish(self, ticks: int) -> None:
        """The end of the last picture."""


class Painter:
    """Mixes label maps into the pictures of a video.

    What a map does to the planes is worked out once per map, as (Y, Cb, Cr) * keep + add, / 256.

    Args:
        colors: uint8 RGB `(K, 3)`.
        alpha: share of the colour, 0 to 1.
        track: where the pictures come from.
        labels: name of each class, written on its object and in a legend; none: no writing.
    """

    def __init__(
        self,
        colors: np.ndarray,
        alpha: float,
        track: PictureTrack,
        labels: Mapping[int, str] | None = None,
    ) -> None:
        self._track = track
        self._colors = colors
        self._labels = {} if labels is None else labels
        self._yuv = to_yuv(colors, track.colour.matrix, track.colour.full)  # (K, 3)
        # of class k inside (2 k) and on its contour (2 k + 1): share of the picture (2 K,), what a plane adds (3, 2 K)
        share = np.array([alpha, min(1.0, alpha + CONTOUR_ALPHA)] * len(colors)) * 256
        share = np.rint(share).astype(np.uint16)
        share[:2] = 0
        self._keep = 256 - share
        self._add = (share * self._yuv.repeat(2, axis=0).T + 128 * (share > 0)).astype(np.uint16)
        self._weights: list[list[Patch]] = [[], [], []]  # for each of the planes Y, Cb, Cr
        self._map: np.ndarray | None = None
        self._room = np.empty(0, np.uint16)  # for products; new memory for each picture costs more than to multiply

    def mix(self, frame: VideoFrame) -> VideoFrame:
        """A picture with the map that is due, as a new, even, yuv420p frame."""
        picture = even_picture(self._track, frame)
        for plane, patches in zip(picture.planes, self._weights, strict=True):
            for box, keep, add in patches:
                part = plane_values(plane)[box]
                mixed = np.multiply(part, keep, out=self._room[: part.size].reshape(part.shape))
                mixed += add
                np.right_shift(mixed, 8, out=part, casting="unsafe")
        return picture

    @property
    def label_map(self) -> np.ndarray:
        """The map (H, W) that is due; empty before the first one."""
        return np.zeros(self._track.size[::-1], np.uint8) if self._map is None else self._map

    def show(self, label_map: np.ndarray | None) -> bool:
        """Take the map that is due from now on (None: no map yet); whether it is another one than before.

        Raises:
            ValueError: a map of another size, type or class than can be painted.
        """
        before = self._map
        if label_map is before or label_map is None:
            return False
        _check_map(label_map, self._track.size, len(self._colors))
        self._map = label_map
        if before is not None and np.array_equal(before, label_map):
            return False
        self._weights = self._prepare(label_map)
        return True

    def _prepare(self, label_map: np.ndarray) -> list[list[Patch]]:
        """What the map does to each of the planes; nothing where it is empty."""
        if not label_map.any():
            return [[], [], []]
        label_map = even(label_map)
        box = _even_box(label_map)
        inside = label_map[box]
        index = inside.astype(np.uint16 if len(self._colors) > 127 else np.uint8)  # of `_keep` and `_add`
        index = 2 * index + _contour(index)
        planes = _halved(box, index)
        keeps = [_looked_up(self._keep, spots) for _, spots in planes[:2]]  # both planes of colour have the same
        weights = [
            [(part, keep, _looked_up(add, spots))]
            for add, keep, (part, spots) in zip(self._add, (*keeps, keeps[1]), planes, strict=True)
        ]
        self._room_for(index.size)
        if self._labels:
            for place, pixels, opacity in write_labels(label_map, self._labels, self._colors):
                colours = to_yuv(pixels.reshape(-1, 3), self._track.colour.matrix, self._track.colour.full)
                written = self._patches(place, opacity, colours.reshape(pixels.shape))
                weights = [before + after for before, after in zip(weights, written, strict=True)]
        return weights

    def _patches(self, box: tuple[slice, slice], share: np.ndarray, colours: np.ndarray) -> list[list[Patch]]:
        """A part of a picture to be mixed: share (H, W) of 256, colours (H, W, 3) in Y, Cb, Cr; box: even."""
        self._room_for(share.size)
        patches: list[list[Patch]] = []
        for plane, (place, part) in enumerate(_halved(box, share)):
            mixed = colours[:: 2 if plane else 1, :: 2 if plane else 1, plane]
            patches.append([(place, 256 - part, part * mixed + np.uint16(128) * (part > 0))])
        return patches

    def _room_for(self, pixels: int) -> None:
        if self._room.size < pixels:
            self._room = np.empty(pixels, np.uint16)


def _check_map(label_map: np.ndarray, size: tuple[int, int], num_colors: int) -> None:
    width, height = size
    if label_map.shape != (height, width) or label_map.dtype.kind not in "iu":
        wanted = f"a label map must be ({height}, {width}) integers, as the video is shown"
        raise ValueError(f"{wanted}, got {label_map.shape} {label_map.dtype}.")
    lowest, highest = label_map.min(), label_map.max()
    if lowest < 0 or highest >= num_colors:
        raise ValueError(f"a label map holds class {lowest} to {highest}, but there are {num_colors} colours.")


def to_yuv(colors: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """RGB `(K, 3)` to Y, Cb, Cr, uint16 `(K, 3)`. matrix: number of H.273."""
    red, green, blue = LUMA.get(matrix, LUMA_BT601)
    rgb = colors.astype(np.float64) / 255
    luma = rgb @ np.array([red, green, blue])
    half = (rgb[:, 2] - luma) / (1 - blue) / 2, (rgb[:, 0] - luma) / (1 - red) / 2  # -0.5 .. 0.5
    floor, light, tint = (0, 255, 255) if full else (16, 219, 224)
    yuv = np.stack([floor + light * luma, 128 + tint * half[0], 128 + tint * half[1]], axis=1)
    return np.rint(yuv).clip(0, 255).astype(np.uint16)


def _looked_up(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Values of a uint16 table `(N,)` at an index `(H, W)`."""
    if index.dtype != np.uint8:
        return table.take(index)
    return cv2.LUT(index, np.resize(table, 256))  # three times as fast


def _halved(box: tuple[slice, slice], values: np.ndarray) -> list[tuple[tuple[slice, slice], np.ndarray]]:
    """Place and values (H, W) of an even box in the planes Y, Cb, Cr: those of colour have half the size."""
    rows, columns = (slice(side.start // 2, side.stop // 2) for side in box)
    return [(box, values), *[((rows, columns), values[::2, ::2])] * 2]


def _contour(label_map: np.ndarray) -> np.ndarray:
    """Pixels of a segment that touch another class, bool `(H, W)`; two pixels wide on 720 lines and more."""
    reach = max(1, label_map.shape[0] // 360)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (2 * reach + 1, 2 * reach + 1))
    return (cv2.dilate(label_map, cross) != cv2.erode(label_map, cross)) & (label_map > 0)


def _even_box(label_map: np.ndarray) -> tuple[slice, slice]:
    """The smallest box around everything that is not background, on even coordinates."""
    rows, columns = np.flatnonzero(label_map.any(axis=1)), np.flatnonzero(label_map.any(axis=0))
    return _even_slice(rows), _even_slice(columns)


def _even_slice(indices: np.ndarray) -> slice:
    return slice(int(indices[0]) // 2 * 2, int(indices[-1]) // 2 * 2 + 2)


def even_picture(track: PictureTrack, frame: VideoFrame) -> VideoFrame:
    """The picture as shown, a new yuv420p frame with even H and W; stays in YUV."""
    width, height = track.size
    if width % 2 or height % 2:
        planes = track.planes(frame, "yuv444p").to_ndarray()  # (3, H, W) as coded
        upright = even(track.orientation.apply(planes.transpose(1, 2, 0)))  # (H, W, 3) as shown
        padded = np.ascontiguousarray(upright.transpose(2, 0, 1))
        return av.VideoFrame.from_ndarray(padded, format="yuv444p").reformat(format="yuv420p")
    given = track.planes(frame, "yuv420p")
    picture = av.VideoFrame(width, height, "yuv420p")  # the decoder may still need its own
    for old, new in zip(given.planes, picture.planes, strict=True):
        np.copyto(plane_values(new), track.orientation.apply(plane_values(old)))
    return picture


def even(picture: np.ndarray) -> np.ndarray:
    """(H, W, ...) with its last row or column once more where H or W is odd."""
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.pad(picture, ((0, height % 2), (0, width % 2)) + ((0, 0),) * (picture.ndim - 2), mode="edge")
    return np.ascontiguousarray(picture)


def plane_values(plane: VideoPlane) -> np.ndarray:
    """The values of a plane of 8 bits, (height, width); writing changes the plane."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
