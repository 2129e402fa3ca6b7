"""Semantic-SAM's deformable attention and pixel decoder (Mask DINO's: four scales, strides 8 to 64), plain PyTorch.

A deformable attention reads with `grid_sample`, on the CPU with `embedding_bag`; both give the same up to rounding.

Axes as in `modeling_semantic_sam.py`: F frames, N queries, S cells of all scales (S' with borders), d width, M heads,
L scales, R points that a head reads in a scale, h w stride-4 mask.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import nn

from combo_hf.modeling_combo_pixel_decoder import cell_centres, sine_position_embedding
from combo_hf.proposals.configuration_semantic_sam import SemanticSamConfig


@dataclass(frozen=True)
class ProjectedValues:
    """What a deformable attention reads from: float32 whatever the model's type, see `project`.

    Args:
        shapes: (height, width) of every scale.
        table: (F * S' * M, d/M), maps with a border of zeros, one row per cell and head; on the CPU.
        maps: one map (F*M, d/M, h_l, w_l) per scale; elsewhere.
    """

    shapes: list[tuple[int, int]]
    table: torch.Tensor | None = None
    maps: list[torch.Tensor] | None = None


class SemanticSamDeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1): each query reads R points in each of L maps."""

    def __init__(self, config: SemanticSamConfig, scales: int) -> None:
        super().__init__()
        dim, self.heads, self.points = config.hidden_dim, config.num_attention_heads, config.deformable_points
        self.scales = scales
        self.sampling_offsets = nn.Linear(dim, self.heads * scales * self.points * 2)
        self.attention_weights = nn.Linear(dim, self.heads * scales * self.points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def project(self, cells: torch.Tensor, shapes: list[tuple[int, int]]) -> ProjectedValues:
        """Values of all cells (F, S, d), laid out for reading.

        float32: bfloat16 cannot say where between two cells a point lies.
        """
        value = self.value_proj(cells).float()
        if value.device.type == "cpu":
            return ProjectedValues(shapes, table=value_table(value, shapes, self.heads))
        return ProjectedValues(shapes, maps=value_maps(value, shapes, self.heads))

    def forward(self, query: torch.Tensor, boxes: torch.Tensor, values: ProjectedValues) -> torch.Tensor:
        """Read around reference boxes.

        Args:
            query: (F, N, d), positions included.
            boxes: (F or 1, N, 2 or 4) float32: centre (x, y) in [0, 1] of the padded frame and, for boxes, width and
                height. Offsets count in cells around a point, in halves of the box divided by R around a box.
            values: what `project` gave.

        Returns:
            (F, N, d).
        """
        frames, queries = query.shape[:2]
        places = (frames, queries, self.heads, self.scales, self.points)
        offsets = self.sampling_offsets(query).float().view(*places, 2)
        weights = self.attention_weights(query).view(*places[:3], -1).float().softmax(-1).view(places)
        if boxes.shape[-1] == 4:
            reach = boxes[:, :, None, None, None, 2:] * (0.5 / self.points)
        else:
            reach = 1 / offsets.new_tensor([(w, h) for h, w in values.shapes])[:, None]  # (L, 1, 2)
        location = boxes[:, :, None, None, None, :2] + offsets * reach  # (F, N, M, L, R, 2)
        read = sample_table if values.table is not None else sample_maps
        return self.output_proj(read(values, location, weights).to(query.dtype))


def value_maps(value: torch.Tensor, shapes: list[tuple[int, int]], heads: int) -> list[torch.Tensor]:
    """(F, S, d) -> one map (F*M, d/M, h_l, w_l) per scale."""
    levels = value.split([h * w for h, w in shapes], dim=1)
    return [
        level.unflatten(2, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shape).contiguous()
        for level, shape in zip(levels, shapes, strict=True)
    ]


def value_table(value: torch.Tensor, shapes: list[tuple[int, int]], heads: int) -> torch.Tensor:
    """(F, S, d) -> (F * S' * M, d/M): every map with one row and column of zeros before it and two behind it."""
    levels = value.split([h * w for h, w in shapes], dim=1)
    padded = [
        nnf.pad(level.unflatten(1, shape), (0, 0, 1, 2, 1, 2)).flatten(1, 2)
        for level, shape in zip(levels, shapes, strict=True)
    ]
    return torch.cat(padded, dim=1).view(-1, value.shape[-1] // heads)


def sample_maps(values: ProjectedValues, location: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Bilinear reads, weighted and summed, scale by scale (zeros outside).

    Args: location (F, N, M, L, R, 2) as (x, y) in [0, 1]; weights (F, N, M, L, R).
    Returns: (F, N, d).
    """
    frames, queries = location.shape[:2]
    total = torch.zeros((), dtype=weights.dtype, device=weights.device)
    for scale, maps in enumerate(values.maps or ()):
        grid = (2 * location[:, :, :, scale] - 1).transpose(1, 2).flatten(0, 1)  # (F*M, N, R, 2)
        read = nnf.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        share = weights[:, :, :, scale].transpose(1, 2).flatten(0, 1)[:, None]  # (F*M, 1, N, R)
        level = (read * share).sum(-1)  # (F*M, d/M, N)
        total = total + level
    return total.view(frames, -1, queries).transpose(1, 2)


def sample_table(values: ProjectedValues, location: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The same as one weighted sum of table rows: three to four times as fast on a CPU.

    A point outside the border moves onto it, where it reads zeros. `fmax` and `fmin` take the number where there is a
    NaN, so that no row outside the table is read.
    """
    frames, queries, heads = location.shape[:3]
    size = location.new_tensor([(w, h) for h, w in values.shapes])[:, None]  # (L, 1, 2)
    stride = size[..., 0] + 3
    starts = [0]
    for height, width in values.shapes:
        starts.append(starts[-1] + (height + 3) * (width + 3))
    place = torch.fmin(torch.fmax(location * size - 0.5, size.new_tensor(-1)), size)
    column, row = place.floor().unbind(-1)
    right, below = (place - place.floor()).unbind(-1)  # parts of the next column and row, (F, N, M, L, R)
    first = (torch.tensor(starts[:-1])[:, None] + stride + 1) * heads  # cell (0, 0) of each scale, head 0
    frame = torch.arange(frames) * (starts[-1] * heads)
    cell = torch.addcmul(column, row, stride).to(torch.int32) * heads + first.to(torch.int32)
    cell += torch.arange(heads, dtype=torch.int32)[:, None, None] + frame.to(torch.int32)[:, None, None, None, None]
    index = cell.new_empty(frames, queries, heads, 4, *cell.shape[-2:])
    share = torch.empty(index.shape)
    low = weights * below
    for corner, part in enumerate((weights - low, low)):  # this row, the next
        upper = cell if corner == 0 else cell + (stride * heads).to(torch.int32)
        index[:, :, :, 2 * corner] = upper
        index[:, :, :, 2 * corner + 1] = upper + heads
        side = part * right
        share[:, :, :, 2 * corner] = part - side
        share[:, :, :, 2 * corner + 1] = side
    bags = (frames * queries * heads, -1)
    assert values.table is not None, "on the CPU there is a table"
    read = nnf.embedding_bag(index.view(bags), values.table, mode="sum", per_sample_weights=share.view(bags))
    return read.view(frames, queries, -1)


class SemanticSamGroupNorm(nn.GroupNorm):
    """GroupNorm that also takes a map of a single cell, which a frame of up to 64 x 64 has at stride 64."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.group_norm(maps, self.num_groups, self.weight, self.bias, self.eps)


class SemanticSamPixelDecoderLayer(nn.Module):
    """Deformable self-attention of all cells and feed-forward, post-norm."""

    def __init__(self, config: SemanticSamConfig, scales: int) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = SemanticSamDeformableAttention(config, scales)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.encoder_feedforward_dim)
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(
        self,
        cells: torch.Tensor,
        position: torch.Tensor,
        centres: torch.Tensor,
        shapes: list[tuple[int, int]],
    ) -> torch.Tensor:
        read = self.self_attn(cells + position, centres, self.self_attn.project(cells, shapes))
        cells = self.self_attn_layer_norm(cells + read)
        return self.final_layer_norm(cells + self.fc2(self.fc1(cells).relu_()))


class SemanticSamPixelDecoder(nn.Module):
    """Backbone maps of strides 4 to 32 -> mask features at stride 4 and four scales (strides 8 to 64)."""

    def __init__(self, config: SemanticSamConfig, channels: list[int]) -> None:
        super().__init__()
        dim = config.hidden_dim
        norm = functools.partial(SemanticSamGroupNorm, math.gcd(32, dim))
        projections = [nn.Conv2d(c, dim, kernel_size=1) for c in channels[1:]]
        projections.append(nn.Conv2d(channels[-1], dim, kernel_size=3, stride=2, padding=1))  # stride 64
        self.input_projections = nn.ModuleList(nn.Sequential(conv, norm(dim)) for conv in projections)
        self.level_embed = nn.Parameter(torch.empty(len(projections), dim))
        self.layers = nn.ModuleList(
            SemanticSamPixelDecoderLayer(config, len(projections)) for _ in range(config.encoder_layers)
        )
        self.lateral = nn.Sequential(nn.Conv2d(channels[0], dim, kernel_size=1, bias=False), norm(dim))
        self.output = nn.Sequential(nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False), norm(dim), nn.ReLU())
        self.mask_projection = nn.Conv2d(dim, dim, kernel_size=1)

    def forward(
        self, feature_maps: tuple[torch.Tensor, ...], tap: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Args: feature_maps: strides 4 to 32; tap: filled with intermediate states by name, for inspection and
        parity.
        Returns: mask features (F, d, h, w) and the scales (F, d, h_l, w_l), fine to coarse."""
        sources = [*feature_maps[1:], feature_maps[-1]]
        projected = [project(maps) for project, maps in zip(self.input_projections, sources, strict=True)]
        shapes = [tuple(maps.shape[-2:]) for maps in projected]
        cells = torch.cat([maps.flatten(2).transpose(1, 2) for maps in projected], dim=1)  # (F, S, d)
        dim = cells.shape[-1]
        position = torch.cat(
            [
                sine_position_embedding(h, w, dim, cells).flatten(2).transpose(1, 2) + self.level_embed[level]
                for level, (h, w) in enumerate(shapes)
            ],
            dim=1,
        )  # (1, S, d)
        centres = torch.cat([cell_centres(h, w, cells.device) for h, w in shapes])[None]  # (1, S, 2)
        for index, layer in enumerate(self.layers):
            cells = layer(cells, position, centres, shapes)
            if tap is not None:
                tap[f"pixel_decoder_layer/{index}"] = cells
        scales = [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(cells.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
        ]
        lateral = self.lateral(feature_maps[0])
        upsampled = nnf.interpolate(scales[0], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_projection(self.output(lateral + upsampled)), scales
