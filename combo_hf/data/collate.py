"""Data set rows -> clips of compact tensors -> packed batches of the model.

A clip waits in memory as uint8 pictures (a quarter of the size of what the model takes); the collator normalises, and
packs clips of any lengths along F = sum of their frames, without padding. Augmentation draws from a generator of its
own, seeded by (seed, epoch, index): it depends neither on the number of workers nor on where training was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image

from combo_hf.data.rows import ClipPictures
from combo_hf.feature_extraction_combo import LOG_OFFSET
from combo_hf.image_processing_combo import ComboImageProcessor, frame_targets, normalize


IMAGE_MEAN, IMAGE_STD = ComboImageProcessor.image_mean, ComboImageProcessor.image_std
SILENCE = math.log(LOG_OFFSET)  # log-mel of digital silence
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, for the colour jitter
FEATURE_SHAPE = (1, 96, 64)


@dataclass
class ClipExample:
    """One clip, ready to be batched. T frames, A of them annotated.

    Attributes:
        video_id: names the clip in messages.
        frames: uint8 (T, 3, H, W), RGB.
        maskiges: uint8 (T, 3, H, W), or `None`.
        input_features: float32 (T, 1, 96, 64), log-mel.
        masks: uint8 (A, H, W), class ids; 255 = ignored.
        label_frames: bool (T,), which frames the masks belong to.
    """

    video_id: str
    frames: torch.Tensor
    maskiges: torch.Tensor | None
    input_features: torch.Tensor
    masks: torch.Tensor
    label_frames: torch.Tensor

    def __post_init__(self) -> None:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        strange = [name for name, part in parts.items() if not torch.is_tensor(part)]
        strange = [name for name in strange if name != "video_id" and (name, parts[name]) != ("maskiges", None)]
        if strange or self.frames.ndim != 4 or self.label_frames.dtype != torch.bool:
            raise ValueError(
                f"clip {self.video_id}: wanted tensors, frames (T, 3, H, W) and label_frames of booleans; look at "
                f"{strange or ['frames', 'label_frames']}."
            )
        count, channels, *size = self.frames.shape
        wanted = {
            "frames": (count, 3, *size),
            "input_features": (count, *FEATURE_SHAPE),
            "masks": (int(self.label_frames.sum()), *size),
            "label_frames": (count,),
        }
        if self.maskiges is not None:
            wanted["maskiges"] = (count, 3, *size)
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                got = tuple(getattr(self, name).shape)
                raise ValueError(f"clip {self.video_id}: {name} must be {shape}, got {got}.")


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random in training; the same for all frames of a clip.

    The Maskige is flipped with its frames, and never recoloured: its colours are codes.

    Attributes:
        flip: probability of a horizontal flip, in [0, 1].
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter .. 1 + jitter, in [0, 1).
    """

    flip: float = 0.5
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if not (0 <= self.flip <= 1 and 0 <= self.jitter < 1):
            raise ValueError(f"wanted flip in [0, 1] and jitter in [0, 1), got {self.flip} and {self.jitter}.")

    def __call__(self, example: ClipExample, generator: torch.Generator) -> ClipExample:
        """A changed copy; every call draws four numbers, whatever the settings."""
        flip, *factors = torch.rand(4, generator=generator).tolist()
        frames, maskiges, masks = example.frames, example.maskiges, example.masks
        if self.jitter:
            frames = _recolour(frames, [1 + self.jitter * (2 * factor - 1) for factor in factors])
        if flip < self.flip:
            frames, masks = frames.flip(-1), masks.flip(-1)
            maskiges = None if maskiges is None else maskiges.flip(-1)
        return ClipExample(example.video_id, frames, maskiges, example.input_features, masks, example.label_frames)


def example_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The generator of one clip in one epoch, independent of all others."""
    state = np.random.SeedSequence([seed, epoch, index]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


def plain_example(clip: ClipPictures, image_size: int) -> ClipExample:
    """Bring a decoded clip to the input size as the processors do at inference: frames bilinear, the rest nearest.

    Args:
        clip ([`ClipPictures`])
        image_size (`int`): side in pixels; the aspect ratio is not kept.
    """
    size = (image_size, image_size)
    labels = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in clip.masks]
    stacked = np.stack(labels) if labels else np.zeros((0, *size), np.uint8)
    return ClipExample(
        clip.video_id,
        _stack_rgb(clip.frames, size, Image.Resampling.BILINEAR),
        None if clip.maskiges is None else _stack_rgb(clip.maskiges, size, Image.Resampling.NEAREST),
        clip.input_features,
        torch.from_numpy(stacked),
        clip.label_frames,
    )


class ClipNames(list[str]):
    """Names of the clips of a batch, which also keep a batch of packed clips from being cut by frames.

    `accelerate` puts streamed batches of several processes together and cuts them along the first axis, unless told
    otherwise; it begins with the names, and cannot do it to them.

    Raises:
        TypeError: says what to tell it.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        try:
            super().__init__(names)
        except TypeError as error:
            raise TypeError(
                "batches of packed clips cannot be put together and cut; for streamed rows on several processes: "
                "Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False))"
            ) from error


