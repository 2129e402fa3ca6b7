"""Semantic-SAM (Li et al., 2023, arXiv:2307.04767), inference path: frame and clicks -> masks at six levels of detail.

Written from the architecture (Swin, Mask DINO's deformable pixel decoder, a box-refining decoder with six tokens for
every click), with the sizes of the release; nothing of the release is in here. Two of its habits are kept because its
weights need them: the clicks of one call attend to each other, and the last norm is applied twice. Departures, equal
up to rounding: values of the frame are projected once per frame instead of once per batch of clicks; in the last
layer only the tokens asked for are carried on.

Axes: F frames, H W pixels of a frame, h w stride-4 mask, P clicks, T tokens of a click, N = P * T queries, S cells of
all four scales, d width, M heads, L scales, R points that a head reads in a scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as nnf
from torch import nn
from transformers import AutoBackbone, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from combo_hf.proposals.configuration_semantic_sam import SemanticSamConfig
from combo_hf.proposals.modeling_semantic_sam_encoder import (
    ProjectedValues,
    SemanticSamDeformableAttention,
    SemanticSamPixelDecoder,
)


PAD_TO = 32  # frames are padded right and below to a multiple of this


@dataclass(frozen=True)
class SemanticSamFeatures:
    """What the decoder needs of a batch of frames of one size.

    Args:
        mask_features: (F, d, h, w).
        values: for every decoder layer its projected values, scales coarse to fine.
        size: (H, W) of the frames.
        padded_size: (H', W') after padding to a multiple of 32.
    """

    mask_features: torch.Tensor
    values: list[ProjectedValues]
    size: tuple[int, int]
    padded_size: tuple[int, int]


@dataclass
class SemanticSamOutput(ModelOutput):
    """Masks of clicks.

    Args:
        mask_logits (`torch.Tensor` of shape `(F, P, T, h, w)`): at stride 4 of the padded frame; > 0 is inside.
        iou_scores (`torch.Tensor` of shape `(F, P, T)`): predicted quality of the masks, about 0 to 1, not clipped.
    """

    mask_logits: torch.Tensor | None = None
    iou_scores: torch.Tensor | None = None


class SemanticSamMLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            states = layer(states).relu_()
        return self.layers[-1](states)


class SemanticSamDecoderLayer(nn.Module):
    """Self-attention of all queries, deformable cross-attention around each query's box, feed-forward; post-norm."""

    def __init__(self, config: SemanticSamConfig, scales: int) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.cross_attn = SemanticSamDeformableAttention(config, scales)
        self.cross_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.decoder_feedforward_dim)
        self.fc2 = nn.Linear(config.decoder_feedforward_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(
        self,
        hidden: torch.Tensor,
        position: torch.Tensor,
        boxes: torch.Tensor,
        values: ProjectedValues,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Args: hidden, position (F, N, d); boxes (F, N, 4); kept (N',): the queries whose result is wanted.
        Returns: (F, N or N', d)."""
        placed = hidden + position
        key, value = self.k_proj(placed), self.v_proj(hidden)
        if kept is not None:
            hidden, placed, position, boxes = (states[:, kept] for states in (hidden, placed, position, boxes))

        def split(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (F, M, N, d/M)

        read = nnf.scaled_dot_product_attention(split(self.q_proj(placed)), split(key), split(value))
        hidden = self.self_attn_layer_norm(hidden + self.out_proj(read.transpose(1, 2).flatten(2)))
        hidden = self.cross_attn_layer_norm(hidden + self.cross_attn(hidden + position, boxes, values))
        return self.final_layer_norm(hidden + self.fc2(self.fc1(hidden).relu_()))


class SemanticSamDecoder(nn.Module):
    """Clicks -> T masks each. A click starts as a very small box; every layer moves and resizes the boxes."""

    def __init__(self, config: SemanticSamConfig, scales: int) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.click_box_size = config.click_box_size
        self.mask_tokens = nn.Embedding(len(config.level_tokens), dim)
        self.label_embed = nn.Embedding(2, dim)  # row 0 for clicks and boxes, row 1 not used at inference
        self.prompt_embed = nn.Embedding(2, dim)  # row 0 for clicks, row 1 for boxes
        self.position_mlp = SemanticSamMLP(2 * dim, dim, dim)
        self.layers = nn.ModuleList(SemanticSamDecoderLayer(config, scales) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(dim)
        self.box_head = SemanticSamMLP(dim, dim, dim, 4)
        self.mask_head = SemanticSamMLP(dim, dim, dim, dim)
        self.iou_head = SemanticSamMLP(dim, dim, dim, 1)

    def project(self, scales: list[torch.Tensor]) -> list[ProjectedValues]:
        """Values of every layer, coarse to fine; the part of the decoder that depends on the frame only."""
        shapes = [(maps.shape[-2], maps.shape[-1]) for maps in reversed(scales)]
        cells = torch.cat([maps.flatten(2).transpose(1, 2) for maps in reversed(scales)], dim=1)  # (F, S, d)
        layers = cast(list[SemanticSamDecoderLayer], self.layers)
        return [layer.cross_attn.project(cells, shapes) for layer in layers]

    def forward(
        self,
        features: SemanticSamFeatures,
        points: torch.Tensor,
        tokens: list[int],
        tap: dict[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Args: points (F, P, 2) as (x, y) in [0, 1] of the frame; tokens: which of the T tokens are wanted.
        Returns: mask logits (F, P, len(tokens), h, w) and IoU scores (F, P, len(tokens))."""
        frames, clicks = points.shape[:2]
        count = self.mask_tokens.num_embeddings
        boxes = self.click_boxes(features, points).repeat_interleave(count, dim=1)  # (F, N, 4)
        start = self.mask_tokens.weight + self.label_embed.weight[0] + self.prompt_embed.weight[0]
        hidden = start.repeat(clicks, 1).expand(frames, -1, -1)  # (F, N, d), all tokens of a click side by side
        wanted = torch.tensor(tokens, device=points.device)
        kept = (torch.arange(clicks, device=points.device)[:, None] * count + wanted).flatten()  # (P * len(tokens),)
        last = len(self.layers) - 1
        for index, (layer, values) in enumerate(zip(self.layers, features.values, strict=True)):
            position = self.position_mlp(sine_box_embedding(boxes, hidden))
            hidden = layer(hidden, position, boxes, values, kept if index == last and tap is None else None)
            if index < last or tap is not None:
                boxes = torch.sigmoid(inverse_sigmoid(boxes) + self.box_head(hidden).float())
            if tap is not None:
                tap[f"decoder_layer/{index}"] = hidden
        if tap is not None:
            tap["boxes"], hidden = boxes, hidden[:, kept]
        hidden = self.layer_norm(self.layer_norm(hidden))  # twice, as in the release
        masks = torch.einsum("fnd,fdhw->fnhw", self.mask_head(hidden), features.mask_features)
        return masks.unflatten(1, (clicks, -1)), self.iou_head(hidden).view(frames, clicks, -1)

    def click_boxes(self, features: SemanticSamFeatures, points: torch.Tensor) -> torch.Tensor:
        """(F, P, 2) in [0, 1] of the frame -> boxes (F, P, 4) in [0, 1] of the padded frame, float32."""
        (height, width), (padded_height, padded_width) = features.size, features.padded_size
        part = points.new_tensor([width / padded_width, height / padded_height])
        return torch.cat([points, torch.full_like(points, self.click_box_size)], dim=-1) * part.repeat(2)


class SemanticSamModel(PreTrainedModel):
    """Semantic-SAM for click prompts: `encode` once per frame, `decode` per batch of clicks."""

    config_class = SemanticSamConfig
    base_model_prefix = "semantic_sam"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _supports_sdpa = True
    _no_split_modules = ["SemanticSamPixelDecoderLayer", "SemanticSamDecoderLayer"]

    def __init__(self, config: SemanticSamConfig) -> None:
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        self.pixel_decoder = SemanticSamPixelDecoder(config, self.backbone.channels)
        self.decoder = SemanticSamDecoder(config, scales=len(self.backbone.channels))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SemanticSamPixelDecoder):
            init.normal_(module.level_embed)

    def encode(self, pixel_values: torch.Tensor, tap: dict[str, torch.Tensor] | None = None) -> SemanticSamFeatures:
        """The part that depends on the frames only.

        Args:
            pixel_values (`torch.Tensor` of shape `(F, 3, H, W)`): normalised frames of any one size, not padded.
            tap (`dict`, *optional*): filled with intermediate states by name.

        Raises:
            ValueError: another shape, or no pixels.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or 0 in pixel_values.shape:
            raise ValueError(f"pixel_values: wanted shape (frames, 3, H, W), got {tuple(pixel_values.shape)}.")
        height, width = pixel_values.shape[-2:]
        padded = nnf.pad(pixel_values.to(self.dtype), (0, -width % PAD_TO, 0, -height % PAD_TO))
        maps = self.backbone(padded).feature_maps
        mask_features, scales = self.pixel_decoder(maps, tap)
        if tap is not None:
            tap.update({f"backbone/{index}": level for index, level in enumerate(maps)}, mask_features=mask_features)
            tap.update({f"multi_scale/{index}": level for index, level in enumerate(scales)})
        return SemanticSamFeatures(
            mask_features, self.decoder.project(scales), (height, width), (padded.shape[-2], padded.shape[-1])
        )

    def decode(
        self,
        features: SemanticSamFeatures,
        points: torch.Tensor,
        levels: list[int] | None = None,
        tap: dict[str, torch.Tensor] | None = None,
    ) -> SemanticSamOutput:
        """Masks of clicks. All clicks of a call see each other: the result of one depends on the others.

        Args:
            features: what `encode` gave.
            points (`torch.Tensor` of shape `(F, P, 2)`): (x, y) of the clicks as parts of the frame, in [0, 1].
            levels (`list[int]`, *optional*): levels of detail wanted, 1 to T, in this order; default: all.
            tap (`dict`, *optional*): filled with intermediate states by name.

        Raises:
            ValueError: another shape, no click, a level that does not exist.
        """
        if points.ndim != 3 or points.shape[-1] != 2 or points.shape[1] == 0:
            raise ValueError(f"points: wanted shape (frames, clicks, 2), got {tuple(points.shape)}.")
        if points.shape[0] != len(features.mask_features):
            raise ValueError(f"points are for {len(points)} frames, the features of {len(features.mask_features)}.")
        known = len(self.config.level_tokens)
        levels = list(range(1, known + 1)) if levels is None else list(levels)
        if not levels or any(level not in range(1, known + 1) for level in levels):
            raise ValueError(f"levels: wanted some of 1 to {known}, got {levels}.")
        points = points.to(features.mask_features.device, torch.float32)
        tokens = [self.config.level_tokens[level - 1] for level in levels]
        masks, scores = self.decoder(features, points, tokens, tap)
        return SemanticSamOutput(mask_logits=masks, iou_scores=scores)

    def forward(
        self, pixel_values: torch.Tensor, points: torch.Tensor, levels: list[int] | None = None
    ) -> SemanticSamOutput:
        """[`encode`], then [`decode`]."""
        return self.decode(self.encode(pixel_values), points, levels)


def enlarge(logits: torch.Tensor, features: SemanticSamFeatures) -> torch.Tensor:
    """Mask logits (N, h, w) -> (N, H, W) float32 at the frame's own size: bilinear to the padded size, then cut."""
    height, width = features.size
    grown = nnf.interpolate(logits[None].float(), size=features.padded_size, mode="bilinear", align_corners=False)
    return grown[0, :, :height, :width]


def sine_box_embedding(boxes: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sine codes of boxes (x, y, width, height) in the order y, x, width, height.

    Args: boxes (F, N, 4); like (.., d): gives width and dtype.
    Returns: (F, N, 2d).
    """
    quarter = like.shape[-1] // 2
    exponent = 2 * torch.div(torch.arange(quarter, device=boxes.device), 2, rounding_mode="floor") / quarter
    ordered = boxes[..., [1, 0, 2, 3]]
    angle = ordered[..., None] * (2 * math.pi) / 10000**exponent  # (F, N, 4, quarter)
    codes = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1)
    return codes.flatten(2).to(like.dtype)


def inverse_sigmoid(values: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """log(v / (1 - v)), both kept at least `eps`."""
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=eps) / (1 - values).clamp(min=eps))
