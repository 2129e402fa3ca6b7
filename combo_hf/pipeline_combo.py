"""The pipeline: films, sounds and pictures in, what sounds where and when out.

A film is cut into windows of `config.num_frames` seconds, the last one shorter; frames and sound of every window are
aligned anew. At more than one frame per second a window is dealt out to several clips of one frame per second each
(phase j has the frames j, j + fps, ...), all with the window's sound: the network always sees what it was trained for.
Windows of several films share a batch without padding; a result does not depend on what else is in its batch.

Axes: T frames of a phase, F packed frames of a window or batch, K classes, H W size of the source.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.pipelines.base import ChunkPipeline

from .label_maps_combo import FrameLabels, are_finite, check_outputs, enlarge, fetch_frames, segment
from .media_combo_shown import AUTO, check_fps
from .modeling_combo import ComboForAudioVisualSegmentation
from .pipeline_combo_inputs import (
    WANTED,
    PreparedWindows,
    WindowInputs,
    check_count,
    find_class_ids,
    pack_windows,
    read_open_file,
)
from .processing_combo import ComboProcessor
from .proposals_combo import get_proposal_generator
from .remote_code_combo import push_arguments


TASK = "audio-visual-segmentation"
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")
OPTIONS = (
    "fps", "classes", "threshold", "min_area", "return_maps", "progress", "max_seconds", "video_track", "audio_track"
)  # fmt: skip


class AudioVisualSegmentationPipeline(ChunkPipeline):
    """Segments what sounds in a film.

    Args:
        model: [`ComboForAudioVisualSegmentation`].
        processor: [`ComboProcessor`].
        proposal_generator: replaces the processor's: a name (`"superpixels"`), a dict with `"name"`, or a callable.
        fps, classes, threshold, min_area, return_maps, progress, ...: defaults of the options of `__call__`.

    Raises:
        ValueError: no processor, or a proposal generator of unknown name.
        TypeError: an option that does not exist.

    Examples:
        >>> import transformers
        >>> pipe = transformers.pipeline("audio-visual-segmentation")
        >>> pipe("clip.mp4")["frames"][0]["segments"]
        [{'label': 'dog', 'score': 0.96..., 'mask': <PIL.Image.Image image mode=L size=384x288 at ...>}]
    """

    model: ComboForAudioVisualSegmentation
    processor: ComboProcessor

    # (keys of a result, small pictures of its frames, peaks of its sound) -> the result. `combo_hf.register` puts its
    # own here, whose results can be more than a dict: these files also run where the package is not installed.
    make_result: Callable[[dict[str, Any], list[Image.Image], np.ndarray], dict[str, Any]] | None = None

    _load_processor = True  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args: Any, proposal_generator: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("the pipeline needs a processor: pass processor=ComboProcessor.from_pretrained(folder).")
        self.model.config.check_input_size(*self.processor.image_processor.input_size)
        self.model.eval()
        if proposal_generator is not None or not self.model.config.use_maskige:
            self.processor = copy.copy(self.processor)  # the caller's own keeps its generator
            generator = get_proposal_generator(proposal_generator) if self.model.config.use_maskige else None
            self.processor.proposal_generator = generator

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> AudioVisualSegmentationPipeline:
        """The pipeline of a checkpoint, built from the classes beside this one: no file of the checkpoint is run.

        Args:
            name: folder or Hub id.
            **kwargs: of the model, as in `transformers.pipeline`: `dtype` (default: that of the weights),
                `device_map`, `model_kwargs`; `processor`, if not the checkpoint's; `revision`, `token`, ...; and those
                of the pipeline: `device`, `batch_size`, `proposal_generator`, `fps`, ...

        Raises:
            ValueError: the files are damaged or of another kind, or the weights do not fit.
            OSError: no checkpoint, or not reachable.
        """
        if kwargs.pop("trust_remote_code", False):
            raise ValueError("trust_remote_code: no code of a checkpoint is run; transformers.pipeline would run it.")
        hub = {option: kwargs.pop(option) for option in HUB_OPTIONS if option in kwargs}
        weights = {option: kwargs.pop(option) for option in ("dtype", "device_map") if option in kwargs}
        weights = {"dtype": "auto", **weights, **kwargs.pop("model_kwargs", {})}
        processor = kwargs.pop("processor", None) or ComboProcessor.from_pretrained(name, **hub)
        model = ComboForAudioVisualSegmentation.from_pretrained(name, **hub, **weights)
        return cls(model=model, processor=processor, task=TASK, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Segment one input, a list of inputs, or a generator of inputs (lazily).

        Args:
            inputs: path, bytes, file opened as "rb", http(s) URL, [`Clip`], or a dict with `frames` (PIL images or
                `(T, H, W, 3)`, `fps` per second), `audio` (array, `{"array", "sampling_rate"}` or `{"bytes"}`;
                `None` for silence), `sampling_rate`, and optionally `maskiges` (one RGB image per frame) or `masks`
                (one bool `(K, H, W)` per frame); or a row of a data set of ours.
            fps: frames per second to segment, default 1; below 1 the nearest 1/n; `"auto"`: one, and up to four where
                something moves (as in [`iter_clips`]); the others than the one are in `frames_between`.
            classes (`list[str]`): keep only these labels.
            threshold (`float`): pixels whose class has a smaller share of all class scores stay background, 0 to 1.
            min_area (`int`): drop segments of fewer pixels at source size.
            return_maps (`bool`): per frame also `image`, `maskige`, `heat_map` `(H, W)` and `scores` `(K, h, w)` at
                the network's input size, and `waveform` of the whole; for [`contact_sheet`].
            progress (`Callable[[int, int | None], None]`): called after every window with (windows done, windows in
                all or `None` where unknown).
            max_seconds (`float`): a longer video is refused when the reading gets there, whatever its header says.
            video_track, audio_track (`int`): number of the track of a file among those of its kind, from 1; default:
                what a player would take.
            batch_size (`int`), num_workers (`int`): windows per batch; 1 worker prepares them beside the network.

        Returns:
            `dict` per input ([`SegmentationResult`] where the package is installed): `frames`, a list of {`timestamp`
            (s), `segments` [{`label`, `score`, `mask` (PIL, L, 0 or 255)}], `label_map` `(H, W)` uint8};
            `sampling_rate`, `size` (W, H), `fps`, `has_audio`, `labels` (id -> name), `warnings` (damage found in the
            file). The score is the mean over the segment of its class's share of all class scores, 0 to 1. Without a
            sound track `has_audio` is False and silence is used.

        Raises:
            ValueError: an empty list, unusable media (`MediaError`) or arrays; the message says what was wanted.
            TypeError: an input of another kind, an unknown option.
        """
        inputs = read_open_file(inputs)  # which is an iterator of lines, too
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        elif isinstance(inputs, Iterator) and not isinstance(inputs, GeneratorType):
            inputs = (entry for entry in inputs)
        if isinstance(inputs, list) and not inputs:
            raise ValueError(f"got an empty list; pass {WANTED}, or a list of these.")
        return super().__call__(inputs, **kwargs)

    def stream(
        self, source: Any, batch_size: int = 1, num_workers: int = 0, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Segment one input of any length window by window; memory does not grow with the length.

        Args:
            source: one input, as for `__call__`.
            batch_size, num_workers, **options: as for `__call__`.

        Returns:
            Iterator over results like those of `__call__`, one per window, with `window` (its number) and `is_last`.

        Raises:
            As `__call__`.
        """
        preprocess, forward, _ = self._sanitize_parameters(**options)
        windows = self._windows(
            [source],
            num_workers,
            batch_size,
            {**self._preprocess_params, **preprocess},
            {**self._forward_params, **forward},
        )
        return (self._result([window], window=window["index"], is_last=window["is_last"]) for window in windows)

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, carry_code: bool = True, **kwargs: Any
    ) -> None:
        """Save model, processor and code, so that `pipeline(task, model=save_directory)` loads them again.

        The base class would save image processor and feature extractor over each other and drop the processor.

        Args:
            save_directory: folder; made where it does not exist.
            push_to_hub: upload all of it as well, in one commit; `repo_id`, `private`, ... as in `push_to_hub`.
            carry_code: as in [`ComboForAudioVisualSegmentation.save_pretrained`].
            **kwargs: for the model's `save_pretrained`, for example `max_shard_size`.
        """
        push = push_arguments(save_directory, kwargs) if push_to_hub else {}
        self.model.save_pretrained(save_directory, carry_code=carry_code, **kwargs)
        self.processor.save_pretrained(save_directory, carry_code=carry_code)
        if push_to_hub:
            self.push_to_hub(**push)

    def _sanitize_parameters(
        self,
        fps: float | str | None = None,
        classes: Sequence[str] | None = None,
        threshold: float | None = None,
        min_area: int | None = None,
        return_maps: bool | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        max_seconds: float | None = None,
        video_track: int | None = None,
        audio_track: int | None = None,
        local_files_only: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            names = ", ".join(sorted(unknown))
            raise TypeError(f"unknown option(s) {names}; known: {', '.join(OPTIONS)}, batch_size, num_workers.")
        preprocess: dict[str, Any] = {}
        forward: dict[str, Any] = {}
        if fps is not None:
            preprocess["fps"] = check_fps(fps)
        if progress is not None:
            if not callable(progress):
                raise TypeError(f"progress must be callable with (done, total), got {type(progress).__name__}.")
            preprocess["progress"] = progress
        reading = {"max_seconds": max_seconds, "video_track": video_track, "audio_track": audio_track}
        preprocess |= {name: value for name, value in reading.items() if value is not None}
        if classes is not None:
            forward["class_ids"] = find_class_ids(classes, self.model.config.id2label)
        if threshold is not None:
            if isinstance(threshold, bool) or not 0 <= threshold <= 1:
                raise ValueError(f"threshold must be 0 to 1, got {threshold!r}.")
            forward["threshold"] = float(threshold)
        if min_area is not None:
            forward["min_area"] = check_count("min_area", min_area, 0)
        if return_maps is not None:
            forward["return_maps"] = bool(return_maps)
        return preprocess, forward, {}

    def preprocess(self, source: Any, **options: Any) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Network inputs of every window of one input, packed along F, with the window itself beside them."""
        yield from self._window_inputs(**options)(source)

    def _window_inputs(self, fps: float | str = 1, progress: Any = None, **reading: Any) -> WindowInputs:
        config, count = self.model.config, progress is not None
        return WindowInputs(self.processor, config.num_frames, config.use_maskige, fps, count, reading)

    def _forward(  # type: ignore[override]
        self,
        batch: dict[str, Any],
        class_ids: frozenset[int] | None = None,
        threshold: float = 0.0,
        min_area: int = 0,
        return_maps: bool = False,
    ) -> dict[str, Any]:
        """Run the network and reduce its output at once to label maps and scores of every frame."""
        inputs = {
            name: values.to(self.model.dtype) if torch.is_tensor(values) and values.is_floating_point() else values
            for name, values in batch["inputs"].items()
        }
        inputs["input_features"] = self.model.embed_audio(inputs["input_features"])[inputs.pop("heard")]  # (F, D)
        outputs = self.model(**inputs)
        classes, masks = outputs.class_queries_logits.float(), outputs.masks_queries_logits.float()
        counts = [len(window.frames) for window in batch["windows"]]
        check_outputs(classes, masks, counts, None, finite=True)  # of which more below
        rows = [
            (sum(counts[:number]) + row, picture, return_maps and not is_between)
            for number, window in enumerate(batch["windows"])
            for row, picture, is_between in zip(window.packed_rows(), window.frames, window.is_between, strict=True)
        ]
        found = [
            self._label(classes[row], masks[row], picture.size, threshold, with_maps)
            for row, picture, with_maps in rows
        ]
        finite, frames = fetch_frames(are_finite(classes, masks), found)
        check_outputs(classes, masks, counts, None, finite)
        entries, windows = iter(zip(rows, frames, strict=True)), []
        for window in batch["windows"]:
            results = []
            for time, ((row, picture, with_maps), frame) in zip(window.times, entries, strict=False):
                entry = {"timestamp": float(time), **self._segments(frame, class_ids, min_area)}
                if with_maps:
                    entry |= {"image": picture, "maskige": self._maskige(batch["inputs"].get("maskige_values"), row)}
                results.append(entry)
            windows.append(window.result(results, return_maps))
        return {"windows": windows}

    def _label(
        self, classes: torch.Tensor, masks: torch.Tensor, size: tuple[int, int], threshold: float, return_maps: bool
    ) -> FrameLabels:
        """Label map of one frame at source size (W, H), and on request its maps; on the device.

        classes: class logits (Q, K + 1); masks: mask logits (Q, h, w).
        """
        target = (size[1], size[0])
        # Scores stay at input size: those of all classes of a 1080p frame would take 0.6 GB.
        labels, best, scores = segment(classes, masks, target)  # (H, W), (H, W), (K, h, w)
        total = enlarge(scores.sum(0, keepdim=True), target)[0].clamp_min(1e-8)
        shares = best / total
        if threshold:
            labels = labels.masked_fill(shares < threshold, 0)
        precise = torch.float32 if labels.device.type == "mps" else torch.float64
        where, nothing = labels.flatten(), torch.zeros(len(scores), dtype=precise, device=labels.device)
        areas = nothing.scatter_add(0, where, torch.ones((), dtype=precise, device=labels.device).expand_as(where))
        sums = nothing.scatter_add(0, where, shares.flatten().to(precise))
        maps = {}
        if return_maps:
            maps["heat_map"] = (1 - enlarge(scores[:1], target)[0] / total).clamp(0, 1)
            maps["scores"] = scores / scores.sum(0, keepdim=True).clamp_min(1e-8)
        dtype = torch.uint8 if self.model.config.num_labels <= 256 else torch.int32
        return FrameLabels(labels.to(dtype), areas, sums, maps)

    def _segments(self, frame: FrameLabels, class_ids: frozenset[int] | None, min_area: int) -> dict[str, Any]:
        """Segments of a frame whose numbers are on the CPU, and its label map with these alone."""
        labels = frame.labels.numpy()
        segments: list[dict[str, Any]] = []
        for index in frame.areas.nonzero()[:, 0].tolist():
            area = float(frame.areas[index])
            if index == 0:
                continue
            region = labels == index
            if area < min_area or (class_ids is not None and index not in class_ids):
                labels[region] = 0
                continue
            mask = Image.fromarray(region.view(np.uint8) * np.uint8(255))
            score = float(frame.sums[index]) / area
            segments.append({"label": self.model.config.id2label[index], "score": score, "mask": mask})
        segments.sort(key=lambda segment: -segment["score"])
        maps = {name: values.cpu().numpy() for name, values in frame.maps.items()}
        return {"segments": segments, "label_map": labels, **maps}

    def _maskige(self, values: torch.Tensor | None, row: int) -> Image.Image | None:
        if values is None:
            return None
        return Image.fromarray(self.processor.image_processor.denormalize(values[row, None])[0])

    def postprocess(self, windows: list[dict[str, Any]]) -> dict[str, Any]:  # type: ignore[override]
        """One result out of all windows of an input."""
        return self._result(windows)

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[dict[str, Any]]:
        """Results of all inputs, lazily. The base class pads what it batches; windows are packed instead."""
        collected = []
        for window in self._windows(inputs, num_workers, batch_size, preprocess_params, forward_params):
            collected.append(window)
            if window["is_last"]:
                yield self.postprocess(collected, **postprocess_params)
                collected = []

    def _windows(
        self, inputs: Iterable[Any], num_workers: int, batch_size: int, preprocess: dict, forward: dict
    ) -> Iterator[dict[str, Any]]:
        workers = min(num_workers, 1)  # several workers would each prepare every input
        if workers and isinstance(inputs, Iterator) and multiprocessing.get_start_method() != "fork":
            raise ValueError("num_workers: a generator cannot be handed to a worker process here; use 0, or a list.")
        loader = DataLoader(
            PreparedWindows(inputs, self._window_inputs(**preprocess)),
            batch_size=check_count("batch_size", batch_size, 1),
            num_workers=workers,
            collate_fn=pack_windows,
            generator=torch.Generator(),  # its own, so that the caller's random state stays as it is
        )
        for batch in loader:
            for window in self.forward(batch, **forward)["windows"]:
                yield window
                if preprocess.get("progress") is not None:
                    done = window["index"] + 1
                    preprocess["progress"](done, None if window["total"] is None else max(done, window["total"]))

    def _result(self, windows: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        first = windows[0]
        result = {
            "frames": [frame for window in windows for frame in window["frames"]],
            "sampling_rate": first["sampling_rate"],
            "size": first["size"],
            "fps": 1 if first["fps"] == AUTO else first["fps"],
            "has_audio": any(window["has_audio"] for window in windows),
            "labels": {int(index): label for index, label in self.model.config.id2label.items()},
            "warnings": list(windows[-1]["warnings"]),
            **extra,
        }
        if first["fps"] == AUTO:
            result["frames_between"] = [frame for window in windows for frame in window["frames_between"]]
        if first["waveform"] is not None:
            result["waveform"] = np.concatenate([window["waveform"] for window in windows])
        if self.make_result is None:
            return result
        pictures = [picture for window in windows for picture in window["preview"][0]]
        return self.make_result(result, pictures, np.concatenate([window["preview"][1] for window in windows]))
