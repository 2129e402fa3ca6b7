"""Pixel decoder: multi-scale deformable attention over strides 32, 16, 8, one FPN step to stride 4, plain PyTorch.

Mirrors Mask2Former's MSDeformAttnPixelDecoder as the release configures it (6 layers, 8 heads, 4 points, GroupNorm,
post-norm). Departure: no compiled operator is needed (modeling_combo_kernels.py).

Axes: F packed frames, S tokens of all three scales (7x7, 14x14, 28x28 for 224 pixels), d width, M heads, L levels, P
points.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as nnf
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_combo import ComboConfig
from .modeling_combo_kernels import (
    convolve,
    deformable_sampling,
    gathered_sampling,
    is_eager,
    linear,
    rectify,
)


DENSE_TOKENS = 4200  # up to 448 x 448 pixels; with more, products of tokens x tokens cost more than they save


def sine_position_embedding(height: int, width: int, dim: int, like: torch.Tensor) -> torch.Tensor:
    """Sine positions normalised to 2 pi, y first: (1, dim, height, width), dtype and device of `like`; not to be
    written to. Kept by size, not as buffers: those that are not persistent do not survive loading on the meta device.
    """
    compute = _kept_positions if is_eager(like) else _sine_positions
    return compute(height, width, dim, like.dtype, like.device)


def _sine_positions(height: int, width: int, dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    half = dim // 2
    scale, eps = 2 * math.pi, 1e-6
    exponent = 2 * torch.div(torch.arange(half, device=device), 2, rounding_mode="floor") / half
    frequency = 10000**exponent  # (half,)

    def encode(length: int) -> torch.Tensor:
        steps = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        angle = (steps / (steps[-1] + eps) * scale)[:, None] / frequency  # (length, half)
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    rows = encode(height).T[:, :, None].expand(half, height, width)
    columns = encode(width).T[:, None, :].expand(half, height, width)
    return torch.cat([rows, columns])[None].to(dtype)


@lru_cache(maxsize=16)
def _kept_positions(height: int, width: int, dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # or they could not be used in training
        return _sine_positions(height, width, dim, dtype, device)


class ComboDeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, eq. 3): each token reads P points in each of L maps."""

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def reset_combo_parameters(self) -> None:
        """Offsets start on a ring of one direction per head, point p at p + 1 pixels; weights start equal."""
        init.zeros_(self.sampling_offsets.weight)
        init.zeros_(self.attention_weights.weight)
        init.zeros_(self.attention_weights.bias)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ring = ring / ring.abs().max(dim=-1, keepdim=True).values  # (M, 2)
        reach = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = ring[:, None, None, :] * reach[None, None, :, None]  # (M, 1, P, 2)
        init.copy_(self.sampling_offsets.bias, bias.expand(-1, self.levels, -1, -1).reshape(-1))

    def forward(
        self,
        hidden: torch.Tensor,
        position: torch.Tensor,
        reference: torch.Tensor,
        shapes: list[tuple[int, int]],
    ) -> torch.Tensor:
        """Args: hidden, position (F, S, d) and (1, S, d); reference (S, 2) as (x, y) in [0, 1]; shapes (h, w) per
        level.
        Returns: (F, S, d)."""
        frames, tokens, dim = hidden.shape
        query = hidden + position
        value = linear(self.value_proj, hidden)  # (F, S, d)
        offsets = linear(self.sampling_offsets, query).view(frames, tokens, self.heads, self.levels, self.points, 2)
        weights = linear(self.attention_weights, query).view(-1, self.levels * self.points)
        weights = weights.T.softmax(0).T.contiguous()  # softmax over short rows takes six times as long
        weights = weights.view(frames, tokens, self.heads, self.levels, self.points)
        gathered = value.device.type == "cpu" and value.dtype == weights.dtype == offsets.dtype == torch.float32
        if gathered and torch.is_grad_enabled():
            gathered = tokens <= DENSE_TOKENS
        sample = gathered_sampling if gathered and not torch.compiler.is_compiling() else deformable_sampling
        sampled = sample(value, shapes, reference, offsets, weights)  # (F, S, d)
        return linear(self.output_proj, sampled)


