"""Label maps for every picture of a video, from the few that the network made: masks that stay on what moves.

The network sees one picture a second or a few; a mask that is painted over the whole second lags behind what moves.
Here dense optical flow (Kroeger et al. 2016, "Fast Optical Flow using Dense Inverse Search"; OpenCV's DIS)
carries each label map, a *key*, to the pictures around it:

- A picture between two keys is registered with both. Its flow to a key starts from the flow of the picture next to it
  on the key's side, so that large motions are found without adding up the errors of many small ones.
- Where both keys have a class, every pixel takes the label of the key whose picture, moved, resembles the picture more
  (difference of grey values, weighed by the distance in time): what is hidden in one key can be visible in the other.
- What sounds in a second is decided by the keys of that second alone. Classes that these do not have are not painted,
  whatever the key of the neighbouring second shows. Where a second has no key, the nearest key decides.
- A key behind a cut, or one whose moved picture does not resemble the picture at all, does not count. Where no key is
  left, the nearest one is painted as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


try:
    import cv2
except ImportError:  # only needed where videos are written
    cv2 = None


WIDTH = 320  # pixels, of the small grey pictures that are registered
MAX_PICTURES = 256  # remembered between two keys
WINDOW = 15  # pixels of a small picture over which differences of grey values are averaged
NOISE = 4.0  # difference of grey values that even equal pictures may have
LOST = 40.0  # mean difference of grey values above which a moved key is another scene
CUT = 0.5  # Bhattacharyya distance between the histograms of two neighbouring pictures above which a new scene begins
FINE = 2  # times the resolution of the small pictures at which outlines are drawn
MARGIN = 4  # pixels of a small picture around a coarse mask within which the exact one lies

Timed = tuple[float, np.ndarray]


def follow_label_maps(pictures: Iterable[Timed], keys: Iterable[Timed]) -> Iterator[np.ndarray]:
    """Move label maps along with the pictures of a video.

    Pictures are read up to the first one after the next key, and keys only when the pictures get there; between two
    keys at most 256 pictures are remembered, small and grey.

    Args:
        pictures: `(time in s, RGB picture)` of every picture, in order of time; `(H, W, 3)` uint8.
        keys: `(time in s, label map)`, in order of time; `(H, W)` integers from 0 (background) to 65535. A key belongs
            to the picture that is shown at its time.

    Yields:
        A label map `(H, W)` for each picture, of the dtype of the keys (uint8 where there are none).

    Raises:
        ImportError: OpenCV is not installed.
        ValueError: a picture or a label map of the wrong shape, type or range, or times that go back.

    Examples:
        >>> pictures = [(k / 4, np.zeros((90, 160, 3), np.uint8)) for k in range(8)]
        >>> keys = [(0.5, np.ones((90, 160), np.uint8)), (1.5, np.zeros((90, 160), np.uint8))]
        >>> [int(label_map.max()) for label_map in follow_label_maps(pictures, keys)]
        [1, 1, 1, 1, 0, 0, 0, 0]
    """
    yield from follow_small_pictures(_read_pictures(pictures), keys)


def follow_small_pictures(pictures: Iterable[SmallPicture], keys: Iterable[Timed]) -> Iterator[np.ndarray]:
    """[`follow_label_maps`] for pictures that were made small already, with [`small_picture`]."""
    if cv2 is None:
        raise ImportError("following masks needs OpenCV: pip install opencv-python-headless")
    waiting = _Keys(keys)
    earlier: _Tracker | None = None
    stretch: list[SmallPicture] = []  # the pictures since the earlier key's
    for picture in pictures:
        while stretch and (later := waiting.take(picture.time, stretch[-1])):
            yield from _between(stretch, earlier, later)
            earlier, stretch = _Tracker(later), []
        if not stretch and earlier and (again := waiting.take(picture.time, earlier.key.picture)):
            earlier = _Tracker(again)  # a second key of the same picture
        stretch.append(picture)
        if len(stretch) > MAX_PICTURES:  # the next key is too far away to help the first half of them
            half, stretch = stretch[: MAX_PICTURES // 2], stretch[MAX_PICTURES // 2 :]
            yield from _between(half, earlier, None if earlier else waiting.look(stretch[0]))
    later = waiting.take(math.inf, stretch[-1]) if stretch else None
    yield from _between(stretch, earlier, later)


@dataclass
class SmallPicture:
    """A picture, small and grey `(h, w)`, and the size `(H, W)` it had."""

    time: float
    grey: np.ndarray
    size: tuple[int, int]


@dataclass
class _Key:
    """A label map `(H, W)` and the picture it belongs to."""

    time: float
    label_map: np.ndarray
    picture: SmallPicture

    @cached_property
    def labels(self) -> np.ndarray:
        """The label map in a type that OpenCV can move."""
        return self.label_map.astype(np.uint8 if self.label_map.max() < 256 else np.uint16)

    @cached_property
    def small(self) -> np.ndarray:
        """The label map at the size of the small picture, `(h, w)`."""
        return cv2.resize(self.labels, self.picture.grey.shape[::-1], interpolation=cv2.INTER_NEAREST)

    @cached_property
    def classes(self) -> frozenset[int]:
        """The classes in it, without the background."""
        flat = self.labels.ravel()
        begins = np.flatnonzero(flat[1:] != flat[:-1]) + 1  # of runs of one class; far fewer than pixels
        return frozenset({int(flat[0]), *flat[begins].tolist()}) - {0}


@dataclass
class _Registration:
    """Where the pixels of a picture lie in the picture of a key.

    Attributes:
        key: the key.
        flow: `(h, w, 2)`, x and y, in pixels of the small picture.
        difference: `(h, w)`, in grey values, between the picture and the moved key, averaged over a neighbourhood.
    """

    key: _Key
    flow: np.ndarray
    difference: np.ndarray


class _Tracker:
    """Registers pictures with a key, one after the other, away from it in either direction of time."""

    def __init__(self, key: _Key) -> None:
        self.key, self._neighbour, self._lost = key, key.picture.grey, False
        self._flow: np.ndarray | None = None
        self._search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._search.setVariationalRefinementIterations(0)  # smoother flow is worse at outlines, and slower
        self._search.setPatchStride(5)  # of 8 pixels; 4 costs half as much again for half a point of overlap

    def register(self, picture: SmallPicture) -> _Registration | None:
        """The next picture; None from where the key cannot be followed any more."""
        grey, target = picture.grey, self.key.picture.grey
        self._lost = self._lost or grey.shape != target.shape or _is_cut(self._neighbour, grey)
        if self._lost:
            return None
        flow = self._search.calc(grey, target, None if self._flow is None else self._flow.copy())
        moved = cv2.remap(target, _grid(*grey.shape) + flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        difference = cv2.boxFilter(cv2.absdiff(moved, grey), cv2.CV_32F, (WINDOW, WINDOW))
        self._flow, self._neighbour, self._lost = flow, grey, float(difference.mean()) > LOST
        return None if self._lost else _Registration(self.key, flow, difference)


def _is_cut(one: np.ndarray, other: np.ndarray) -> bool:
    histograms = [cv2.calcHist([grey], [0], None, [32], [0, 256]) for grey in (one, other)]
    return cv2.compareHist(*histograms, cv2.HISTCMP_BHATTACHARYYA) > CUT


@functools.lru_cache(maxsize=2)
def _grid(height: int, width: int) -> np.ndarray:
    """`(height, width, 2)`: x and y of every pixel."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)


