"""ComboProcessor: clips of frames with their sound -> everything the model takes, in one call, all input checks
included.

The sound becomes log-mel examples, the frames pixel values, and the Maskiges come from where the caller says: ready
pictures (`maskiges`), boolean proposals (`masks`), or else the proposal generator. Clips are packed along F = sum of
their frames without any padding, with `num_frames` (B,) beside them.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from .feature_extraction_combo import ComboFeatureExtractor
from .image_processing_combo import ComboImageProcessor, to_batch, to_rgb
from .maskige_combo import check_masks, paint_maskige
from .proposals_combo import ProposalGenerator, get_proposal_generator, is_harmless
from .remote_code_combo import PROCESSOR_ENTRIES, announced_code, check_kind, push_arguments, reading, write_code


class ComboProcessor(ProcessorMixin):
    r"""Prepares clips for COMBO and turns its predictions into label maps.

    Args:
        image_processor ([`ComboImageProcessor`], *optional*): default: 224 x 224.
        feature_extractor ([`ComboFeatureExtractor`], *optional*): default: VGGish log-mel.
        proposal_generator (*optional*, defaults to `"superpixels"`): what makes Maskiges out of frames that come
            without: a name, a dict with `"name"` and parameters, a callable (frames -> boolean masks), or `None` for
            a model that takes no Maskiges: the batch then has no `maskige_values` unless `maskiges` or `masks` are
            passed. A callable without `to_dict()` cannot be saved and is `None` in the saved processor.
        num_frames (`int`, *optional*, defaults to 5): seconds per clip the model was trained for; films are cut by it.

    Raises:
        ValueError: `num_frames` below 1.

    Examples:
        >>> import numpy as np
        >>> from combo_hf import ComboProcessor
        >>> frames, sound = np.zeros((5, 240, 320, 3), np.uint8), np.zeros(5 * 44100)
        >>> batch = ComboProcessor()(frames, sound, sampling_rate=44100)
        >>> batch["pixel_values"].shape, batch["maskige_values"].shape, batch["input_features"].shape
        (torch.Size([5, 3, 224, 224]), torch.Size([5, 3, 224, 224]), torch.Size([5, 1, 96, 64]))
    """

    image_processor: ComboImageProcessor
    feature_extractor: ComboFeatureExtractor
    _generator: ProposalGenerator | None

    def __init__(
        self,
        image_processor: ComboImageProcessor | None = None,
        feature_extractor: ComboFeatureExtractor | None = None,
        proposal_generator: Any = "superpixels",
        num_frames: int = 5,
    ) -> None:
        if type(num_frames) is not int or num_frames < 1:
            raise ValueError(f"num_frames: wanted a whole number of seconds, at least 1, got {num_frames!r}.")
        super().__init__(image_processor or ComboImageProcessor(), feature_extractor or ComboFeatureExtractor())
        self.num_frames = num_frames
        self.proposal_generator = proposal_generator

    @property
    def proposal_generator(self) -> Any:
        """The generator in use (frames -> boolean masks), or `None`; set it to a name, a dict or a callable.

        Raises:
            ValueError: a generator of unknown name; or one that a loaded file asks for and nobody has agreed to.
        """
        if self._generator is None and self._generator_source is not None:
            if not self.proposals_agreed:
                raise ValueError(
                    f"the saved processor asks for the proposals {json.dumps(self._generator_source)[:200]}. A file "
                    "may not have further models loaded or folders written: if you want that, say so by "
                    "proposal_generator=... (combo-hf predict: --proposals NAME=MODEL); or pass 'superpixels'."
                )
            self._generator = get_proposal_generator(self._generator_source)
        return self._generator

    @proposal_generator.setter
    def proposal_generator(self, source: Any) -> None:
        self._generator_source, self._generator = source, None
        self._source_agreed = True

    @property
    def proposals_agreed(self) -> bool:
        """False: a loaded file, and nobody else, asks for a generator that loads a model or writes files."""
        return self._source_agreed or is_harmless(self._generator_source)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the base class; a damaged file is a `ValueError`, whatever is wrong with it."""
        with reading(f"{pretrained_model_name_or_path}: processor_config.json"):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Both parts by their own classes, whatever the files name: an Auto class would run a stranger's code."""
        found = (processor_dict or {}).get("processor_class")
        check_kind("processor_config.json: processor_class", cls.__name__, found)
        return [
            ComboImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            ComboFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs),
        ]

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class. The generator that the file names is used only if it is harmless: a checkpoint of a
        stranger must not fetch another model from somewhere, or fill a folder of its choice with masks."""
        loaded = super().from_args_and_dict(args, processor_dict, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded
        processor._source_agreed = "proposal_generator" in kwargs
        return loaded

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        return ["pixel_values", "maskige_values", "input_features", "num_frames"]

    def to_dict(self) -> dict[str, Any]:
        """What is saved: both parts, `num_frames` and the generator's name and parameters."""
        generator, source = self._generator, self._generator_source
        self._generator = self._generator_source = None  # the base class copies every attribute, a network too
        try:
            output = super().to_dict()
        finally:
            self._generator, self._generator_source = generator, source
        output.pop("_source_agreed", None)
        output["proposal_generator"] = _describe(source)
        return output

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        push_to_hub: bool = False,
        carry_code: bool = True,
        **kwargs: Any,
    ) -> list[str]:
        """Save all parts into `processor_config.json`, and beside it the code that loads them.

        Args:
            save_directory, push_to_hub, **kwargs: as in `ProcessorMixin.save_pretrained`.
            carry_code: as in [`ComboForAudioVisualSegmentation.save_pretrained`].

        Returns:
            Names of the files written, without those of the code.
        """
        push = push_arguments(save_directory, kwargs) if push_to_hub else {}
        with announced_code([self, self.image_processor, self.feature_extractor], carry_code, PROCESSOR_ENTRIES):
            files = super().save_pretrained(save_directory, **kwargs)
        if carry_code:
            write_code(save_directory)
        if push_to_hub:
            self.push_to_hub(**push)
        return files

    def __call__(
        self,
        frames: Any,
        audio: Any = None,
        sampling_rate: int | None = None,
        maskiges: Any = None,
        masks: Any = None,
        segmentation_maps: Any = None,
        label_frames: Any = None,
        frames_per_second: int = 1,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prepare one clip or a batch of clips of any lengths.

        Args:
            frames: list of clips, a clip being a list of T images (PIL of any mode and size, numpy or torch (H, W, 3)
                or (3, H, W), uint8 or float 0..1) or one array of them. A single clip may be passed as it is;
                everything below then has one nesting less, too.
            audio: one waveform per clip, (N,) or with channels, floats in [-1, 1] or PCM integers. Shorter than the
                frames: silence follows. There is no default: for a silent clip pass zeros.
            sampling_rate (`int`): of all waveforms, in Hz.
            maskiges: ready Maskiges, one RGB image per frame.
            masks: class-agnostic proposals, one bool (K, H, W) per frame; they are painted into Maskiges.
            segmentation_maps: label maps (H, W) for training: T per clip with `None` where there is no annotation,
                or, with `label_frames`, only those of the annotated frames. 255 = ignored.
            label_frames: per clip T booleans: which frames are annotated.
            frames_per_second (`int`, *optional*, defaults to 1): n frames show one second, in time order, and hear
                its sound.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`] with `pixel_values` (F, 3, H, W), `maskige_values` (F, 3, H, W), `input_features` (F, 1,
            96, 64), `num_frames` (B,) int64; and with `segmentation_maps`, `mask_labels` (list over annotated frames
            of (C_i, H, W) float), `class_labels` (list of (C_i,) int64), `label_frames` (F,) bool.

        Raises:
            ValueError: empty clips, missing or different numbers of anything, impossible values.
            TypeError: something that is no clip, image or sound.
        """
        clips, single = _as_clips(frames)
        counts = [len(clip) for clip in clips]
        waveforms = _as_audio(audio, single, len(clips))
        if maskiges is not None and masks is not None:
            raise ValueError("Got both maskiges and masks: pass ready Maskiges or masks to paint, not both.")
        maskiges = None if maskiges is None else _per_frame("maskiges", maskiges, single, counts)
        masks = None if masks is None else _per_frame("masks", masks, single, counts)
        pictures = self._maskiges(clips, maskiges, masks)
        labels = _as_labels(segmentation_maps, label_frames, single, counts)
        data = dict(self.image_processor.preprocess(_flatten(clips), pictures, labels))
        data["input_features"] = self._features(waveforms, sampling_rate, counts, frames_per_second)
        data["num_frames"] = torch.tensor(counts)
        return to_batch(data, return_tensors)

    def post_process_semantic_segmentation(
        self, outputs: Any, num_frames: Any, target_sizes: Any = None, return_scores: bool = False
    ) -> Any:
        """Label maps (T, H, W) of every clip; see [`ComboImageProcessor.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(
            outputs, num_frames, target_sizes=target_sizes, return_scores=return_scores
        )

    def _maskiges(self, clips: list[list[Any]], maskiges: Any, masks: Any) -> list[Any] | None:
        """One Maskige per packed frame, from the first source there is; `None` without any."""
        if maskiges is not None:
            return _flatten(maskiges)
        size = self.image_processor.input_size
        if masks is not None:
            return [
                paint_maskige(check_masks(entry, f"masks[{clip}][{frame}]"), size)
                for clip, entries in enumerate(masks)
                for frame, entry in enumerate(entries)
            ]
        generator = self.proposal_generator
        if generator is None:
            return None
        # Frame by frame: the masks of one 1080p frame take 2 MB each.
        return [self._propose(generator, image, size) for clip in clips for image in clip]

    def _propose(self, generator: Any, image: Any, size: tuple[int, int]) -> np.ndarray:
        if "maskige" in vars(type(generator)):  # not one that a class with other masks has inherited
            return generator.maskige(to_rgb(image, "frames"), size)
        proposals = generator([to_rgb(image, "frames")])
        if len(proposals) != 1:
            raise ValueError(f"proposal_generator: wanted masks for 1 frame, got a list of {len(proposals)}.")
        return paint_maskige(check_masks(proposals[0], "masks of the proposal_generator"), size)

    def _features(
        self, waveforms: list[Any], sampling_rate: int | None, counts: list[int], frames_per_second: int
    ) -> torch.Tensor:
        """Log-mel example of every packed frame: (F, 1, 96, 64)."""
        if not isinstance(frames_per_second, int) or frames_per_second < 1:
            raise ValueError(f"frames_per_second: wanted a whole number, at least 1, got {frames_per_second!r}.")
        seconds = [-(-count // frames_per_second) for count in counts]
        examples = self.feature_extractor(waveforms, sampling_rate=sampling_rate, num_frames=seconds)["input_features"]
        heard = [
            clip.repeat_interleave(frames_per_second, dim=0)[:count]
            for clip, count in zip(examples.split(seconds), counts, strict=True)
        ]
        return torch.cat(heard)


def _describe(source: Any) -> Any:
    """JSON-able name and parameters of a generator, `None` if it has none."""
    description = source.to_dict() if callable(getattr(source, "to_dict", None)) else source
    try:
        json.dumps(description)
    except TypeError:
        return None
    return description


def _is_image(entry: Any) -> bool:
    return isinstance(entry, Image.Image) or (isinstance(entry, (np.ndarray, torch.Tensor)) and entry.ndim <= 3)


def _as_clips(frames: Any) -> tuple[list[list[Any]], bool]:
    """List of clips, and whether a single one was passed."""
    if isinstance(frames, (np.ndarray, torch.Tensor)):
        if frames.ndim not in (4, 5):
            raise ValueError(f"frames: wanted (T, H, W, 3) or (B, T, H, W, 3), got shape {tuple(frames.shape)}.")
    elif not isinstance(frames, (list, tuple)):
        raise TypeError(f"frames: wanted a list of clips, each a list of images, got {type(frames).__name__}.")
    entries = list(frames)
    if not entries:
        raise ValueError("frames: no clips; wanted at least one list of images.")
    single = _is_image(entries[0])
    clips = [entries] if single else entries
    for index, clip in enumerate(clips):
        if not isinstance(clip, (list, tuple, np.ndarray, torch.Tensor)) or _is_image(clip):
            raise TypeError(f"frames[{index}]: wanted a list of images, got {type(clip).__name__}.")
        if len(clip) == 0:
            raise ValueError(f"frames[{index}]: the clip has no frames.")
    return [list(clip) for clip in clips], single


def _as_audio(audio: Any, single: bool, num_clips: int) -> list[Any]:
    """One waveform per clip."""
    hint = "For silent clips pass zeros, e.g. np.zeros(5 * 16000, dtype=np.float32) with sampling_rate=16000."
    if audio is None:
        raise ValueError(f"audio is missing: wanted one waveform per clip. {hint}")
    bare = isinstance(audio, (np.ndarray, torch.Tensor)) and audio.ndim <= 2
    if bare or (isinstance(audio, (list, tuple)) and len(audio) > 0 and np.isscalar(audio[0])):
        if not single and num_clips > 1:
            raise ValueError(f"audio: wanted a list of {num_clips} waveforms, one per clip, got a single array.")
        return [audio]
    waveforms = list(audio)
    if len(waveforms) != num_clips:
        raise ValueError(f"audio: wanted {num_clips} waveforms, one per clip, got {len(waveforms)}.")
    missing = [index for index, waveform in enumerate(waveforms) if waveform is None]
    if missing:
        raise ValueError(f"audio: clips {missing} have none. {hint}")
    return waveforms


def _nested(name: str, entries: Any, single: bool, num_clips: int) -> list[list[Any]]:
    nested = [entries] if single else list(entries)
    if len(nested) != num_clips:
        raise ValueError(f"{name}: wanted a list for each of {num_clips} clips, got {len(nested)}.")
    for index, clip in enumerate(nested):
        if not isinstance(clip, (list, tuple, np.ndarray, torch.Tensor)):
            raise TypeError(f"{name}[{index}]: wanted a list with an entry per frame, got {type(clip).__name__}.")
    return [list(clip) for clip in nested]


def _per_frame(name: str, entries: Any, single: bool, counts: list[int]) -> list[list[Any]]:
    """Entries nested as the frames are."""
    nested = _nested(name, entries, single, len(counts))
    for index, (clip, count) in enumerate(zip(nested, counts, strict=True)):
        if len(clip) != count:
            raise ValueError(f"{name}[{index}]: wanted one for each of the clip's {count} frames, got {len(clip)}.")
    return nested


def _as_labels(maps: Any, label_frames: Any, single: bool, counts: list[int]) -> list[Any] | None:
    """One label map or `None` per packed frame; `None` without any."""
    if maps is None:
        if label_frames is not None:
            raise ValueError("label_frames without segmentation_maps: pass the label maps of its frames, too.")
        return None
    if label_frames is None:
        return _flatten(_per_frame("segmentation_maps", maps, single, counts))
    marks = _per_frame("label_frames", label_frames, single, counts)
    labels: list[Any] = []
    for index, (clip, marked) in enumerate(
        zip(_nested("segmentation_maps", maps, single, len(counts)), marks, strict=True)
    ):
        marked = [bool(mark) for mark in marked]
        if len(clip) == len(marked):
            clip = [entry for entry, mark in zip(clip, marked, strict=True) if mark]
        if len(clip) != sum(marked) or any(entry is None for entry in clip):
            raise ValueError(
                f"segmentation_maps[{index}]: label_frames marks {sum(marked)} of {len(marked)} frames, wanted a map "
                f"for each of these, got {sum(entry is not None for entry in clip)}."
            )
        remaining = iter(clip)
        labels.extend(next(remaining) if mark else None for mark in marked)
    return labels


def _flatten(nested: list[list[Any]]) -> list[Any]:
    return [entry for clip in nested for entry in clip]