class ComboFeedForwardLayer(GradientCheckpointingLayer):
    """A layer of either decoder: its feed-forward `fc1`, `fc2` begins as that of the release."""

    fc1: nn.Linear
    fc2: nn.Linear

    def reset_combo_parameters(self) -> None:
        for layer in (self.fc1, self.fc2):
            layer.reset_parameters()  # torch's default, for the bias
            init.xavier_uniform_(layer.weight)


class ComboPixelDecoderLayer(ComboFeedForwardLayer):
    """Deformable self-attention and feed-forward, post-norm."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = ComboDeformableAttention(dim, config.num_attention_heads, 3, config.pixel_decoder_points)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.pixel_decoder_feedforward_dim)
        self.fc2 = nn.Linear(config.pixel_decoder_feedforward_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(
        self,
        hidden: torch.Tensor,
        position: torch.Tensor,
        reference: torch.Tensor,
        shapes: list[tuple[int, int]],
    ) -> torch.Tensor:
        hidden = self.self_attn_layer_norm(hidden + self.self_attn(hidden, position, reference, shapes))
        return self.final_layer_norm(hidden + linear(self.fc2, rectify(linear(self.fc1, hidden))))


class ComboPixelDecoder(nn.Module):
    """Four feature maps -> mask features at stride 4 and three scales for the query decoder."""

    def __init__(self, config: ComboConfig, channels: list[int]) -> None:
        super().__init__()
        dim = config.hidden_dim
        groups = math.gcd(32, dim)
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, dim, kernel_size=1), nn.GroupNorm(groups, dim)) for c in reversed(channels[1:])
        )  # strides 32, 16, 8
        self.level_embed = nn.Parameter(torch.empty(3, dim))
        self.layers = nn.ModuleList(ComboPixelDecoderLayer(config) for _ in range(config.pixel_decoder_layers))
        self.lateral = nn.Sequential(nn.Conv2d(channels[0], dim, kernel_size=1, bias=False), nn.GroupNorm(groups, dim))
        self.output = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False), nn.GroupNorm(groups, dim), nn.ReLU()
        )
        self.mask_projection = nn.Conv2d(dim, dim, kernel_size=1)

    def reset_combo_parameters(self) -> None:
        init.normal_(self.level_embed)
        for module in self.input_projections.modules():
            if isinstance(module, nn.Conv2d):
                init.xavier_uniform_(module.weight)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Args: feature_maps: (F, C_l, ., .) of strides 4 to 32.
        Returns: mask features (F, d, h, w) and [(F, d, h/8, w/8), (F, d, h/4, w/4), (F, d, h/2, w/2)]."""
        projected = [
            convolve(project, maps)
            for project, maps in zip(self.input_projections, reversed(feature_maps[1:]), strict=True)
        ]
        shapes = [tuple(maps.shape[-2:]) for maps in projected]
        hidden = torch.cat([maps.flatten(2).transpose(1, 2) for maps in projected], dim=1)  # (F, S, d)
        dim = hidden.shape[-1]
        position = torch.cat(
            [
                sine_position_embedding(h, w, dim, hidden).flatten(2).transpose(1, 2) + self.level_embed[level]
                for level, (h, w) in enumerate(shapes)
            ],
            dim=1,
        )  # (1, S, d)
        reference = torch.cat([cell_centres(h, w, hidden.device) for h, w in shapes])  # (S, 2)
        for layer in self.layers:
            hidden = layer(hidden, position, reference, shapes)
        scales = [
            tokens.transpose(1, 2).unflatten(2, shape)
            for tokens, shape in zip(hidden.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
        ]
        lateral = convolve(self.lateral, feature_maps[0])
        upsampled = nnf.interpolate(scales[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return convolve(self.mask_projection, self.output(lateral + upsampled)), scales


def cell_centres(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Centres (x, y) in [0, 1] of the cells of a map, row by row: (height * width, 2)."""
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x.flatten(), grid_y.flatten()], dim=-1)