def _between(stretch: Sequence[SmallPicture], earlier: _Tracker | None, later: _Key | None) -> Iterator[np.ndarray]:
    """The label maps of the pictures between two keys, that of the later key included."""
    keys = [key for key in (earlier.key if earlier else None, later) if key is not None]
    heard = [_heard(picture.time, keys) for picture in stretch]
    wanted: frozenset[int] = frozenset().union(*heard)
    following = bool(later and later.classes & wanted)
    after: list[_Registration | None] = []
    if later and following:
        tracker = _Tracker(later)
        after = [tracker.register(picture) for picture in reversed(stretch) if picture is not later.picture][::-1]
    after += [None] * (len(stretch) - len(after))
    for picture, classes, from_later in zip(stretch, heard, after, strict=True):
        from_earlier = earlier.register(picture) if earlier and earlier.key.classes & wanted else None
        if not keys:
            yield np.zeros(picture.size, np.uint8)
        elif later is not None and picture is later.picture:
            yield later.label_map
        else:
            sources = [source for source in (from_earlier, from_later) if source is not None]
            yield _paint(picture, keys, sources, classes).astype(keys[0].label_map.dtype, copy=False)


def _heard(time: float, keys: Sequence[_Key]) -> frozenset[int]:
    """The classes that may be painted at a time: those of its second's keys, else those of the nearest key."""
    own = [key.classes for key in keys if _second(key.time) == _second(time)]
    if keys and not own:
        own = [_nearest(time, keys).classes]
    return frozenset().union(*own)


