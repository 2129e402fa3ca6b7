"""Masked-attention decoder with audio queries (paper section 3.4; Mask2Former's decoder, post-norm, no dropout).

Queries start as learned features plus the sound; each layer looks at one of three scales, only inside the mask
predicted so far, then at the other queries. Departure (equal up to rounding): outside training, the attention masks of
a layer come from mask features resized once per scale, because bilinear resizing and the product with the mask
embedding are both linear and can change places; full-size masks are then needed from the last layer only.

Axes: F packed frames, Q queries, K classes, d width, S tokens of a scale, h w stride-4 mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_combo import ComboConfig
from .modeling_combo_kernels import is_eager, linear, rectify
from .modeling_combo_pixel_decoder import ComboFeedForwardLayer, sine_position_embedding


MASKS_AT_ONCE = 1 << 24  # numbers of the gradients of all layers' masks that are joined: 67 MB


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T / sqrt(d_head)) v, step by step. attention_mask: True where a key may be seen."""
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


class ComboAttention(nn.Module):
    """Multi-head attention; which kernel runs is the model's `attn_implementation` ("sdpa" or "eager")."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.config = config
        self.heads, self.is_causal = config.num_attention_heads, False
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def reset_combo_parameters(self) -> None:
        """One xavier over query, key and value joined (3d, d), whose bound is sqrt(1/2) of that of a (d, d) matrix."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            init.xavier_uniform_(projection.weight, gain=0.5**0.5)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Args: query (F, Q, d); key, value (F, S, d); visible (F, Q, S) bool, True where a query may look.
        Returns: (F, Q, d)."""

        def split(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (F, M, ., d / M)

        attend = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        mask = None if visible is None else visible[:, None]  # (F, 1, Q, S)
        queries, keys = split(linear(self.q_proj, query)), split(linear(self.k_proj, key))
        out, _ = attend(self, queries, keys, split(linear(self.v_proj, value)), mask, is_causal=False)
        return linear(self.out_proj, out.reshape(query.shape))


class ComboDecoderLayer(ComboFeedForwardLayer):
    """Masked cross-attention, self-attention, feed-forward; each followed by add and norm."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.cross_attn = ComboAttention(config)
        self.cross_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = ComboAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.decoder_feedforward_dim)
        self.fc2 = nn.Linear(config.decoder_feedforward_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: torch.Tensor,
        query_pos: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        queries = self.cross_attn_layer_norm(queries + self.cross_attn(queries + query_pos, keys, values, visible))
        placed = queries + query_pos
        queries = self.self_attn_layer_norm(queries + self.self_attn(placed, placed, queries))
        return self.final_layer_norm(queries + linear(self.fc2, rectify(linear(self.fc1, queries))))


class ComboMaskEmbedding(nn.Module):
    """Three-layer MLP: query -> vector whose product with the mask features is the query's mask."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def reset_combo_parameters(self) -> None:
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            queries = rectify(linear(layer, queries))
        return linear(self.layers[-1], queries)


class ComboDecoder(nn.Module):
    """Learned queries plus sound -> class and mask logits, with the predictions of every layer on request."""

    def __init__(self, config: ComboConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.query_features = nn.Embedding(config.num_queries, dim)
        self.query_positions = nn.Embedding(config.num_queries, dim)
        self.level_embed = nn.Embedding(3, dim)
        self.layers = nn.ModuleList(ComboDecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, config.num_labels + 1)
        self.mask_head = ComboMaskEmbedding(dim)

    def reset_combo_parameters(self) -> None:
        self.class_head.reset_parameters()

    def forward(
        self,
        mask_features: torch.Tensor,
        scales: list[torch.Tensor],
        query_audio: torch.Tensor,
        all_layers: bool = False,
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Args: mask_features (F, d, h, w); scales: strides 32, 16, 8, each (F, d, ., .); query_audio (F, Q, d).
        Returns: (class logits (F, Q, K + 1), mask logits (F, Q, h, w)) of the learned queries and of every layer in
        order; only the last one unless `all_layers`."""
        keys, values = self._memory(scales)
        resized = self._resized_mask_features(mask_features, scales) if not all_layers else None
        every = torch.arange(query_audio.shape[1], device=query_audio.device)  # embeddings are called: see is_plain
        queries = self.query_features(every) + query_audio  # (F, Q, d)
        query_pos = self.query_positions(every).expand_as(queries)
        classes, embeddings, masks = [], [], []
        jointly = torch.is_grad_enabled() and is_eager(mask_features)

        def predict(queries: torch.Tensor) -> None:
            normed = self.layer_norm(queries)
            classes.append(linear(self.class_head, normed))
            embeddings.append(self.mask_head(normed))
            with torch.set_grad_enabled(torch.is_grad_enabled() and not jointly):
                masks.append(torch.einsum("fqd,fdhw->fqhw", embeddings[-1], mask_features))

        for index, layer in enumerate(self.layers):
            level = index % 3
            if resized is None:
                predict(queries)
                logits = nnf.interpolate(
                    masks[-1].detach(), size=scales[level].shape[-2:], mode="bilinear", align_corners=False
                )
            else:
                embedding = self.mask_head(self.layer_norm(queries))
                logits = torch.einsum("fqd,fdhw->fqhw", embedding, resized[level])
            queries = layer(queries, query_pos, keys[level], values[level], visible_tokens(logits))
        predict(queries)
        if jointly:
            masks = LayerMasks.apply(mask_features, *embeddings, *masks)
        return list(zip(classes, masks, strict=True))

    def _memory(self, scales: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        keys, values = [], []
        levels = self.level_embed(torch.arange(3, device=scales[0].device))  # (3, d)
        for level, maps in zip(levels, scales, strict=True):
            _, dim, height, width = maps.shape
            position = sine_position_embedding(height, width, dim, maps).flatten(2).transpose(1, 2)  # (1, S, d)
            values.append(maps.flatten(2).transpose(1, 2) + level)  # (F, S, d)
            keys.append(values[-1] + position)
        return keys, values

    @staticmethod
    def _resized_mask_features(mask_features: torch.Tensor, scales: list[torch.Tensor]) -> list[torch.Tensor]:
        return [
            nnf.interpolate(mask_features, size=maps.shape[-2:], mode="bilinear", align_corners=False)
            for maps in scales
        ]


class LayerMasks(torch.autograd.Function):
    """The masks that all layers have computed, with one gradient: two products of the queries of all layers, and no
    sum of gradients of the mask features. A second derivative is not to be had."""

    @staticmethod
    def forward(ctx: Any, mask_features: torch.Tensor, *layers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Args: mask_features (F, d, h, w); of each layer the embeddings (F, Q, d), then the masks (F, Q, h, w)."""
        embeddings, masks = layers[: len(layers) // 2], layers[len(layers) // 2 :]
        ctx.save_for_backward(mask_features, *embeddings)
        return masks

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, *embeddings = ctx.saved_tensors
        pixels = features.flatten(2).transpose(1, 2)  # (F, h * w, d)
        queries = torch.cat(embeddings, dim=1)  # (F, L * Q, d)
        to_pixels, to_queries = torch.empty_like(pixels), torch.empty_like(queries)
        step = max(1, MASKS_AT_ONCE // (queries.shape[1] * pixels.shape[1]))
        for first in range(0, len(pixels), step):
            part = slice(first, first + step)
            joined = torch.cat([gradient[part].flatten(2) for gradient in gradients], dim=1)  # (f, L * Q, h * w)
            to_pixels[part] = joined.transpose(1, 2) @ queries[part].to(joined.dtype)
            to_queries[part] = joined @ pixels[part].to(joined.dtype)
        to_features = to_pixels.transpose(1, 2).unflatten(2, features.shape[2:])
        return to_features, *to_queries.chunk(len(embeddings), dim=1), *(None for _ in embeddings)


def visible_tokens(logits: torch.Tensor) -> torch.Tensor:
    """Mask logits (F, Q, h_l, w_l) -> (F, Q, S) bool: inside the mask; everything for a query whose mask is empty."""
    visible = logits.flatten(2) >= 0  # sigmoid >= 0.5
    return visible | ~visible.any(dim=-1, keepdim=True)


def spread_audio(audio: torch.Tensor, num_frames: list[int], num_queries: int, layout: str) -> torch.Tensor:
    """Sound of the frames -> sound of the queries, (F, d) -> (F, Q, d).

    `"per_frame"`: every query of a frame hears that frame. `"official"`: the reshape of the release without its
    transpose, inside each clip of T frames: query q of frame t hears frame (q * T + t) // Q of the clip.
    """
    if layout == "per_frame":
        return audio[:, None].expand(-1, num_queries, -1)
    pieces = []
    slots = torch.arange(num_queries, device=audio.device)
    for clip in audio.split(num_frames):
        frames = torch.arange(len(clip), device=audio.device)[:, None]  # (T, 1)
        pieces.append(clip[(slots * len(clip) + frames) // num_queries])  # (T, Q, d)
    return torch.cat(pieces)
