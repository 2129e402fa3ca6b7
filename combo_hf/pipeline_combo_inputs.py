"""What the pipeline takes, cut into windows: videos by path, bytes or URL, open files, clips, and plain arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from .feature_extraction_combo import to_mono
from .image_processing_combo import to_rgb
from .media_combo import FRAME_OFFSET, SAMPLING_RATE, Clip, iter_clips, probe_media
from .processing_combo import ComboProcessor


WANTED = (
    "a path, bytes, a file opened as 'rb', an http(s) URL, a Clip, or {'frames': [...], 'audio': array, "
    "'sampling_rate': 16000} with optional 'maskiges' or 'masks'"
)
KEYS = ("frames", "audio", "sampling_rate", "maskiges", "masks")
TENSORS = ("pixel_values", "maskige_values", "input_features", "num_frames")


@dataclass
class Window(Clip):
    """Some seconds of one input: a [`Clip`], and what goes with it.

    Attributes:
        fps (`int`): frames per second.
        total (`int`, *optional*): windows of the whole input; `None` where unknown.
        maskiges, masks (*optional*): given with the frames, one entry for each.
    """

    fps: int = 1
    total: int | None = None
    maskiges: Sequence[Any] | None = None
    masks: Sequence[Any] | None = None

    def phases(self) -> list[range]:
        """Frames by place within their second: at n frames per second n clips of one frame per second each."""
        phases = [range(phase, len(self.frames), self.fps) for phase in range(self.fps)]
        return [phase for phase in phases if len(phase)]

    def packed_rows(self) -> list[int]:
        """For every frame, in time order, its row of the tensors, in which one phase is packed after the other."""
        return np.argsort(np.concatenate([np.asarray(phase) for phase in self.phases()]), kind="stable").tolist()


@dataclass
class WindowInputs:
    """Network inputs of every window of one input; can be handed to a worker process.

    Attributes:
        processor ([`ComboProcessor`])
        seconds (`int`): length of a window; the last one is shorter.
        use_maskige (`bool`): of the model.
        fps (`int`): frames per second.
        count (`bool`): fill `total`, which for a file costs opening it once more.
        reading (`dict`): further arguments of [`iter_clips`] for files: tracks, longest time.
    """

    processor: ComboProcessor
    seconds: int
    use_maskige: bool
    fps: int = 1
    count: bool = False
    reading: dict[str, Any] = field(default_factory=dict)

    def __call__(self, source: Any) -> Iterator[dict[str, Any]]:
        """For every window `inputs`, tensors packed along F, and the `window` itself.

        Raises:
            ValueError: unusable media or arrays; no Maskiges for a model that takes them.
            TypeError: another kind of input.
        """
        for window in iter_windows(source, self.seconds, self.fps, self.count, **self.reading):
            phases = window.phases()
            batch = self.processor(
                frames=_deal(window.frames, phases),
                audio=[window.waveform] * len(phases),
                sampling_rate=window.sampling_rate,
                maskiges=None if window.maskiges is None else _deal(window.maskiges, phases),
                masks=None if window.masks is None else _deal(window.masks, phases),
                return_tensors="pt",
            )
            inputs = {name: batch[name] for name in TENSORS if name in batch}
            if not self.use_maskige:
                inputs.pop("maskige_values", None)
            elif "maskige_values" not in inputs:
                raise ValueError(
                    "this model takes Maskiges and the processor has no proposal generator: pass 'maskiges' or "
                    "'masks' with the frames, or build the pipeline with proposal_generator='superpixels'."
                )
            yield {"inputs": inputs, "window": window}


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
    inputs: dict[str, Any] = {name: torch.cat([item["inputs"][name] for item in items]) for name in items[0]["inputs"]}
    inputs["num_frames"] = inputs["num_frames"].tolist()  # from a GPU it would have to be fetched
    return {
        "inputs": inputs,
        "windows": [item["window"] for item in items],
    }


def iter_windows(source: Any, seconds: int, fps: int, count: bool, **reading: Any) -> Iterator[Window]:
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
            total = max(1, -(-probe_media(source, **tracks).seconds // seconds))
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


def _from_clip(source: Any, fps: int) -> Window:
    """A clip was read at some rate; that rate counts, not the option."""
    spacing = float(source.times[1] - source.times[0]) if len(source.times) > 1 else 1.0 / fps
    return Window(
        frames=list(source.frames),
        waveform=np.asarray(source.waveform),
        sampling_rate=source.sampling_rate,
        times=source.times,
        start=getattr(source, "start", 0.0),
        index=0,
        is_last=True,
        has_audio=source.has_audio,
        warnings=getattr(source, "warnings", []),
        fps=max(1, round(1 / spacing)),
    )


def _from_mapping(source: Mapping[str, Any], fps: int) -> Window:
    """Check `{"frames", "audio", "sampling_rate", "maskiges", "masks"}` and bring it into one form."""
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
    return Window(
        frames=frames,
        waveform=np.zeros(1, dtype=np.float32) if waveform is None else waveform,
        sampling_rate=rate,
        times=(np.arange(len(frames)) + FRAME_OFFSET) / fps,
        start=0.0,
        index=0,
        is_last=True,
        has_audio=waveform is not None,
        fps=fps,
        maskiges=source.get("maskiges"),
        masks=source.get("masks"),
    )


def _sound_of(source: Mapping[str, Any]) -> tuple[np.ndarray | None, int]:
    """Samples (N,) float32, or `None`, and their rate; `audio` may be `{"array", "sampling_rate"}` as in datasets."""
    audio, rate = source.get("audio"), source.get("sampling_rate")
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
    step = seconds * whole.fps
    if not whole.frames:
        raise ValueError("the clip has no frames.")
    total = -(-len(whole.frames) // step)
    for index in range(total):
        part = slice(index * step, (index + 1) * step)
        frames = whole.frames[part]
        length = -(-len(frames) // whole.fps) * whole.sampling_rate
        first = index * seconds * whole.sampling_rate
        waveform = whole.waveform[first : first + length]
        yield replace(
            whole,
            frames=frames,
            waveform=np.pad(waveform, (0, length - len(waveform))),
            times=whole.times[part],
            start=whole.start + index * seconds,
            index=index,
            is_last=index == total - 1,
            total=total,
            maskiges=None if whole.maskiges is None else whole.maskiges[part],
            masks=None if whole.masks is None else whole.masks[part],
        )


def _deal(entries: Sequence[Any], phases: list[range]) -> list[list[Any]]:
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