def _second(time: float) -> int:
    return math.floor(time + 1e-6)


def _nearest(time: float, keys: Sequence[_Key]) -> _Key:
    return min(keys, key=lambda key: abs(key.picture.time - time))


def _paint(
    picture: SmallPicture, keys: Sequence[_Key], sources: Sequence[_Registration], classes: frozenset[int]
) -> np.ndarray:
    """The label map `(H, W)` of one picture; only the given classes are in it."""
    if not classes:
        return np.zeros(picture.size, np.uint8)
    if not sources:
        return _only(_nearest(picture.time, keys).labels, classes)
    maps = [_moved(source, picture.size, classes) for source in sources]
    if len(maps) == 1 or sources[0].key.classes.isdisjoint(classes):
        return maps[-1]
    common = sources[0].key.classes & sources[1].key.classes
    merged = _merged(picture, sources, maps)
    for labels, source in zip(maps, sources, strict=True):
        alone = (source.key.classes & classes) - common  # the other key cannot say where these are not
        if alone:
            merged = np.where((_only(labels, alone) > 0) & (_only(merged, common) == 0), labels, merged)
    return merged


def _moved(source: _Registration, size: tuple[int, int], classes: frozenset[int]) -> np.ndarray:
    """The key's label map `(H, W)`, moved; only the part around its coarse outline is worked out finely."""
    flow, labels = source.flow, source.key.labels
    h, w = flow.shape[:2]
    position = _grid(h, w) + flow
    coarse = cv2.remap(source.key.small, position, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    out = np.zeros(size, labels.dtype)
    left, top, width, height = cv2.boundingRect((coarse > 0).astype(np.uint8))
    if not width:
        return out
    x0, x1 = max(0, left - MARGIN), min(w, left + width + MARGIN)
    y0, y1 = max(0, top - MARGIN), min(h, top + height + MARGIN)
    down, right = size[0] / h, size[1] / w  # pixels of the picture in one of the small picture
    rows, columns = slice(round(y0 * down), round(y1 * down)), slice(round(x0 * right), round(x1 * right))
    full = (columns.stop - columns.start, rows.stop - rows.start)
    # at most twice as fine as the small picture: outlines of a flow are no finer
    shape = (min(full[0], FINE * (x1 - x0)), min(full[1], FINE * (y1 - y0)))
    part_flow = flow[y0:y1, x0:x1]
    x = cv2.resize(part_flow[..., 0] * right, shape)
    x += _centres(columns, shape[0])
    y = cv2.resize(part_flow[..., 1] * down, shape)
    y += _centres(rows, shape[1])[:, None]
    part = cv2.remap(labels, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    part = cv2.resize(part, full, interpolation=cv2.INTER_NEAREST)
    out[rows, columns] = part if source.key.classes <= classes else _only(part, classes)
    return out


def _centres(pixels: slice, count: int) -> np.ndarray:
    """The centres of so many equal parts of a row of pixels, float32."""
    size = (pixels.stop - pixels.start) / count
    return (pixels.start + (np.arange(count) + 0.5) * size - 0.5).astype(np.float32)


def _merged(picture: SmallPicture, sources: Sequence[_Registration], maps: Sequence[np.ndarray]) -> np.ndarray:
    """Of two label maps, at every pixel that of the key which resembles the picture more and is nearer in time."""
    costs = [(source.difference + NOISE) * abs(source.key.picture.time - picture.time) for source in sources]
    second = (costs[1] < costs[0]).astype(np.uint8)
    second = cv2.resize(second, maps[0].shape[::-1], interpolation=cv2.INTER_NEAREST)
    dtype = np.result_type(*maps)
    return cv2.copyTo(maps[1].astype(dtype, copy=False), second, maps[0].astype(dtype))


def _only(labels: np.ndarray, classes: frozenset[int]) -> np.ndarray:
    """The labels with all classes but the given ones set to 0."""
    table = np.zeros(np.iinfo(labels.dtype).max + 1, labels.dtype)
    table[sorted(classes)] = sorted(classes)
    return table[labels]


class _Keys:
    """The keys, checked, read one at a time and not before they are due."""

    def __init__(self, keys: Iterable[Timed]) -> None:
        self._keys, self._last, self._count = iter(keys), -math.inf, -1
        self._next: Timed | None = None

    def take(self, before: float, picture: SmallPicture) -> _Key | None:
        """The last key whose time lies before the given one, as a key of this picture; None if there is none."""
        taken = None
        while (entry := self._peek()) is not None and entry[0] < before:
            taken, self._next = entry, None
        return None if taken is None else self._key(taken, picture)

    def look(self, picture: SmallPicture) -> _Key | None:
        """The next key without taking it, as if it belonged to this picture."""
        entry = self._peek()
        return None if entry is None else self._key(entry, picture)

    def _peek(self) -> Timed | None:
        if self._next is None:
            self._next = next(self._keys, None)
            if self._next is not None:
                self._count += 1
                self._last = _check_time(self._next[0], self._last, f"keys[{self._count}]")
        return self._next

    def _key(self, entry: Timed, picture: SmallPicture) -> _Key:
        labels = np.asarray(entry[1])
        if labels.shape != picture.size or labels.dtype.kind not in "iu":
            raise ValueError(
                f"keys[{self._count}]: wanted a label map of integers of shape {picture.size} like the pictures, got "
                f"{labels.dtype} of shape {labels.shape}."
            )
        if labels.min() < 0 or labels.max() > np.iinfo(np.uint16).max:
            raise ValueError(
                f"keys[{self._count}]: wanted labels from 0 to 65535, got {labels.min()} to {labels.max()}."
            )
        return _Key(entry[0], labels, picture)


def _read_pictures(pictures: Iterable[Timed]) -> Iterator[SmallPicture]:
    last, size = -math.inf, None
    for index, (time, picture) in enumerate(pictures):
        picture = np.asarray(picture)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
            raise ValueError(
                f"pictures[{index}]: wanted an RGB picture (H, W, 3) of uint8, got {picture.dtype} of shape "
                f"{picture.shape}."
            )
        if size not in (None, picture.shape[:2]):
            raise ValueError(
                f"pictures[{index}]: wanted the size {size} of the first picture, got {picture.shape[:2]}."
            )
        last, size = _check_time(time, last, f"pictures[{index}]"), picture.shape[:2]
        yield small_picture(last, picture)


def small_picture(time: float, picture: np.ndarray) -> SmallPicture:
    """A picture `(H, W, 3)` in RGB or `(H, W)` in grey, uint8, as it is compared with others."""
    size = picture.shape[:2]
    width = min(WIDTH, size[1])
    height = max(16, round(size[0] * width / size[1]))  # the search needs a few pixels
    small = cv2.resize(picture, (max(16, width), height), interpolation=cv2.INTER_AREA)
    return SmallPicture(time, small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), size)


def _check_time(time: Any, last: float, name: str) -> float:
    if not isinstance(time, (int, float, np.number)) or not last <= time < math.inf:
        raise ValueError(f"{name}: wanted a time in seconds, not before {last}, got {time!r}.")
    return float(time)
