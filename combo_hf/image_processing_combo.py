"""Frames and Maskiges -> tensors, label maps -> training targets, network outputs -> label maps.

As the release prepares its test data: RGB 0..255, frames resized bilinearly and Maskiges and labels by "nearest"
straight to the input size (the aspect ratio is not kept), then normalised with the ImageNet mean and standard
deviation on 0..255, the Maskige like the frame. Inference is Mask2Former's semantic rule (no threshold).

One processor with a second input serves frames and Maskiges: a second image processor of an external package could
not be loaded by `AutoProcessor`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend

from .configuration_combo import IGNORE_INDEX
from .label_maps_combo import Size, check_outputs, segment
from .remote_code_combo import check_kind


MAX_SIDE = 8192


class ComboImagesKwargs(TypedDict, total=False):
    """What a saved `ComboImageProcessor` consists of."""

    size: dict[str, int] | int | tuple[int, int] | None
    image_mean: list[float] | tuple[float, ...] | None
    image_std: list[float] | tuple[float, ...] | None
    num_labels: int | None


class SemanticMaps(NamedTuple):
    """Label maps with their scores.

    Attributes:
        label_maps (`list[torch.LongTensor]`): per clip (T, H, W), class ids.
        scores (`list[torch.FloatTensor]`): per clip (T, K, H, W); sums over queries of class probability x mask
            probability, not normalised.
    """

    label_maps: list[torch.Tensor]
    scores: list[torch.Tensor]


class ComboImageProcessor(PilBackend):
    r"""Prepares the pictures of COMBO and turns its predictions into label maps.

    Args:
        size (`dict` or `int`, *optional*, defaults to `{"height": 224, "width": 224}`): input size in pixels.
        image_mean (`list[float]`, *optional*, defaults to `[123.675, 116.28, 103.53]`): mean of R, G, B on 0..255.
        image_std (`list[float]`, *optional*, defaults to `[58.395, 57.12, 57.375]`): standard deviation likewise.
        num_labels (`int`, *optional*): K, background included. If given, label maps with other ids are refused.

    Raises:
        ValueError: `size` without height and width.

    Examples:
        >>> import numpy as np
        >>> from combo_hf import ComboImageProcessor
        >>> frame, labels = np.zeros((240, 320, 3), np.uint8), np.zeros((240, 320), np.uint8)
        >>> labels[:120] = 1
        >>> batch = ComboImageProcessor(size=96).preprocess([frame], segmentation_maps=[labels])
        >>> batch["pixel_values"].shape, batch["mask_labels"][0].shape, batch["class_labels"]
        (torch.Size([1, 3, 96, 96]), torch.Size([2, 96, 96]), [tensor([0, 1])])
    """

    valid_kwargs = ComboImagesKwargs  # type: ignore[assignment]  # a plain dict type: only what is saved
    model_input_names = ["pixel_values", "maskige_values"]
    size = {"height": 224, "width": 224}
    image_mean = (123.675, 116.28, 103.53)
    image_std = (58.395, 57.12, 57.375)
    num_labels = None

    def __init__(self, **kwargs: Any) -> None:
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        if isinstance(kwargs.get("size"), int):  # the base class would read it as the shortest edge
            kwargs["size"] = {"height": kwargs["size"], "width": kwargs["size"]}
        super().__init__(**kwargs)
        for unused in ("crop_size", "pad_size"):  # the base class sets them, this processor does neither
            self.__dict__.pop(unused, None)
        if any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in self.input_size):
            raise ValueError(f"size: wanted {{'height': .., 'width': ..}}, 1 to {MAX_SIDE}, got {dict(self.size)}.")
        for name, least in (("image_mean", -math.inf), ("image_std", 0.0)):
            _check_channels(name, getattr(self, name), least)
        if self.num_labels is not None and self.num_labels not in range(2, IGNORE_INDEX + 1):
            raise ValueError(f"num_labels: wanted 2 to 255 with the background, got {self.num_labels!r}.")

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class; settings of another class are a `ValueError`."""
        check_kind("processor: image_processor_type", cls.__name__, image_processor_dict.get("image_processor_type"))
        return super().from_dict(image_processor_dict, **kwargs)

    @property
    def input_size(self) -> Size:
        """(height, width) in pixels of everything this processor produces."""
        return self.size["height"], self.size["width"]

    def preprocess(
        self,
        images: Sequence[Any],
        maskiges: Sequence[Any] | None = None,
        segmentation_maps: Sequence[Any] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prepare packed frames (all frames of all clips, one after the other).

        Args:
            images: F frames: PIL (any mode, EXIF orientation applied, alpha ignored), or numpy / torch (H, W, 3) or
                (3, H, W), uint8 or float in 0..1; sizes may differ.
            maskiges: F Maskiges, RGB likewise.
            segmentation_maps: F label maps (H, W) of class ids, `None` for frames without annotation; 255 = ignored
                (it belongs to no mask). PIL of mode P gives its indices. Binary masks hold 0 and 1, not 0 and 255.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`] with `pixel_values` (F, 3, H, W) float32; `maskige_values` likewise, if Maskiges were
            given; and if label maps were given `mask_labels`, a list with (C_i, H, W) float32 for every annotated
            frame, `class_labels`, a list with (C_i,) int64, and `label_frames` (F,) bool. C_i = the classes present,
            background 0 included.

        Raises:
            ValueError: no frames, different numbers of frames and others, wrong shape or values, a class id that does
                not exist. The message names the entry.
            TypeError: not a picture.
        """
        images = list(images)
        if not images:
            raise ValueError("No frames: wanted at least one image.")
        data: dict[str, Any] = {"pixel_values": self._values(images, Image.Resampling.BILINEAR, "images")}
        if maskiges is not None:
            _check_count("maskiges", maskiges, len(images))
            data["maskige_values"] = self._values(maskiges, Image.Resampling.NEAREST, "maskiges")
        if segmentation_maps is not None:
            _check_count("segmentation_maps", segmentation_maps, len(images))
            data.update(self._targets(segmentation_maps))
        return to_batch(data, return_tensors)

    def denormalize(self, values: torch.Tensor | np.ndarray) -> np.ndarray:
        """Undo the normalisation.

        Args:
            values (`torch.Tensor` or `np.ndarray` of shape `(F, 3, H, W)`): `pixel_values` or `maskige_values`.

        Returns:
            `np.ndarray` (F, H, W, 3) uint8, RGB.

        Raises:
            ValueError: wrong shape.
        """
        tensor = torch.as_tensor(values).detach().float().cpu()
        if tensor.ndim != 4 or tensor.shape[1] != 3:
            raise ValueError(f"values: wanted shape (F, 3, H, W), got {tuple(tensor.shape)}.")
        mean, std = (torch.tensor(stat).view(1, 3, 1, 1) for stat in (self.image_mean, self.image_std))
        return (tensor * std + mean).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        num_frames: torch.Tensor | Sequence[int],
        target_sizes: Sequence[Size | None] | None = None,
        return_scores: bool = False,
    ) -> list[torch.Tensor] | SemanticMaps:
        """Label maps of every clip, by the inference rule of the release.

        Mask logits are enlarged bilinearly to the input size (4h, 4w); a class' score is the sum over queries of its
        probability (softmax, "no object" left out afterwards) x mask probability (sigmoid); scores are enlarged
        bilinearly to the target size; the highest wins. Frames are handled one by one, classes a few at a time.

        Args:
            outputs: with `class_queries_logits` (F, Q, K + 1) and `masks_queries_logits` (F, Q, h, w).
            num_frames (`torch.LongTensor` of shape `(B,)` or list): frames per clip, F in sum.
            target_sizes (list of `(height, width)` or `None`, *optional*): one entry per clip; `None`: input size.
            return_scores (`bool`): give the score maps too. They take 4 * T * K * H * W bytes (1080p, 71 classes: 0.6
                GB a frame).

        Returns:
            list of `torch.LongTensor` (T, H, W), one per clip; or, with `return_scores`, [`SemanticMaps`].

        Raises:
            ValueError: shapes, `num_frames` and `target_sizes` do not fit each other.
        """
        classes, masks = outputs["class_queries_logits"], outputs["masks_queries_logits"]
        counts = [int(count) for count in num_frames]
        targets = check_outputs(classes, masks, counts, target_sizes)
        label_maps, scores = [], []
        for (first, last), target in zip(_ranges(counts), targets, strict=True):
            frames = [
                segment(classes[frame], masks[frame], target, enlarge_scores=return_scores)
                for frame in range(first, last)
            ]
            label_maps.append(torch.stack([maps.labels for maps in frames]))
            if return_scores:
                scores.append(torch.stack([maps.scores for maps in frames]))
        return SemanticMaps(label_maps, scores) if return_scores else label_maps

    def _values(self, images: Sequence[Any], resample: Image.Resampling, name: str) -> torch.Tensor:
        height, width = self.input_size
        values = torch.empty(len(images), 3, height, width)
        for index, image in enumerate(images):
            resized = to_rgb(image, f"{name}[{index}]").resize((width, height), resample)
            values[index] = torch.from_numpy(np.array(resized)).permute(2, 0, 1)  # (3, H, W)
        return normalize(values, self.image_mean, self.image_std)

    def _targets(self, segmentation_maps: Sequence[Any]) -> dict[str, Any]:
        height, width = self.input_size
        mask_labels, class_labels, label_frames = [], [], []
        for index, entry in enumerate(segmentation_maps):
            label_frames.append(entry is not None)
            if entry is None:
                continue
            labels = to_label_map(entry, self.num_labels, f"segmentation_maps[{index}]")
            resized = np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
            masks, classes = frame_targets(torch.from_numpy(resized))
            mask_labels.append(masks)  # (C_i, H, W)
            class_labels.append(classes)  # (C_i,)
        return {"mask_labels": mask_labels, "class_labels": class_labels, "label_frames": torch.tensor(label_frames)}


def normalize(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(pixels - mean) / std per channel: (..., 3, H, W) on 0..255, of any dtype -> float32; floats are overwritten."""
    shift, scale = (torch.tensor(channels, device=pixels.device).view(3, 1, 1) for channels in (mean, std))
    return pixels.float().sub_(shift).div_(scale)


def frame_targets(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Label map -> training targets of its frame.

    Args:
        labels: (H, W) class ids; pixels of 255 (ignored) belong to no mask.

    Returns:
        One binary mask per class present, background included: (C, H, W) float32, and their ids (C,) int64.
    """
    classes = torch.unique(labels)
    classes = classes[classes != IGNORE_INDEX]
    return (labels[None] == classes[:, None, None]).float(), classes.long()


def to_rgb(image: Any, name: str = "image") -> Image.Image:
    """Check one picture and return it as an upright RGB image.

    Args:
        image: PIL image of any mode, or numpy / torch (H, W, 3) or (3, H, W), uint8 or float in 0..1.
        name (`str`): how to call it in an error.

    Raises:
        ValueError: wrong shape or values, or a file that cannot be decoded.
        TypeError: not a picture.
    """
    if isinstance(image, Image.Image):
        return _pil_to_rgb(_upright(image, name), name)
    if isinstance(image, torch.Tensor):
        array, channels_first = image.detach().cpu().numpy(), True
    elif isinstance(image, np.ndarray):
        array, channels_first = image, False
    else:
        raise TypeError(f"{name}: wanted a PIL image, numpy array or torch tensor, got {type(image).__name__}.")
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]):
        raise ValueError(f"{name}: wanted shape (H, W, 3) or (3, H, W), got {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{name}: no pixels, shape {array.shape}.")
    if array.shape[0] == 3 and (array.shape[2] != 3 or channels_first):
        array = array.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array, name)))


def to_label_map(labels: Any, num_labels: int | None = None, name: str = "segmentation map") -> np.ndarray:
    """Check one label map.

    Args:
        labels: PIL image (indices of a palette image, grey levels otherwise; RGB only if its channels are equal), or
            numpy / torch integers (H, W), ids 0..254 and 255 = ignored.
        num_labels (`int`, *optional*): refuse ids from here on (255 excepted).
        name (`str`): how to call it in an error.

    Returns:
        `np.ndarray` (H, W) uint8.

    Raises:
        ValueError: wrong shape, values that are no ids, or an id that does not exist.
    """
    if isinstance(labels, Image.Image):
        array = np.asarray(_upright(labels, name))
        if array.ndim == 3 and (array == array[..., :1]).all():
            array = array[..., 0]
    else:
        array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: wanted class ids of shape (H, W), got shape {array.shape}; colours are not ids.")
    if array.dtype.kind not in "biu" or array.min() < 0 or array.max() > IGNORE_INDEX:
        raise ValueError(
            f"{name}: wanted integer class ids 0..254 (255 = ignored), got {array.dtype} from {array.min()} to "
            f"{array.max()}."
        )
    if num_labels is not None:
        unknown = np.unique(array[(array >= num_labels) & (array != IGNORE_INDEX)])
        if unknown.size:
            raise ValueError(
                f"{name}: class ids {unknown.tolist()} do not exist, there are {num_labels} (0 = background)."
            )
    return array.astype(np.uint8)


def to_batch(data: dict[str, Any], return_tensors: str | None) -> BatchFeature:
    """Give the batch as torch tensors ("pt") or numpy arrays ("np"); target lists stay lists.

    Raises:
        ValueError: another kind of tensor is asked for.
    """
    kind = getattr(return_tensors, "value", return_tensors)
    if kind not in ("pt", "np"):
        raise ValueError(f"return_tensors: wanted 'pt' or 'np', got {return_tensors!r}.")
    if kind == "np":
        data = {
            key: [entry.numpy() for entry in value] if isinstance(value, list) else value.numpy()
            for key, value in data.items()
        }
    return BatchFeature(data)


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError) as error:  # PIL decodes late: a broken file shows itself here
        raise ValueError(f"{name}: the image cannot be decoded ({error}).") from error


def _pil_to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        return Image.fromarray(_to_uint8(np.asarray(image), name)).convert("RGB")
    if image.mode.startswith("I"):  # PIL clips 16 bit to white; 257 maps 65535 to 255
        array = np.asarray(image)
        array = array // 257 if image.mode != "I" or array.max(initial=0) > 255 else array
        return Image.fromarray(_to_uint8(array, name)).convert("RGB")
    if image.mode in ("P", "PA"):  # straight to RGB would warn where the palette has transparent entries
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # false for NaN as well
            raise ValueError(f"{name}: wanted floats in 0..1, got {low} to {high}; divide by 255 or pass uint8.")
        return np.rint(array * 255).astype(np.uint8)
    if array.dtype.kind not in "iu" or low < 0 or high > 255:
        raise ValueError(f"{name}: wanted uint8 0..255 or float 0..1, got {array.dtype} from {low} to {high}.")
    return array.astype(np.uint8)


def _check_count(name: str, entries: Sequence[Any], wanted: int) -> None:
    if len(entries) != wanted:
        raise ValueError(f"{name}: wanted one for each of the {wanted} frames, got {len(entries)}.")


def _ranges(counts: list[int]) -> Iterator[tuple[int, int]]:
    first = 0
    for count in counts:
        yield first, first + count
        first += count


def _check_channels(name: str, values: Any, least: float) -> None:
    """Raise `ValueError` unless these are three finite numbers above `least` (0 or minus infinity)."""
    numbers = list(values) if isinstance(values, (list, tuple)) else []
    if len(numbers) != 3 or not all(type(value) in (int, float) and least < value < math.inf for value in numbers):
        more = "" if least else " above 0"
        raise ValueError(f"{name}: wanted three finite numbers{more}, of R, G and B, got {values!r}.")
