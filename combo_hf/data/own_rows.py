"""A video with masks -> data set rows: clips of a few seconds with one frame a second.

The frame of a second is the annotated one where there is a mask, else the one at 15/16 of the second.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combo_hf.configuration_combo import IGNORE_INDEX
from combo_hf.data.own_masks import Annotation, OwnVideo, read_mask
from combo_hf.data.row_format import SAMPLING_RATE, UNLABELLED, picture_entry, png_bytes, sound_entry
from combo_hf.data.subsets import OWN
from combo_hf.media_combo import FRAME_OFFSET, MediaInfo, load_audio, probe_media
from combo_hf.media_combo_source import open_media
from combo_hf.media_combo_tracks import picture_track


JPEG_QUALITY = 95
SHAPE_TOLERANCE = 0.02  # by which the ratio of a mask's sides may differ from that of its video
MAX_SECONDS = 6 * 3600.0


@dataclass(frozen=True)
class OwnSettings:
    """How videos become rows.

    Attributes:
        clip_seconds: T of a clip; the last one of a video may be shorter.
        max_side: longer pictures are reduced to so many pixels, and their masks with them.
    """

    clip_seconds: int = 5
    max_side: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.clip_seconds <= 60 or self.max_side < 32:
            raise ValueError(
                f"wanted clip_seconds of 1 to 60 and max_side of 32 or more, got {self.clip_seconds}, {self.max_side}."
            )


@dataclass
class _Second:
    """A second of a video: the mask that counts, if there is one."""

    time: float
    annotation: Annotation | None = None


def rows_of_video(video: OwnVideo, classes: Sequence[str], settings: OwnSettings) -> Iterator[dict[str, Any]]:
    """The clips of a video as rows, those without a mask left out.

    Raises:
        ValueError: the video or one of its masks cannot be read, or does not fit; names the mask.
    """
    info = probe_media(video.path)
    seconds = _seconds(video, info)
    sound, _ = load_audio(video.path, MAX_SECONDS) if info.has_audio else (np.zeros(0, np.float32), SAMPLING_RATE)
    length, starts = settings.clip_seconds, range(0, len(seconds), settings.clip_seconds)
    kept = [start for start in starts if any(second.annotation for second in seconds[start : start + length])]
    times = [second.time for start in kept for second in seconds[start : start + length]]
    pictures = _pictures(video.path, times)
    for start in kept:
        part = seconds[start : start + length]
        frames = [_reduced(next(pictures), settings.max_side) for _ in part]
        masks = [_mask(second, frame.size, len(classes)) for second, frame in zip(part, frames, strict=True)]
        present = sorted({int(k) for mask in masks for k in np.unique(mask)} - {0, IGNORE_INDEX})
        waveform = sound[start * SAMPLING_RATE : (start + len(part)) * SAMPLING_RATE]
        waveform = np.pad(waveform, (0, len(part) * SAMPLING_RATE - len(waveform)))
        name = f"{video.name}_{start:05d}"
        yield {
            "video_id": name,
            "subset": OWN,
            "split": video.split,
            "category": ",".join(classes[k] for k in present),
            "frames": [picture_entry(_jpeg(frame)) for frame in frames],
            "masks": [picture_entry(png_bytes(mask)) for mask in masks],
            "label_frames": [second.annotation is not None for second in part],
            "maskiges": None,
            "audio": sound_entry(waveform, name),
            "classes": present,
        }


def _seconds(video: OwnVideo, info: MediaInfo) -> list[_Second]:
    """Every second of a video with its mask, if there is one; of several, the one nearest to 15/16 s counts."""
    best: dict[int, tuple[float, _Second]] = {}
    for annotation in video.annotations:
        time = annotation.seconds(info.fps)
        if time > info.duration:
            raise ValueError(f"{annotation.where} is at {time:g} s; the video ends at {info.duration:.2f} s.")
        distance = abs(time - int(time) - FRAME_OFFSET)
        if int(time) not in best or distance < best[int(time)][0]:
            best[int(time)] = (distance, _Second(time, annotation))
    count = max(1, info.seconds, *(k + 1 for k in best))  # a mask in a last second that is not whole counts, too
    return [best[k][1] if k in best else _Second(k + FRAME_OFFSET) for k in range(count)]


def check_shape(ids: np.ndarray, size: tuple[int, int]) -> None:
    """Refuse a mask (H, W) of another shape than its video's, `size` (height, width); its size may be another.

    Raises:
        ValueError: says both.
    """
    ratio = (ids.shape[0] * size[1]) / (ids.shape[1] * size[0])
    if abs(ratio - 1) > SHAPE_TOLERANCE:
        raise ValueError(f"is {ids.shape[1]} x {ids.shape[0]}; its video is {size[1]} x {size[0]}, of another shape.")


def _pictures(path: Path, times: Sequence[float]) -> Iterator[Image.Image]:
    """The picture that is shown at each of growing times; beyond the end, the last one."""
    with open_media(str(path)) as media, media.open() as container:
        track, waiting, shown = picture_track(media, container), list(reversed(times)), None
        for now, frame in track:
            while waiting and shown is not None and now > waiting[-1] + 1e-4:
                waiting.pop()
                yield track.image(shown)
            shown = frame
            if not waiting:
                return
        while waiting and shown is not None:
            waiting.pop()
            yield track.image(shown)


def _reduced(image: Image.Image, max_side: int) -> Image.Image:
    factor = max_side / max(image.size)
    if factor >= 1:
        return image
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def _mask(second: _Second, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """Class indices of a second in the size (width, height) of its frame; 255 everywhere where it is not annotated."""
    if second.annotation is None:
        return np.full(size[::-1], UNLABELLED, np.uint8)
    try:
        ids = read_mask(second.annotation.mask, num_classes)
        if ids is None:
            return np.zeros(size[::-1], np.uint8)
        check_shape(ids, size[::-1])
    except ValueError as error:
        raise ValueError(f"{second.annotation.where} {error}") from error
    return np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
