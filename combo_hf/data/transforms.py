"""Decoded clips -> clips at the input size: the official augmentation of each subset, and plain resizing.

    subset    training                                                           evaluation
    s4, ms3   shortest side drawn from 16 sizes (half to twice the input size,   resize, aspect ratio not kept
              longest at most four times), crop, colour jitter, flip, pad
    avss      shortest side = input size, centre crop, colour jitter, flip       resize, aspect ratio not kept

Frames are resized bilinearly, masks and Maskiges by nearest neighbour. One geometry and one set of colours is drawn
per clip: a camera does not change from one second to the next, and the frames stay comparable for the consistency
loss. Maskiges share the geometry and keep their colours, which are codes. The release (COMBO-AVS, its three data set
mappers) shares the geometry only: see `official_jitter` and `official_maskige_resize` of [`TrainTransform`].

All randomness comes from the generator that is passed. torchvision does the pixel work of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from combo_hf.configuration_combo import IGNORE_INDEX
from combo_hf.data.collate import ClipExample, plain_example
from combo_hf.data.rows import ClipPictures
from combo_hf.data.subsets import GEOMETRIES, OWN, OWN_GEOMETRY, subset_rule


MAX_SCALE = 4  # longest side in input sizes: 896 pixels for 224
PAD_COLOUR = 128  # of frames and Maskiges

# The colour jitter of SSD (Liu et al., ECCV 2016): each of the four changes happens with probability one half.
MAX_BRIGHTNESS = 32 / 255  # added
CONTRAST_RANGE = (0.5, 1.5)  # factor of all channels, with black as the fixed point
SATURATION_RANGE = (0.5, 1.5)  # factor of S in HSV
MAX_HUE = 18 / 180  # turns


@dataclass(frozen=True)
class EvalTransform:
    """Frames, Maskiges and masks at the input size, as the processors bring them there at inference.

    Attributes:
        image_size: side in pixels.
    """

    image_size: int = 224

    def __post_init__(self) -> None:
        _check_size(self.image_size)

    def __call__(self, clip: ClipPictures, generator: torch.Generator | None = None) -> ClipExample:
        """Resize; nothing is drawn from the generator."""
        return plain_example(clip, self.image_size)


@dataclass(frozen=True)
class TrainTransform:
    """The augmentation of one subset; see the head of this file.

    Attributes:
        image_size: side in pixels of what comes out.
        geometry: "scale_crop" (S4, MS3) or "centre_crop" (AVSS).
        jitter: change colours.
        flip: probability of a horizontal flip, in [0, 1].
        official_jitter: as the release does it, each frame gets colours of its own, and Maskiges are recoloured, too.
            Off, which is not the release's: one set of colours for all frames of a clip, none for Maskiges.
        official_maskige_resize: as the release does it for S4 and MS3, Maskiges are resized bilinearly, which blends
            the codes of neighbouring segments. Off, which is not the release's: nearest neighbour.
        min_scale, max_scale: of the shortest side, in input sizes, in steps of a tenth ("scale_crop" only).
        jitter_strength: 1 is the release's jitter; colours change by so much of it.

    Raises:
        ValueError: a value out of range.
    """

    image_size: int = 224
    geometry: str = "scale_crop"
    jitter: bool = True
    flip: float = 0.5
    official_jitter: bool = False
    official_maskige_resize: bool = False
    min_scale: float = 0.5
    max_scale: float = 2.0
    jitter_strength: float = 1.0

    def __post_init__(self) -> None:
        _check_size(self.image_size)
        if not 0.1 <= self.min_scale <= self.max_scale <= MAX_SCALE:
            raise ValueError(
                f"min_scale, max_scale: wanted 0.1 <= min_scale <= max_scale <= {MAX_SCALE}, got {self.min_scale} and "
                f"{self.max_scale}."
            )
        if not 0 <= self.jitter_strength <= 2:
            raise ValueError(f"jitter_strength: wanted 0 to 2, got {self.jitter_strength}.")
        if self.geometry not in GEOMETRIES:
            raise ValueError(f"geometry: wanted 'scale_crop' or 'centre_crop', got {self.geometry!r}.")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: wanted a probability in [0, 1], got {self.flip}.")

    def __call__(self, clip: ClipPictures, generator: torch.Generator) -> ClipExample:
        """A changed clip of the input size.

        Args:
            clip ([`ClipPictures`]): pictures of another size than the first frame show the same field of view.
            generator (`torch.Generator`): the only source of randomness.

        Raises:
            ImportError: torchvision is not installed.
        """
        width, height = clip.frames[0].size
        placement = self._place((height, width), generator)
        frames = placement.apply(clip.frames, smooth=True)  # (T, 3, h, w)
        if self.jitter and not self.official_jitter:
            frames = Colours.draw(generator, self.jitter_strength).apply(frames)
        elif self.jitter:
            frames = _recolour_each(frames, generator, self.jitter_strength)
        maskiges = None
        if clip.maskiges is not None:
            maskiges = placement.apply(clip.maskiges, smooth=self.official_maskige_resize)
            if self.jitter and self.official_jitter:
                maskiges = _recolour_each(maskiges, generator, self.jitter_strength)
            maskiges = placement.pad(maskiges, PAD_COLOUR)
        masks = torch.zeros(0, self.image_size, self.image_size, dtype=torch.uint8)
        if clip.masks:
            masks = placement.apply([Image.fromarray(mask) for mask in clip.masks], smooth=False)
            masks = placement.pad(masks, IGNORE_INDEX)[:, 0]  # (A, H, W)
        frames = placement.pad(frames, PAD_COLOUR)
        return ClipExample(clip.video_id, frames, maskiges, clip.input_features, masks, clip.label_frames)

    def _place(self, source: tuple[int, int], generator: torch.Generator) -> Placement:
        scale, top, left, flip = torch.rand(4, generator=generator).tolist()
        height, width = source
        if self.geometry == "centre_crop":
            size = height * self.image_size // min(source), width * self.image_size // min(source)
            offset = round((size[0] - self.image_size) / 2), round((size[1] - self.image_size) / 2)
        else:
            tenths = range(round(10 * self.min_scale), round(10 * self.max_scale) + 1)
            shortest = self.image_size * tenths[int(scale * len(tenths))] // 10
            factor = min(shortest / min(height, width), MAX_SCALE * self.image_size / max(height, width))
            size = max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
            free = [max(0, side - self.image_size) for side in size]
            offset = int(top * (free[0] + 1)), int(left * (free[1] + 1))
        return Placement(size, offset, flip < self.flip, self.image_size)


@dataclass(frozen=True)
class Placement:
    """Where a clip's pictures go, the same for all of them.

    Attributes:
        size: height and width in pixels that they are resized to.
        offset: row and column at which the crop begins.
        flip: turn left and right.
        side: height and width of the crop; what it lacks is padded at the right and at the bottom.
    """

    size: tuple[int, int]
    offset: tuple[int, int]
    flip: bool
    side: int

    def apply(self, images: list[Image.Image], smooth: bool) -> torch.Tensor:
        """Resize (`smooth`: bilinear, otherwise nearest), crop and flip: (N, C, h, w) uint8.

        PIL does the nearest resizing: it is what evaluation uses, and pixels that lie half-way fall to the same side.
        """
        functional = _torchvision()
        size = (self.size[1], self.size[0])
        if smooth:
            pictures = _pixels(images, images[0].size, Image.Resampling.BILINEAR)
            pictures = functional.resize(pictures, list(self.size), antialias=True)
        else:
            pictures = _pixels(images, size, Image.Resampling.NEAREST)
        height, width = (min(self.side, side) for side in self.size)
        pictures = functional.crop(pictures, *self.offset, height, width)
        return functional.horizontal_flip(pictures) if self.flip else pictures

    def pad(self, pictures: torch.Tensor, value: int) -> torch.Tensor:
        """Fill (N, C, h, w) up to the crop's side; contiguous."""
        missing = [max(0, self.side - side) for side in self.size]
        if any(missing):
            pictures = _torchvision().pad(pictures, [0, 0, missing[1], missing[0]], fill=value)
        return pictures.contiguous()  # a view would carry the whole resized clip to the process that trains


