"""SAM (Kirillov et al., ICCV 2023) as a proposal generator, on transformers' `SamModel`.

Mirrors `ResizeLongestSide`, `Sam.preprocess` and `Sam.postprocess_masks` of segment-anything. The release of COMBO
takes the default (ViT-H) with the default grid and thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from combo_hf.proposals.mask_generator import Candidates, PointGridProposals


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
        model: the network; put into evaluation mode.
        image_processor: `SamImageProcessorPil`; default: one for the model's input size.
        dtype: of weights and computation. Positions of clicks stay in float32: 16 bits cannot tell pixels apart.
    """

    def __init__(self, model: nn.Module, image_processor: Any = None, dtype: torch.dtype = torch.float32) -> None:
        self.model = _cast(model.eval(), dtype)
        self.dtype = dtype
        self.side = model.config.prompt_encoder_config.image_size
        self.image_processor = image_processor or image_processor_of(model)

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

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class SamProposals(PointGridProposals):
    """SAM's automatic masks: every frame once through the encoder, 32 x 32 clicks through the decoder."""

    name: ClassVar[str] = "sam"
    example: ClassVar[str] = "'facebook/sam-vit-huge' (the model of the paper; also -large, -base), or a folder"

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype, **options: Any) -> SamAdapter:
        """Load a `SamModel` and its image processor."""
        from transformers import SamModel

        check_model_type(cls.name, model, "sam")
        return load_sam(SamModel, model, device, dtype)


def load_sam(network: Any, model: str, device: torch.device, dtype: torch.dtype) -> SamAdapter:
    """Adapter around `network.from_pretrained(model)`."""
    from transformers import SamImageProcessorPil

    loaded = load_complete(network, model)
    try:
        processor = SamImageProcessorPil.from_pretrained(model)
    except OSError:
        processor = None  # a folder with config and weights only
    return SamAdapter(loaded.to(device), processor, dtype)


def load_complete(network: Any, model: str) -> nn.Module:
    """`network.from_pretrained(model)` in float32, refusing weights that leave a tensor of the network unset.

    Raises:
        ValueError: tensors missing or of another shape, or values that are not finite.
        OSError: no such folder or repository, or damaged files.
    """
    try:
        loaded, report = network.from_pretrained(
            model, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{model}: these weights cannot be loaded ({_first_line(error)}).") from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(f"{model}: the weight file is damaged ({_first_line(error)}).") from error
        raise
    wrong = sorted([*report["missing_keys"], *(str(entry) for entry in report["mismatched_keys"])])
    if wrong:
        raise ValueError(f"{model}: {len(wrong)} tensors are missing or of another size: {wrong[0]}, ...")
    broken = [name for name, tensor in loaded.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(f"{model}: the weights are damaged, {broken[0]} holds values that are not finite.")
    return loaded.eval()


def check_model_type(name: str, model: str, *wanted: str) -> None:
    """Raise `ValueError` unless the configuration of a folder or repository is of a wanted type."""
    from transformers import PretrainedConfig

    if not Path(model).is_dir() and (model.startswith((".", "~", "/")) or "\\" in model or model.count("/") > 1):
        raise ValueError(f"{name}: {model}: no such folder; give a folder with config.json or a Hub id (org/name).")
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise ValueError(f"{name}: {model} holds no config.json; convert an official file with combo-hf first.")
    found = PretrainedConfig.get_config_dict(model)[0].get("model_type")
    if found not in wanted:
        raise ValueError(f"{name}: wanted weights of model type {' or '.join(wanted)}, {model} has {found}.")


def image_processor_of(model: nn.Module) -> Any:
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


def _bilinear(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Weights in `dtype`, except the random frequencies of the position encoding."""
    kept = {
        name: tensor.detach().clone() for name, tensor in model.named_parameters() if "positional_embedding" in name
    }
    model.to(dtype)
    for name, tensor in model.named_parameters():
        if name in kept:
            tensor.data = kept[name]
    return model


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
