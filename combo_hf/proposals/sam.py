"""SAM, MobileSAM, SAM 2 and EdgeTAM as proposal generators, on transformers' models and our MobileSAM.

SAM (Kirillov et al., ICCV 2023) and MobileSAM (Zhang et al. 2023) mirror `ResizeLongestSide`, `Sam.preprocess` and
`Sam.postprocess_masks` of segment-anything. The release of COMBO takes both with the default grid and thresholds, SAM
as ViT-H. SAM 2 and EdgeTAM, which the paper does not use, mirror `SAM2AutomaticMaskGenerator` frame by frame: the
frame is stretched to the square input, masks are enlarged to the frame in one step. Their image processor needs
torchvision, EdgeTAM's backbone also timm; below transformers 5.20 EdgeTAM's configuration needs the Hub even for local
weights.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from combo_hf.proposals.loading import check_model_type, load_complete
from combo_hf.proposals.mask_generator import Candidates, MaskSettings, PointGridProposals


@dataclass(frozen=True)
class EncodedFrame:
    """A frame as the mask decoder needs it.

    Attributes:
        features: what the image encoder gave.
        size: height and width of the frame.
        input_size: height and width of the part of the square input that is not padding.
    """

    features: Any
    size: tuple[int, int]
    input_size: tuple[int, int]


class SamAdapter:
    """[`PointPromptModel`] over `SamModel` or a model with the same prompt encoder and mask decoder.

    Args:
        model: the network; put into evaluation mode. (`Any`: transformers' networks of this kind have no class in
            common that knows their parts.)
        image_processor: `SamImageProcessorPil`; default: one for the model's input size.
        dtype: of weights and computation. Positions of clicks stay in float32: 16 bits cannot tell pixels apart.
    """

    def __init__(self, model: Any, image_processor: Any = None, dtype: torch.dtype = torch.float32) -> None:
        self.model: Any = _cast(_with_original_norms(model.eval()), dtype)
        self.dtype = dtype
        self.side = model.config.prompt_encoder_config.image_size
        self.image_processor = image_processor or image_processor_of(model)

    def resize(self, side: int) -> None:
        """Take frames at another size of the square input; for image encoders that have no table of positions.

        Raises:
            ValueError: the network has been made for one size.
        """
        prompts = self.model.config.prompt_encoder_config
        if side == prompts.image_size:
            return
        if self.model.config.model_type != "mobile_sam":
            raise ValueError(f"input_size: this network takes {prompts.image_size} only, got {side}.")
        prompts.image_size, prompts.image_embedding_size = side, side // prompts.patch_size
        encoder = self.model.prompt_encoder
        encoder.input_image_size, encoder.image_embedding_size = side, (side // prompts.patch_size,) * 2
        self.side, self.image_processor = side, image_processor_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def encode(self, frame: Image.Image) -> EncodedFrame:
        """Resize the longest side to the input's, pad, normalise, encode."""
        factor = self.side / max(frame.size)
        if int(min(frame.size) * factor + 0.5) < 1:
            raise ValueError(
                f"a frame of {frame.width} x {frame.height} is too narrow: at a longest side of {self.side} pixels "
                "nothing of it is left; crop or stretch it."
            )
        inputs = self.image_processor(frame, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.device, self.dtype)
        with self._autocast():
            features = self.model.get_image_embeddings(pixels)
        height, width = (int(side) for side in inputs["reshaped_input_sizes"][0])
        return EncodedFrame(features, (frame.height, frame.width), (height, width))

    def decode(self, encoded: EncodedFrame, points: np.ndarray) -> Candidates:
        """Three masks for every click."""
        scale = np.array(encoded.input_size[::-1]) / np.array(encoded.size[::-1])
        clicks = torch.from_numpy(points * scale)[None, :, None]  # (1, P, 1, 2)
        clicks = clicks.to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        labels = torch.ones(clicks.shape[:3], dtype=torch.int64, device=self.device)
        with self._autocast():
            output = self.model(
                image_embeddings=encoded.features, input_points=clicks, input_labels=labels, multimask_output=True
            )
        return Candidates(output.pred_masks[0], output.iou_scores[0])

    def upscale(self, encoded: EncodedFrame, logits: torch.Tensor) -> torch.Tensor:
        """Bilinear to the square input, cut the padding off, bilinear to the frame.

        Rows and columns of padding are cut before the first step already; the one beside the picture has to stay.
        """
        factor = self.side // logits.shape[-1]
        rows, columns = (min(-(-side // factor) + 1, logits.shape[-1]) for side in encoded.input_size)
        logits = logits[:, None, :rows, :columns].float()
        logits = _bilinear(logits, (rows * factor, columns * factor))
        height, width = encoded.input_size
        return _bilinear(logits[..., :height, :width], encoded.size)[:, 0]

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class Sam2Adapter(SamAdapter):
    """[`PointPromptModel`] over `Sam2Model` or `EdgeTamModel`."""

    def encode(self, frame: Image.Image) -> EncodedFrame:
        """Stretch to the square input, normalise, encode; features of three scales."""
        inputs = self.image_processor(frame, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.device, self.dtype)
        with self._autocast():
            features = self.model.get_image_embeddings(pixels)
        return EncodedFrame(features, (frame.height, frame.width), tuple(pixels.shape[-2:]))

    def decode(self, encoded: EncodedFrame, points: np.ndarray) -> Candidates:
        """Three masks for every click."""
        scale = np.array(encoded.input_size[::-1]) / np.array(encoded.size[::-1])
        clicks = torch.from_numpy(points * scale).float()[None, :, None].to(self.device)  # (1, P, 1, 2)
        labels = torch.ones(clicks.shape[:3], dtype=torch.int32, device=self.device)
        with self._autocast():
            output = self.model(
                image_embeddings=list(encoded.features),
                input_points=clicks,
                input_labels=labels,
                multimask_output=True,
            )
        return Candidates(output.pred_masks[0], output.iou_scores[0])

    def upscale(self, encoded: EncodedFrame, logits: torch.Tensor) -> torch.Tensor:
        """Bilinear to the frame."""
        return _bilinear(logits[:, None].float(), encoded.size)[:, 0]


class SamProposals(PointGridProposals):
    """SAM's automatic masks: every frame once through the encoder, 32 x 32 clicks through the decoder."""

    name: ClassVar[str] = "sam"
    example: ClassVar[str] = "'facebook/sam-vit-huge' (the model of the paper; also -large, -base), or a folder"

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype) -> SamAdapter:
        """Load a `SamModel` and its image processor."""
        from transformers import SamModel

        check_model_type(cls.name, model, "sam")
        return load_sam(SamModel, model, device, dtype)


@dataclass(frozen=True)
class MobileSamSettings(MaskSettings):
    """[`MaskSettings`] with the side of the square that the network sees.

    Args:
        input_size: in pixels, a multiple of 64; `None`: the network's own, 1024. Half of it takes a quarter of the
            time.
    """

    input_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.input_size
        if size is not None and (type(size) is not int or size % 64 or not 64 <= size <= 4096):
            raise ValueError(f"input_size: wanted a multiple of 64 from 64 to 4096, got {self.input_size!r}.")


class MobileSamProposals(PointGridProposals):
    """MobileSAM's automatic masks; grid and thresholds are SAM's, as in the release of COMBO."""

    name: ClassVar[str] = "mobile_sam"
    example: ClassVar[str] = "a folder made by 'combo-hf proposals convert mobile_sam.pt --model mobile_sam'"
    settings_class: ClassVar[type[MaskSettings]] = MobileSamSettings
    settings: MobileSamSettings

    def __init__(self, adapter: SamAdapter, *, source: str | None = None, **options: Any) -> None:
        super().__init__(adapter, source=source, **options)
        if self.settings.input_size is not None:
            adapter.resize(self.settings.input_size)

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype) -> SamAdapter:
        """Load a converted [`MobileSamModel`] and its image processor."""
        from combo_hf.proposals.modeling_mobile_sam import MobileSamModel

        check_model_type(cls.name, model, "mobile_sam")
        return load_sam(MobileSamModel, model, device, dtype)


@dataclass(frozen=True)
class FastSamSettings(MobileSamSettings):
    """[`MobileSamSettings`] for a CPU: a quarter of the pixels, a click for each superpixel, softer edges."""

    points_per_batch: int = 4  # what stays in a CPU's cache
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.85
    clicks: str = "superpixels"
    input_size: int | None = 512


class FastMobileSamProposals(MobileSamProposals):
    """MobileSAM for processors without a graphics card: about a second a frame. Not what the release does."""

    name: ClassVar[str] = "mobile_sam_fast"
    settings_class: ClassVar[type[MaskSettings]] = FastSamSettings


@dataclass(frozen=True)
class Sam2Settings(MaskSettings):
    """[`MaskSettings`] with the defaults of SAM 2."""

    pred_iou_thresh: float = 0.8


class Sam2Proposals(PointGridProposals):
    """SAM 2's automatic masks, every frame on its own."""

    name: ClassVar[str] = "sam2"
    example: ClassVar[str] = "'facebook/sam2.1-hiera-tiny' (or -small, -base-plus, -large), or a folder"
    settings_class: ClassVar[type[MaskSettings]] = Sam2Settings
    network: ClassVar[str] = "Sam2Model"
    model_types: ClassVar[tuple[str, ...]] = ("sam2", "sam2_video")  # released files name the video model

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype) -> Sam2Adapter:
        """Load the model and its image processor.

        Raises:
            ImportError: torchvision (EdgeTAM: or timm) is missing.
        """
        import transformers

        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError, OSError) as error:
            raise ImportError(f"{cls.name} needs torchvision: pip install 'combo-hf[proposals]' ({error}).") from error
        check_model_type(cls.name, model, *cls.model_types)
        loaded = load_complete(getattr(transformers, cls.network), model, surplus=True, dtype=torch.float32)
        processor = sam2_image_processor(model, loaded.config.prompt_encoder_config.image_size)
        return Sam2Adapter(loaded.to(device), processor, dtype)