@dataclass(frozen=True)
class Colours:
    """One draw of the colour jitter; neutral values change nothing.

    Attributes:
        brightness: added, in parts of white.
        contrast, saturation: factors.
        hue: turns.
        contrast_first: before saturation and hue rather than after them.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True

    @classmethod
    def draw(cls, generator: torch.Generator, strength: float = 1.0) -> Colours:
        """Nine numbers are drawn, whatever comes out; the changes are `strength` times those of the release."""
        bright, contrast, saturate, turn, first, *values = torch.rand(9, generator=generator).tolist()
        return cls(
            brightness=strength * (2 * values[0] - 1) * MAX_BRIGHTNESS if bright < 0.5 else 0.0,
            contrast=_around_one(CONTRAST_RANGE, values[1], strength) if contrast < 0.5 else 1.0,
            saturation=_around_one(SATURATION_RANGE, values[2], strength) if saturate < 0.5 else 1.0,
            hue=strength * (2 * values[3] - 1) * MAX_HUE if turn < 0.5 else 0.0,
            contrast_first=first < 0.5,
        )

    def apply(self, pictures: torch.Tensor) -> torch.Tensor:
        """Recolour (N, 3, H, W) uint8, one by one: a picture with its channels one after the other stays in a core's
        cache, which halves the time."""
        if self == Colours(contrast_first=self.contrast_first):
            return pictures
        return torch.cat([self._recolour(picture) for picture in pictures.contiguous().split(1)])

    def _recolour(self, pictures: torch.Tensor) -> torch.Tensor:  # (1, 3, H, W)
        functional = _torchvision()
        values = functional.to_dtype(pictures, torch.float32, scale=True)
        if self.brightness:
            values = (values + self.brightness).clamp_(0, 1)
        if self.contrast_first and self.contrast != 1:
            values = functional.adjust_brightness(values, self.contrast)  # torchvision's word for a factor
        if self.saturation != 1:
            values = _saturate(values, self.saturation)
        if self.hue:
            values = turn_hue(values, self.hue)
        if not self.contrast_first and self.contrast != 1:
            values = functional.adjust_brightness(values, self.contrast)
        return values.mul_(255).round_().to(torch.uint8)


def build_transform(
    subset: str,
    train: bool,
    image_size: int = 224,
    official_jitter: bool = False,
    official_maskige_resize: bool = False,
    jitter: bool = True,
    flip: float = 0.5,
    geometry: str | None = None,
    min_scale: float = 0.5,
    max_scale: float = 2.0,
    jitter_strength: float = 1.0,
) -> TrainTransform | EvalTransform:
    """What is done to the clips of a subset; for the arguments see [`TrainTransform`].

    Args:
        subset (`str`): "s4", "ms3", "avss" or "own".
        train (`bool`): augment; otherwise the clips are only resized, and all other arguments but `image_size` play no
            part.
        geometry (`str`, *optional*): "scale_crop" or "centre_crop"; default: what the subset has in the release.

    Raises:
        ValueError: unknown subset, or a value out of range.
    """
    default = OWN_GEOMETRY if subset == OWN else subset_rule(subset).geometry
    if not train:
        return EvalTransform(image_size)
    options = (jitter, flip, official_jitter, official_maskige_resize, min_scale, max_scale, jitter_strength)
    return TrainTransform(image_size, geometry or default, *options)


def _saturate(values: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply S of HSV, at most up to 1; V and H stay.

    torchvision blends with luma instead, which changes V. Here the distance of every channel to the largest one grows
    by the factor: that is S * factor, without the way to HSV and back.
    """
    top = values.amax(-3, keepdim=True)
    spread = top - values.amin(-3, keepdim=True)
    growth = (top / spread.clamp(min=1e-6)).clamp(max=factor)
    return top - (top - values) * growth