class ComboCollator:
    """Clips -> what [`ComboForAudioVisualSegmentation`] takes, and `video_ids` beside it.

    Args:
        use_maskige (`bool`): off: `maskige_values` is left out.
        names (`bool`): off: `video_ids` is left out, for `transformers.Trainer`, which hands all to the model.

    Returns (of a call): `dict` with `video_ids` (B strings), `pixel_values` and `maskige_values` (F, 3, H, W) float32,
    `input_features` (F, 1, 96, 64), `num_frames` (B,) int64, `mask_labels` (one (C_i, H, W) float per annotated
    frame), `class_labels` (one (C_i,) int64 each) and `label_frames` (F,) bool.
    """

    def __init__(self, use_maskige: bool = True, names: bool = True) -> None:
        self.use_maskige, self.names = use_maskige, names

    def __call__(self, examples: Sequence[ClipExample | Mapping[str, Any]]) -> dict[str, Any]:
        """Pack clips.

        Args:
            examples: clips, or rows with the same parts as [`ComboTransform`] gives them.

        Raises:
            ValueError: no clip, clips of different sizes, or something is missing.
        """
        if not isinstance(examples, (list, tuple)):
            raise TypeError(f"a batch: wanted a list of clips, got {type(examples).__name__}.")
        if not examples:
            raise ValueError("cannot make a batch of no clips.")
        clips = [as_example(entry) for entry in examples]
        sizes = {tuple(example.frames.shape[2:]) for example in clips}
        if len(sizes) > 1:
            raise ValueError(f"the clips of a batch must have one image size, got {sorted(sizes)}.")
        batch: dict[str, Any] = {"video_ids": ClipNames(example.video_id for example in clips)} if self.names else {}
        batch["pixel_values"] = self._normalise([example.frames for example in clips])
        if self.use_maskige:
            maskiges = [example.maskiges for example in clips if example.maskiges is not None]
            if len(maskiges) < len(clips):
                without = [example.video_id for example in clips if example.maskiges is None]
                raise ValueError(f"clips without Maskiges: {without}; make them, or use a model without.")
            batch["maskige_values"] = self._normalise(maskiges)
        targets = [frame_targets(mask) for example in clips for mask in example.masks]
        return batch | {
            "input_features": torch.cat([example.input_features for example in clips]),
            "num_frames": torch.tensor([len(example.frames) for example in clips]),
            "mask_labels": [masks for masks, _ in targets],
            "class_labels": [classes for _, classes in targets],
            "label_frames": torch.cat([example.label_frames for example in clips]),
        }

    def _normalise(self, pictures: list[torch.Tensor]) -> torch.Tensor:
        return normalize(torch.cat(pictures), IMAGE_MEAN, IMAGE_STD)


def as_example(entry: ClipExample | Mapping[str, Any]) -> ClipExample:
    """The clip, from a clip or from a row of its parts.

    Raises:
        ValueError: the row lacks a part.
        TypeError: neither.
    """
    if not isinstance(entry, Mapping):
        if not isinstance(entry, ClipExample):
            raise TypeError(f"a batch: wanted clips (ClipExample) or rows of their parts, got {type(entry).__name__}.")
        return entry
    names = [field.name for field in fields(ClipExample)]
    missing = [name for name in names if name not in entry]
    if missing or not torch.is_tensor(entry["frames"]):
        raise ValueError(f"a batch: its rows need the tensors that ComboTransform makes; missing: {missing or 'all'}.")
    return ClipExample(**{name: entry[name] for name in names})


def _recolour(frames: torch.Tensor, factors: list[float]) -> torch.Tensor:
    """Multiply brightness, contrast and saturation of uint8 (T, 3, H, W) by three factors."""
    brightness, contrast, saturation = factors
    values = frames.float().mul_(brightness)
    mean = values.mean()
    values.sub_(mean).mul_(contrast).add_(mean)
    grey = torch.einsum("tchw,c->thw", values, torch.tensor(LUMA))[:, None]
    return values.sub_(grey).mul_(saturation).add_(grey).round_().clamp_(0, 255).to(torch.uint8)


def _stack_rgb(images: Sequence[Image.Image], size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    arrays = [np.asarray(image.resize(size, resample)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()  # (T, 3, H, W)