class EdgeTamProposals(Sam2Proposals):
    """EdgeTAM's automatic masks, every frame on its own."""

    name: ClassVar[str] = "edgetam"
    example: ClassVar[str] = "'yonigozlan/EdgeTAM-hf', or a folder"
    network: ClassVar[str] = "EdgeTamModel"
    model_types: ClassVar[tuple[str, ...]] = ("edgetam", "edgetam_video")


def load_sam(network: Any, model: str, device: torch.device, dtype: torch.dtype) -> SamAdapter:
    """Adapter around `network.from_pretrained(model)`."""
    from transformers import SamImageProcessorPil

    loaded = load_complete(network, model, surplus=True, dtype=torch.float32)
    try:
        processor = SamImageProcessorPil.from_pretrained(model)
    except OSError:
        processor = None  # a folder with config and weights only
    return SamAdapter(loaded.to(device), processor, dtype)


def image_processor_of(model: Any) -> Any:
    """SAM's image processor for the input size of a network."""
    from transformers import SamImageProcessorPil

    side = model.config.prompt_encoder_config.image_size
    low = 4 * side // model.config.prompt_encoder_config.patch_size
    return SamImageProcessorPil(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": low},
        mask_pad_size={"height": low, "width": low},
    )


def sam2_image_processor(model: str, side: int) -> Any:
    """SAM 2's image processor: as saved beside the weights, else for the network's input size."""
    from transformers import Sam2ImageProcessor

    try:
        return Sam2ImageProcessor.from_pretrained(model)
    except OSError:
        return Sam2ImageProcessor(size={"height": side, "width": side})


def _bilinear(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _with_original_norms(model: Any) -> Any:
    """The mask decoder's attention with the epsilon of the original, which is PyTorch's default.

    transformers' configurations, those of released checkpoints too, say 1e-6: mask logits of real weights then differ
    by up to 0.2.
    """
    for module in model.mask_decoder.transformer.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    return model


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """Weights in `dtype`, except the random frequencies of the position encoding."""
    kept = {
        name: tensor.detach().clone() for name, tensor in model.named_parameters() if "positional_embedding" in name
    }
    model.to(dtype)
    for name, tensor in model.named_parameters():
        if name in kept:
            tensor.data = kept[name]
    return model