def turn_hue(values: torch.Tensor, turns: float) -> torch.Tensor:
    """Add to H of HSV; S and V stay. As torchvision's `adjust_hue`, in a third of its time.

    A channel lies below V by V * S times a ramp of H that is 0 on two sixths of the circle and 1 on two others.
    """
    red, green, blue = values.unbind(-3)
    top = torch.maximum(torch.maximum(red, green), blue)
    spread = top - torch.minimum(torch.minimum(red, green), blue)
    sixth = torch.where(green == top, blue - red + 2 * spread, red - green + 4 * spread)
    sixth = torch.where(red == top, green - blue, sixth).div_(spread.clamp(min=1e-9))  # H from -1 to 5
    out, ramp = torch.empty_like(values), torch.empty_like(sixth)
    for channel, middle in enumerate((3, 1, -1)):  # where on the circle its ramp is highest, but for the turn
        torch.add(sixth, (middle + 6 * turns + 5) % 6 - 5, out=ramp)  # distance to there, -6 to 6
        ramp.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)  # 1 where it is less than 1 or more than 5, 0 from 2 to 4
        torch.sub(top, ramp.mul_(spread), out=out[..., channel, :, :])
    return out


def _recolour_each(pictures: torch.Tensor, generator: torch.Generator, strength: float) -> torch.Tensor:
    return torch.cat([Colours.draw(generator, strength).apply(picture) for picture in pictures.split(1)])


def _around_one(limits: tuple[float, float], part: float, strength: float) -> float:
    low, high = (max(0.0, 1 + strength * (limit - 1)) for limit in limits)
    return low + part * (high - low)


def _pixels(images: list[Image.Image], size: tuple[int, int], resample: Image.Resampling) -> torch.Tensor:
    """Images of one (width, height), resized to it where they differ: (N, C, H, W) uint8."""
    arrays = [np.asarray(image if image.size == size else image.resize(size, resample)) for image in images]
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)


def _check_size(image_size: int) -> None:
    if image_size < 32:
        raise ValueError(f"image_size: wanted at least 32 pixels, got {image_size}.")


def _torchvision() -> Any:
    try:
        from torchvision.transforms.v2 import functional
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch: the latter two
        raise ImportError(f"the augmentation needs torchvision: pip install 'combo-hf[train]' ({error})") from error
    return functional
