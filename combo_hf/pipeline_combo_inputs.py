"""What the pipeline takes, cut into windows: videos by path, bytes or URL, open files, clips, and plain arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from .feature_extraction_combo import to_mono
from .image_processing_combo import to_rgb
from .media_combo import SAMPLING_RATE, Clip, iter_clips, load_audio, probe_media
from .media_combo_shown import AUTO, FRAME_OFFSET, seconds_between
from .processing_combo import ComboProcessor


WANTED = (
    "a path, bytes, a file opened as 'rb', an http(s) URL, a Clip, or {'frames': [...], 'audio': array, "
    "'sampling_rate': 16000} with optional 'maskiges' or 'masks'"
)
KEYS = ("frames", "audio", "sampling_rate", "maskiges", "masks")
PEAKS_PER_SECOND = 200  # of a sound that is drawn: an hour takes 6 MB, not 230
PREVIEW = (160, 240)  # largest width and height of the small pictures that go with a result, in pixels
TENSORS = ("pixel_values", "maskige_values", "input_features", "num_frames")


@dataclass
class Window(Clip):
    """Some seconds of one input: a [`Clip`], and what goes with it.

    Attributes:
        fps: frames per second, a whole number, 1/n, or `"auto"`.
        total (`int`, *optional*): windows of the whole input; `None` where unknown.
        first (`int`): second of the window in which its first frame lies.
        maskiges, masks (*optional*): given with the frames, one entry for each.
    """

    fps: float | str = 1
    total: int | None = None
    first: int = 0
    maskiges: Sequence[Any] | None = None
    masks: Sequence[Any] | None = None

    @property
    def seconds(self) -> np.ndarray:
        """The second of the window in which each frame lies, and whose sound it hears, (T,)."""
        if isinstance(self.fps, str):
            return np.floor(np.asarray(self.times) - self.start + 1e-6).astype(int)
        return self.first + (np.arange(len(self.frames)) / self.fps + 1e-6).astype(int)

    @property
    def is_between(self) -> np.ndarray:
        """At `"auto"`: which frames come before the last one of their second; (T,) bool."""
        seconds = self.seconds
        return np.append(seconds[1:] == seconds[:-1], False) & (self.fps == AUTO)

    def phases(self) -> list[np.ndarray]:
        """Frames by place within their second: at n frames per second n clips of one frame per second each. At
        `"auto"` the first clip has the last frame of every second, the others what there is before it; at less than
        one frame per second each is a clip of its own."""
        seconds = self.seconds
        if seconds_between(self.fps) > 1:
            return [np.array([frame]) for frame in range(len(seconds))]
        places = np.arange(len(seconds)) - np.searchsorted(seconds, seconds)
        if self.fps == AUTO:
            places = np.searchsorted(seconds, seconds, "right") - 1 - np.arange(len(seconds))
        return [np.flatnonzero(places == place) for place in range(places.max() + 1)]

    def packed_rows(self) -> list[int]:
        """For every frame, in time order, its row of the tensors, in which one phase is packed after the other."""
        return np.argsort(np.concatenate(self.phases()), kind="stable").tolist()

    def result(self, frames: list[dict[str, Any]], return_maps: bool) -> dict[str, Any]:
        """What was found in the frames, in time order, with the facts of the window."""
        between = self.is_between
        return {
            "frames": [frame for frame, is_between in zip(frames, between, strict=True) if not is_between],
            "frames_between": [frame for frame, is_between in zip(frames, between, strict=True) if is_between],
            "sampling_rate": self.sampling_rate,
            "size": self.frames[0].size,
            "fps": self.fps,
            "has_audio": self.has_audio,
            "index": self.index,
            "is_last": self.is_last,
            "total": self.total,
            "warnings": self.warnings,
            "waveform": self.waveform if return_maps else None,
            "preview": self.preview(),
        }

    def preview(self) -> tuple[list[Image.Image], np.ndarray]:
        """A small picture of every frame, and the [`sound_peaks`]: what a sheet of the result needs."""
        shown = zip(self.frames, self.is_between, strict=True)
        pictures = [picture.copy() for picture, is_between in shown if not is_between]
        for picture in pictures:
            picture.thumbnail(PREVIEW, reducing_gap=1.0)
        return pictures, sound_peaks(self.waveform, self.sampling_rate)


def sound_peaks(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Lowest and highest sample of every stretch of a sound (N,), alternating: drawn, it looks like the waveform."""
    step = max(1, rate // PEAKS_PER_SECOND)
    padded = np.pad(waveform, (0, -len(waveform) % step)).reshape(-1, step)
    return np.stack([padded.min(1), padded.max(1)], axis=1).ravel()


@dataclass
class WindowInputs:
    """Network inputs of every window of one input; can be handed to a worker process.

    Attributes:
        processor ([`ComboProcessor`])
        seconds (`int`): length of a window; the last one is shorter.
        use_maskige (`bool`): of the model.
        fps: as in [`Window`].
        count (`bool`): fill `total`, which for a file costs opening it once more.
        reading (`dict`): further arguments of [`iter_clips`] for files: tracks, longest time.
    """

    processor: ComboProcessor
    seconds: int
    use_maskige: bool
    fps: float | str = 1
    count: bool = False
    reading: dict[str, Any] = field(default_factory=dict)

    def __call__(self, source: Any) -> Iterator[dict[str, Any]]:
        """For every window `inputs`, tensors packed along F, and the `window` itself; `input_features` has an entry
        for every second, and `heard` (F,) says which of them belongs to each frame.

        Raises:
            ValueError: unusable media or arrays; no Maskiges for a model that takes them.
            TypeError: another kind of input.
        """
        for window in iter_windows(source, self.seconds, self.fps, self.count, **self.reading):
            phases, seconds = window.phases(), window.seconds
            batch = self.processor(
                frames=_deal(window.frames, phases),
                audio=[np.zeros(1, np.float32)] * len(phases),  # the sound of a second is worked on once, below
                sampling_rate=window.sampling_rate,
                maskiges=None if window.maskiges is None else _deal(window.maskiges, phases),
                masks=None if window.masks is None else _deal(window.masks, phases),
                return_tensors="pt",
            )
            inputs = {name: batch[name] for name in TENSORS if name in batch}
            heard, places = np.unique(seconds[np.concatenate(phases)], return_inverse=True)
            inputs["input_features"] = self._features(window, heard)  # (seconds, 1, 96, 64)
            inputs["heard"] = torch.from_numpy(places)  # (F,)
            if not self.use_maskige:
                inputs.pop("maskige_values", None)
            elif "maskige_values" not in inputs:
                raise ValueError(
                    "this model takes Maskiges and the processor has no proposal generator: pass 'maskiges' or "
                    "'masks' with the frames, or build the pipeline with proposal_generator='superpixels'."
                )
            yield {"inputs": inputs, "window": window}

    def _features(self, window: Window, seconds: np.ndarray) -> torch.Tensor:
        """Log-mel examples of some seconds of a window, as the window has them, (len(seconds), 1, 96, 64); at less
        than one frame per second each of its own second."""
        extract, rate = self.processor.feature_extractor, window.sampling_rate
        if seconds_between(window.fps) > 1:
            pieces = [window.waveform[second * rate : (second + 1) * rate] for second in seconds]
            return extract(pieces, sampling_rate=rate, num_frames=[1] * len(pieces))["input_features"]
        last = int(seconds[-1])
        return extract([window.waveform], sampling_rate=rate, num_frames=[last + 1])["input_features"][seconds]


class PreparedWindows(IterableDataset):
    """Prepared windows of all inputs, one after the other."""

    def __init__(self, inputs: Any, prepare: WindowInputs) -> None:
        self.inputs = inputs
        self.prepare = prepare

    def __iter__(self) -> Iterator[dict[str, Any]]:
        sources = self.inputs
        if isinstance(sources, Dataset):  # may have no end of its own when iterated
            sources = (self.inputs[index] for index in range(len(self.inputs)))
        for source in sources:
            yield from self.prepare(source)


def pack_windows(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Windows -> one batch, packed along F; nothing is padded."""
    parts = [dict(item["inputs"]) for item in items]
    seconds = 0
    for part in parts:
        part["heard"], seconds = part["heard"] + seconds, seconds + len(part["input_features"])
    inputs: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    inputs["num_frames"] = inputs["num_frames"].tolist()  # from a GPU it would have to be fetched
    return {
        "inputs": inputs,
        "windows": [item["window"] for item in items],
    }


def iter_windows(source: Any, seconds: int, fps: float | str, count: bool, **reading: Any) -> Iterator[Window]:
    """Windows of one input.

    Args:
        source: path, bytes, open file, URL, dict, or clip (anything with `frames`, `waveform`, `sampling_rate`,
            `times`, `has_audio`).
        seconds, fps, count, **reading: as in [`WindowInputs`].

    Raises:
        ValueError: unusable media or arrays.
        TypeError: another kind of input.
    """
    source = read_open_file(source)
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        total = None
        if count and not (isinstance(source, str) and "://" in source):  # a URL would be downloaded once more
            tracks = {name: value for name, value in reading.items() if name != "max_seconds"}
            total = max(1, -(-probe_media(source, **tracks).seconds // (seconds * seconds_between(fps))))
        for clip in iter_clips(source, seconds, fps, **reading):
            yield Window(**vars(clip), fps=fps, total=total)
    elif isinstance(source, Mapping):
        yield from _slice(_from_mapping(source, fps), seconds)
    elif hasattr(source, "frames") and hasattr(source, "waveform"):
        yield from _slice(_from_clip(source, fps), seconds)
    else:
        raise TypeError(f"got {type(source).__name__}; pass {WANTED}, or a list of these.")


def read_open_file(source: Any) -> Any:
    """The bytes of an open file; anything else as it is.

    Raises:
        TypeError: a file that was opened as text.
    """
    if not hasattr(source, "read"):
        return source
    data = source.read()
    if not isinstance(data, bytes):
        raise TypeError(f"got a file opened as text ({type(source).__name__}); open it as 'rb', or pass its path.")
    return data


def _from_clip(source: Any, fps: float | str) -> Window:
    """A clip was read at some rate; that rate counts, not the option."""
    times, start = np.asarray(source.times, dtype=float), getattr(source, "start", 0.0)
    spacing, first = np.diff(times), max(0, math.floor(times[0] - start + 1e-6)) if len(times) else 0
    if len(spacing):
        fps = max(1, round(1 / spacing[0])) if spacing[0] < 1.5 else 1 / round(spacing[0])
        fps = AUTO if np.ptp(spacing) > 1e-3 else fps
    return Window(
        frames=list(source.frames),
        waveform=np.asarray(source.waveform),
        sampling_rate=source.sampling_rate,
        times=source.times,
        start=start,
        first=first if first * source.sampling_rate < len(source.waveform) else 0,  # times of another clock
        index=0,
        is_last=True,
        has_audio=source.has_audio,
        warnings=getattr(source, "warnings", []),
        fps=fps,
    )


def _from_mapping(source: Mapping[str, Any], fps: float | str) -> Window:
    """Check `{"frames", "audio", "sampling_rate", "maskiges", "masks"}` and bring it into one form."""
    if "video_id" in source:  # a row of a data set of ours, whose masks are what is to be found
        source = {name: source.get(name) for name in ("frames", "audio", "maskiges")}
    if set(source) - set(KEYS) or source.get("frames") is None:
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
    waveform, rate = _sound_of(source)
    rate_of_frames = 1 if isinstance(fps, str) else fps  # all frames that are given are segmented
    count, step = np.arange(len(frames)), seconds_between(fps)
    return Window(
        frames=frames,
        waveform=np.zeros(1, dtype=np.float32) if waveform is None else waveform,
        sampling_rate=rate,
        times=count * step + FRAME_OFFSET if step > 1 else (count + FRAME_OFFSET) / rate_of_frames,
        start=0.0,
        index=0,
        is_last=True,
        has_audio=waveform is not None,
        fps=rate_of_frames,
        maskiges=source.get("maskiges"),
        masks=source.get("masks"),
    )


def _sound_of(source: Mapping[str, Any]) -> tuple[np.ndarray | None, int]:
    """Samples (N,) float32, or `None`, and their rate; `audio` may be `{"array", "sampling_rate"}` or `{"bytes"}` (a
    file) as in datasets."""
    audio, rate = source.get("audio"), source.get("sampling_rate")
    if isinstance(audio, Mapping) and audio.get("bytes") is not None:
        return load_audio(audio["bytes"])
    if isinstance(audio, Mapping):
        if audio.get("array") is None or rate not in (None, audio.get("sampling_rate")):
            raise ValueError(
                f"'audio': wanted an array, or {{'array', 'sampling_rate'}}, got {sorted(audio)}, {rate}."
            )
        audio, rate = audio["array"], audio.get("sampling_rate")
    if audio is None:
        return None, SAMPLING_RATE
    if rate is None:
        raise ValueError("'audio' without 'sampling_rate': say how many samples per second it has.")
    return to_mono(audio).numpy().astype(np.float32), int(rate)


def _slice(whole: Window, seconds: int) -> Iterator[Window]:
    """Cut what is in memory into windows; missing sound is silence."""
    if not whole.frames:
        raise ValueError("the clip has no frames.")
    step = seconds_between(whole.fps)
    length, rate, of_frames = seconds * step, whole.sampling_rate, whole.seconds
    total = int(of_frames[-1]) // length + 1
    for index in range(int(of_frames[0]) // length, total):
        part = slice(*np.searchsorted(of_frames, (index * length, (index + 1) * length)).tolist())
        frames, first = whole.frames[part], index * length
        samples = min(length, int(of_frames[-1]) + step - first) * rate
        waveform = whole.waveform[first * rate : first * rate + samples]
        yield replace(
            whole,
            first=max(0, whole.first - first),
            frames=frames,
            waveform=np.pad(waveform, (0, samples - len(waveform))),
            times=whole.times[part],
            start=whole.start + first,
            index=index,
            is_last=index == total - 1,
            total=total,
            maskiges=None if whole.maskiges is None else whole.maskiges[part],
            masks=None if whole.masks is None else whole.masks[part],
        )


def _deal(entries: Sequence[Any], phases: list[np.ndarray]) -> list[list[Any]]:
    return [[entries[frame] for frame in phase] for phase in phases]


def check_count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return int(value)


def find_class_ids(classes: Sequence[str], id2label: Mapping[int, str]) -> frozenset[int]:
    if isinstance(classes, str):
        classes = [classes]
    ids = {label: int(index) for index, label in id2label.items()}
    unknown = [label for label in classes if label not in ids]
    if unknown:
        raise ValueError(f"unknown class(es) {unknown}; this model knows {sorted(set(ids) - {id2label[0]})}.")
    return frozenset(ids[label] for label in classes)
