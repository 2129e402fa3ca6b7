"""What the pipeline takes, cut into windows: films by path, bytes or URL, clips, and plain arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .feature_extraction_combo import to_mono
from .image_processing_combo import to_rgb
from .media_combo import FRAME_OFFSET, SAMPLING_RATE, iter_clips, probe_media


WANTED = (
    "a path, bytes, an http(s) URL, a Clip, or {'frames': [...], 'audio': array, 'sampling_rate': 16000} "
    "with optional 'maskiges' or 'masks'"
)


@dataclass
class Window:
    """Some seconds of one input. `frames` in time order, `times` in seconds from the start of the input."""

    frames: list[Image.Image]
    waveform: np.ndarray
    sampling_rate: int
    times: np.ndarray
    fps: int
    has_audio: bool
    index: int
    is_last: bool
    total: int | None = None
    maskiges: Sequence[Any] | None = None
    masks: Sequence[Any] | None = None
    warnings: list[str] = field(default_factory=list)


def iter_windows(source: Any, seconds: int, fps: int, count: bool) -> Iterator[Window]:
    """Windows of one input.

    Args:
        source: path, bytes, URL, dict, or clip (anything with `frames`, `waveform`, `sampling_rate`, `times`,
            `has_audio`).
        seconds: length of a window; the last one is shorter.
        fps: frames per second.
        count: fill `total`, which for a file costs opening it once more.

    Raises:
        ValueError: unusable media or arrays.
        TypeError: another kind of input.
    """
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        total = None
        if count and not (isinstance(source, str) and "://" in source):  # a URL would be downloaded once more
            total = max(1, -(-probe_media(source).seconds // seconds))
        for clip in iter_clips(source, frames_per_clip=seconds, fps=fps):
            yield Window(clip.frames, clip.waveform, clip.sampling_rate, clip.times, fps, clip.has_audio,
                         clip.index, clip.is_last, total, warnings=clip.warnings)  # fmt: skip
    elif isinstance(source, Mapping):
        yield from _slice(_from_mapping(source, fps), seconds)
    elif hasattr(source, "frames") and hasattr(source, "waveform"):
        spacing = float(source.times[1] - source.times[0]) if len(source.times) > 1 else 1.0 / fps
        own = max(1, round(1 / spacing))  # a clip was read at some rate; that rate counts, not the option
        yield from _slice(
            Window(list(source.frames), source.waveform, source.sampling_rate, source.times, own, source.has_audio, 0,
                   True, warnings=getattr(source, "warnings", [])), seconds)  # fmt: skip
    else:
        raise TypeError(f"got {type(source).__name__}; pass {WANTED}, or a list of these.")


def _from_mapping(source: Mapping[str, Any], fps: int) -> Window:
    """Check `{"frames", "audio", "sampling_rate", "maskiges", "masks"}` and bring it into one form."""
    unknown = set(source) - {"frames", "audio", "sampling_rate", "maskiges", "masks"}
    if unknown or source.get("frames") is None:
        raise ValueError(f"got a dict with {sorted(map(str, source))}; pass {WANTED}.")
    frames = [to_rgb(frame, f"frames[{index}]") for index, frame in enumerate(source["frames"])]
    if not frames:
        raise ValueError("'frames' is empty; at least one image is needed.")
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        raise ValueError(f"all frames of an input must have one size, got {sizes}; resize them.")
    for name in ("maskiges", "masks"):
        if source.get(name) is not None and len(source[name]) != len(frames):
            raise ValueError(f"{name!r} has {len(source[name])} entries for {len(frames)} frames; pass one per frame.")
    rate = source.get("sampling_rate")
    has_audio = source.get("audio") is not None
    if has_audio and rate is None:
        raise ValueError("'audio' without 'sampling_rate': say how many samples per second it has.")
    waveform = to_mono(source["audio"]).numpy().astype(np.float32) if has_audio else np.zeros(1, dtype=np.float32)
    rate = int(rate) if has_audio else SAMPLING_RATE
    times = (np.arange(len(frames)) + FRAME_OFFSET) / fps
    return Window(frames, waveform, rate, times, fps, has_audio, 0, True, None,
                  source.get("maskiges"), source.get("masks"))  # fmt: skip


def _slice(whole: Window, seconds: int) -> Iterator[Window]:
    """Cut what is in memory into windows; missing sound is silence."""
    step = seconds * whole.fps
    if not whole.frames:
        raise ValueError("the clip has no frames.")
    total = -(-len(whole.frames) // step)
    for index in range(total):
        part = slice(index * step, (index + 1) * step)
        frames = whole.frames[part]
        length = -(-len(frames) // whole.fps) * whole.sampling_rate
        start = index * seconds * whole.sampling_rate
        waveform = np.asarray(whole.waveform)[start : start + length]
        yield Window(
            frames=frames,
            waveform=np.pad(waveform, (0, length - len(waveform))),
            sampling_rate=whole.sampling_rate,
            times=whole.times[part],
            fps=whole.fps,
            has_audio=whole.has_audio,
            index=index,
            is_last=index == total - 1,
            total=total,
            maskiges=None if whole.maskiges is None else whole.maskiges[part],
            masks=None if whole.masks is None else whole.masks[part],
            warnings=whole.warnings,
        )
