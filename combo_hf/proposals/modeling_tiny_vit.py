"""TinyViT (Wu et al., ECCV 2022) as MobileSAM uses it: image -> embedding at stride 16.

Written from the paper and from the facts of the released model (`tiny_vit_sam.py`): stage 0 convolutional, stages 1
to 3 with window attention, batch norm behind every convolution, layer norm in front of attention and MLP.

A peculiarity kept because the weights know it: windows that reach beyond the map are filled with zeros BEFORE the
layer norm, so these positions carry its bias, and they are attended like any other.

Axes: B images, C channels, h w positions of a stage, N positions of a window, G windows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.sam.modeling_sam import SamVisionEncoderOutput, SamVisionNeck


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """As one convolution where nothing is trained: a pass over the map less."""
        conv, norm = self.conv, self.norm
        mean, variance = norm.running_mean, norm.running_var
        plain = type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d  # nothing wrapped around them
        if torch.is_grad_enabled() or norm.training or not plain or mean is None or variance is None:
            return norm(conv(features))
        scale = norm.weight / torch.sqrt(variance + norm.eps)
        weight, bias = conv.weight * scale[:, None, None, None], norm.bias - mean * scale
        return F.conv2d(features, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class TinyVitConvBlock(nn.Module):
    """Inverted bottleneck (MBConv) with a residual: (B, C, h, w) -> the same."""

    def __init__(self, channels: int, expand_ratio: float) -> None:
        super().__init__()
        inner = int(channels * expand_ratio)
        self.expand = ConvNorm(channels, inner)
        self.depthwise = ConvNorm(inner, inner, 3, groups=inner)
        self.project = ConvNorm(inner, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(self.depthwise(F.gelu(self.expand(features))))
        return F.gelu(features + self.project(inner))


class TinyVitPatchMerging(nn.Module):
    """To the width, and by the stride to the size, of the next stage."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = ConvNorm(inputs, outputs)
        self.depthwise = ConvNorm(outputs, outputs, 3, stride, groups=outputs)
        self.project = ConvNorm(outputs, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.project(F.gelu(self.depthwise(F.gelu(self.expand(features)))))


class TinyVitAttention(nn.Module):
    """Self-attention inside windows with a learned bias for every distance |dy|, |dx|: (G, N, C) -> (G, N, C)."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        count, positions, channels = windows.shape
        qkv = self.qkv(self.norm(windows)).view(count, positions, self.heads, -1)  # per head: its q, its k, its v
        query, key, value = qkv.transpose(1, 2).chunk(3, dim=-1)  # each (G, heads, N, C / heads)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias().to(query.dtype))
        return self.proj(attended.transpose(1, 2).reshape(count, positions, channels))

    def _bias(self) -> torch.Tensor:
        """(1, heads, N, N)."""
        place = torch.arange(self.window, device=self.attention_biases.device)
        distance = (place[:, None] - place[None, :]).abs()  # (window, window)
        index = distance[:, None, :, None] * self.window + distance[None, :, None, :]  # (y, x, y', x')
        return self.attention_biases[:, index.reshape(self.window**2, -1)][None]


class TinyVitMlp(nn.Module):
    """Layer norm and two layers."""

    def __init__(self, channels: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, int(channels * mlp_ratio))
        self.fc2 = nn.Linear(int(channels * mlp_ratio), channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(tokens))))


class TinyVitAttentionBlock(nn.Module):
    """Window attention, a depthwise convolution without residual, an MLP: (B, C, h, w) -> the same."""

    def __init__(self, channels: int, heads: int, window: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = TinyVitAttention(channels, heads, window)
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels)
        self.mlp = TinyVitMlp(channels, mlp_ratio)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features + self._attend(features)
        features = self.local_conv(features)
        return features + self.mlp(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _attend(self, features: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = features.shape
        side = self.attention.window
        padded = F.pad(features, (0, -width % side, 0, -height % side))
        rows, columns = padded.shape[2] // side, padded.shape[3] // side
        windows = padded.view(batch, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        windows = self.attention(windows.reshape(-1, side * side, channels))  # (G, N, C)
        windows = windows.view(batch, rows, columns, side, side, channels).permute(0, 5, 1, 3, 2, 4)
        return windows.reshape(padded.shape)[..., :height, :width]


class TinyVitStage(nn.Module):
    """Blocks, then patch merging unless it is the last stage."""

    def __init__(self, config: Any, stage: int) -> None:
        super().__init__()
        width = config.hidden_sizes[stage]
        self.blocks = nn.ModuleList(
            TinyVitConvBlock(width, config.expand_ratio)
            if stage == 0
            else TinyVitAttentionBlock(
                width, config.num_attention_heads[stage], config.window_sizes[stage], config.mlp_ratio
            )
            for _ in range(config.depths[stage])
        )
        last = stage == len(config.hidden_sizes) - 1
        self.downsample = (
            None if last else TinyVitPatchMerging(width, config.hidden_sizes[stage + 1], config.strides[stage])
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            features = block(features)
        return features if self.downsample is None else self.downsample(features)


class TinyVitEncoder(nn.Module):
    """Image (B, 3, H, W), sides multiples of 16 -> embedding (B, output_channels, H / 16, W / 16)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        first = config.hidden_sizes[0]
        self.patch_embed = nn.ModuleList([ConvNorm(3, first // 2, 3, 2), ConvNorm(first // 2, first, 3, 2)])
        self.stages = nn.ModuleList(TinyVitStage(config, stage) for stage in range(len(config.hidden_sizes)))
        self.neck = SamVisionNeck(config)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> SamVisionEncoderOutput:
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)  # a quarter less time on a CPU
        features = self.patch_embed[1](F.gelu(self.patch_embed[0](pixel_values)))  # stride 4
        for stage in self.stages:
            features = stage(features)
        return SamVisionEncoderOutput(last_hidden_state=self.neck(features.permute(0, 2, 3, 1)))
