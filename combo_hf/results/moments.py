"""When each picture of a video is shown, and with which label map."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from av.video.frame import VideoFrame

from combo_hf.media_combo_source import MediaFile, TrackChoice
from combo_hf.media_combo_tracks import PictureTrack, picture_track
from combo_hf.results.follow import SmallPicture, follow_small_pictures, small_picture
from combo_hf.results.painting import plane_values


STILL_SECONDS = 0.5  # a picture that is shown for longer is a still
HELD_BYTES = 1 << 27  # of decoded pictures that may wait for their maps: 42 of 1080p
TimedMap = tuple[float, np.ndarray]  # time in s, label map (H, W)


class Moment(NamedTuple):
    """A picture, and when it is shown.

    Attributes:
        time: s from the first picture.
        frame: the picture as decoded.
        shown_for: s that it has been shown for; above 0 where a still picture comes again, since a map may change.
    """

    time: float
    frame: VideoFrame
    shown_for: float


def with_due_maps(
    track: PictureTrack, label_maps: Iterable[TimedMap], fps: float
) -> Iterator[tuple[Moment, np.ndarray | None]]:
    """Every moment with the map of its slot floor(time * fps), else the latest one before it; None before the first.

    Maps are read when a picture needs them.
    """
    maps, following = iter(label_maps), None
    due: tuple[int, np.ndarray | None] = (-1, None)  # slot, map
    for moment in _moments(track, fps):
        slot = int(moment.time * fps + 1e-9)
        while due[0] < slot:
            following = next(maps, None) if following is None else following
            if following is None or int(following[0] * fps) > slot:
                break
            due, following = (int(following[0] * fps), np.array(following[1])), None
        yield moment, due[1]


def with_followed_maps(
    media: MediaFile, choice: TrackChoice, track: PictureTrack, label_maps: Iterable[TimedMap], fps: float
) -> Iterator[tuple[Moment, np.ndarray]]:
    """Every moment with a map of its own, moved along with what is seen ([`follow_label_maps`]).

    The pictures up to the next map must be seen before the first of them can be painted. They are kept meanwhile; if
    they get too large, small grey ones are all that is kept from there on, and the video is decoded once more.
    """
    waiting: deque[Moment] = deque()
    held, is_full = 0, False

    def look() -> Iterator[SmallPicture]:
        nonlocal held, is_full
        for moment in _moments(track, fps):
            held += _size(moment.frame)
            is_full = is_full or held > HELD_BYTES
            if not is_full:
                waiting.append(moment)
            luma = plane_values(track.planes(moment.frame, "yuv420p").planes[0])
            yield small_picture(moment.time, track.orientation.apply(luma))

    size = track.size[::-1]
    with ExitStack() as stack:
        again: Iterator[Moment] | None = None
        for index, label_map in enumerate(follow_small_pictures(look(), label_maps)):
            if waiting:
                moment = waiting.popleft()
                held -= _size(moment.frame)
            else:
                if again is None:
                    second = picture_track(media, stack.enter_context(media.open()), choice)
                    again = itertools.islice(_moments(second, fps), index, None)
                moment = next(again)
            yield moment, label_map if label_map.shape == size else np.zeros(size, np.uint8)


def _size(frame: VideoFrame) -> int:
    """Bytes of a picture."""
    return sum(plane.buffer_size for plane in frame.planes)


def _moments(track: PictureTrack, fps: float) -> Iterator[Moment]:
    """All pictures; a still picture comes again where a map may change."""
    for now, frame, until in _with_ends(track):
        yield Moment(now, frame, 0.0)
        if until - now < STILL_SECONDS:
            continue
        for slot in range(int(now * fps) + 1, math.ceil(until * fps - 1e-6)):
            yield Moment(slot / fps, frame, slot / fps - now)


def _with_ends(track: PictureTrack) -> Iterator[tuple[float, VideoFrame, float]]:
    """Time, picture, and the time of the next picture; at the last one, the end."""
    held: tuple[float, VideoFrame] | None = None
    for now, frame in track:
        if held is not None:
            yield (*held, now)
        held = now, frame
    if held is not None:
        yield (*held, track.end)
