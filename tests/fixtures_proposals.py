"""Proposal models small enough for unit tests: random weights, sensible shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from combo_hf.proposals.mask_generator import Candidates, PointGridProposals


SIDE = 64
DECODER = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
PROMPTS = {"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 4}


def picture(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """Smooth coloured areas."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def tiny_mobile_sam_config() -> Any:
    from combo_hf.proposals.modeling_mobile_sam import MobileSamConfig

    vision = {
        "hidden_sizes": [8, 12, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 2],
        "window_sizes": [3, 3, 5, 3],
        "output_channels": 16,
        "image_size": SIDE,
        "num_pos_feats": 8,
    }
    return MobileSamConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)


def tiny_sam_config() -> Any:
    from transformers import SamConfig

    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "window_size": 3,
        "global_attn_indexes": [1],
        "output_channels": 16,
        "num_pos_feats": 8,
        "image_size": SIDE,
        "initializer_range": 0.2,
    }
    return SamConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)


def random_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights under which masks and scores vary."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 * scale)
    return model.eval()


def save_proposal_model(model: Any, folder: Path) -> Path:
    from combo_hf.proposals.sam import image_processor_of

    model.save_pretrained(folder)
    image_processor_of(model).save_pretrained(folder)
    return folder


class DiscAdapter:
    """Answers a click with a disc of 8 and one of 14 pixels around it; `ious` says how sure it is."""

    def __init__(self, ious: Any = (0.95, 0.9)) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.ious, self.frames = ious, []

    def encode(self, frame: Image.Image) -> tuple[int, int]:
        self.frames.append(frame.size)
        return frame.height, frame.width

    def decode(self, encoded: tuple[int, int], points: np.ndarray) -> Candidates:
        rows, columns = (torch.arange(side) + 0.5 for side in encoded)
        center = torch.from_numpy(points).float()
        distance = torch.hypot(rows[None, :, None] - center[:, 1, None, None], columns - center[:, 0, None, None])
        logits = torch.stack([8 - distance, 14 - distance], dim=1) * 4
        return Candidates(logits, torch.tensor(self.ious).expand(len(points), -1))

    def upscale(self, encoded: tuple[int, int], logits: torch.Tensor) -> torch.Tensor:
        return F.interpolate(logits[:, None], encoded, mode="bilinear", align_corners=False)[:, 0]


class DiscProposals(PointGridProposals):
    name = "discs"

    @classmethod
    def load_adapter(cls, model: str, device: torch.device, dtype: torch.dtype) -> DiscAdapter:
        return DiscAdapter()
