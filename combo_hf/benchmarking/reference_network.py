"""The baseline of the network: the published algorithm, step by step, over the weights of a model of this package.

What it does and the package does not: backbones as transformers has them; the reads of all levels of the deformable
attention stacked before they are summed; every projection of the bilateral fusion applied to all pixels; attention by
product, softmax, product; masks of full size and class scores at every decoder layer, resized for the attention of the
next one, in evaluation as well.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import nn
from transformers import AutoBackbone

from combo_hf.configuration_combo import ComboConfig
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation, frames_per_clip
from combo_hf.modeling_combo_decoder import spread_audio
from combo_hf.modeling_combo_fusion import MAX_LOGIT
from combo_hf.modeling_combo_pixel_decoder import cell_centres, sine_position_embedding


Predictions = list[tuple[torch.Tensor, torch.Tensor]]


class ReferenceCombo:
    """Calls like [`ComboModel`], with predictions of the learned queries and all layers.

    Args:
        model: its parameters are used, not copied.
    """

    def __init__(self, model: ComboForAudioVisualSegmentation) -> None:
        self.model, self.config = model.model, model.config
        encoder = self.model.encoder
        self.backbone = reference_backbone(encoder.backbone, self.config)
        other = encoder.maskige_backbone
        self.maskige_backbone = self.backbone if other is None else reference_backbone(other, self.config)

    def __call__(
        self,
        pixel_values: torch.Tensor,
        maskige_values: torch.Tensor,
        input_features: torch.Tensor,
        num_frames: torch.Tensor | None = None,
    ) -> Predictions:
        """Arguments as of [`ComboModel`]. Returns (class logits, mask logits), L times."""
        model = self.model
        self.backbone.train(model.training and not self.config.freeze_batch_norm)
        frames = self.backbone(pixel_values).feature_maps
        maskiges = self.maskige_backbone(maskige_values).feature_maps
        maps = [
            frame + weights(maskige) * maskige
            for frame, maskige, weights in zip(frames, maskiges, model.encoder.channel_weights, strict=True)
        ]
        audio = model.audio_encoder(input_features)
        features, scales = pixel_decoder(model.pixel_decoder, maps)
        if model.fusion.attention is not None:
            features, audio = fusion(model.fusion, features, audio)
        clips = frames_per_clip(num_frames, len(pixel_values))
        projected = model.audio_projection(audio)
        query_audio = spread_audio(projected, clips, self.config.num_queries, self.config.audio_query_layout)
        return decoder(model.decoder, features, scales, query_audio)


def reference_backbone(ours: nn.Module, config: ComboConfig) -> nn.Module:
    """transformers' own backbone over the parameters of one of ours."""
    with torch.device("meta"):
        backbone = AutoBackbone.from_config(config.backbone_config)
    backbone.load_state_dict(ours.state_dict(keep_vars=True), assign=True)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = float(ours.get_submodule(name).eps)  # type: ignore[arg-type]
    return backbone.eval()


def pixel_decoder(module: Any, maps: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mask features (F, d, h, w) and three scales, by the weights of [`ComboPixelDecoder`]."""
    projected = [project(level) for project, level in zip(module.input_projections, reversed(maps[1:]), strict=True)]
    shapes = [tuple(level.shape[-2:]) for level in projected]
    hidden = torch.cat([level.flatten(2).transpose(1, 2) for level in projected], dim=1)
    position = torch.cat(
        [
            sine_position_embedding(h, w, hidden.shape[-1], hidden).flatten(2).transpose(1, 2) + embed
            for (h, w), embed in zip(shapes, module.level_embed, strict=True)
        ],
        dim=1,
    )
    reference = torch.cat([cell_centres(h, w, hidden.device) for h, w in shapes])
    for layer in module.layers:
        attended = deformable_attention(layer.self_attn, hidden, position, reference, shapes)
        hidden = layer.self_attn_layer_norm(hidden + attended)
        hidden = layer.final_layer_norm(hidden + layer.fc2(layer.fc1(hidden).relu()))
    tokens = hidden.split([h * w for h, w in shapes], dim=1)
    scales = [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(tokens, shapes, strict=True)]
    lateral = module.lateral(maps[0])
    upsampled = nnf.interpolate(scales[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
    return module.mask_projection(module.output(lateral + upsampled)), scales


def deformable_attention(
    module: Any, hidden: torch.Tensor, position: torch.Tensor, reference: torch.Tensor, shapes: list[tuple[int, int]]
) -> torch.Tensor:
    """Deformable attention (F, S, d); the reads of all levels are stacked, then weighted and summed."""
    frames, tokens, dim = hidden.shape
    heads, levels, points = module.heads, module.levels, module.points
    query = hidden + position
    value = module.value_proj(hidden).view(frames, tokens, heads, dim // heads)
    offsets = module.sampling_offsets(query).view(frames, tokens, heads, levels, points, 2)
    weights = module.attention_weights(query).view(frames, tokens, heads, levels * points).softmax(-1)
    sizes = offsets.new_tensor([[w, h] for h, w in shapes])
    places = reference[None, :, None, None, None] + offsets / sizes[None, None, None, :, None]
    grids = 2 * places - 1
    reads = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        height, width = shapes[level]
        maps = part.flatten(2).transpose(1, 2).reshape(frames * heads, dim // heads, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        reads.append(nnf.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(frames * heads, 1, tokens, levels * points)
    summed = (torch.stack(reads, dim=-2).flatten(-2) * weights).sum(-1).view(frames, dim, tokens)
    return module.output_proj(summed.transpose(1, 2))


def fusion(module: Any, features: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilateral fusion with all projections applied to pixels, and one attention map per direction."""
    attention = module.attention
    frames, dim, height, width = features.shape
    heads, size = attention.heads, dim // attention.heads
    visual = attention.visual_norm(features.flatten(2).transpose(1, 2) + module.level_embed.weight)
    audio = attention.audio_norm(audio)[:, None]  # (F, 1, D)
    position = sine_position_embedding(height, width, dim, features).flatten(2).transpose(1, 2)

    def split(states: torch.Tensor) -> torch.Tensor:
        return states.view(frames, -1, heads, size).transpose(1, 2).reshape(frames * heads, -1, size)

    query = split(attention.q_proj(visual + position) * size**-0.5)
    key = split(attention.k_proj(audio + module.audio_position.weight))
    visual_value, audio_value = split(attention.visual_value_proj(visual)), split(attention.audio_value_proj(audio))
    scores = torch.bmm(query, key.transpose(1, 2))  # (F * M, N, 1)
    scores = (scores - scores.amax(1, keepdim=True)).clamp(-MAX_LOGIT, MAX_LOGIT)
    share = scores.softmax(dim=1)
    to_visual = nnf.dropout(share, attention.dropout, attention.training)
    to_audio = nnf.dropout(share.transpose(1, 2), attention.dropout, attention.training)

    def join(states: torch.Tensor) -> torch.Tensor:
        return states.view(frames, heads, -1, size).transpose(1, 2).flatten(2)

    visual_delta = attention.visual_out_proj(join(torch.bmm(to_visual, audio_value)))
    audio_delta = attention.audio_out_proj(join(torch.bmm(to_audio, visual_value)))
    visual = visual + attention.visual_gate * visual_delta
    audio = audio + attention.audio_gate * audio_delta
    return visual.transpose(1, 2).unflatten(2, (height, width)), audio[:, 0]


def decoder(module: Any, features: torch.Tensor, scales: list[torch.Tensor], query_audio: torch.Tensor) -> Predictions:
    """Masked-attention decoder: full-size masks and class scores at every layer."""
    memory, positions = [], []
    for maps, embed in zip(scales, module.level_embed.weight, strict=True):
        memory.append(maps.flatten(2).transpose(1, 2) + embed)
        _, width, h, w = maps.shape
        position = sine_position_embedding(h, w, width, maps)
        positions.append(position.flatten(2).transpose(1, 2))
    queries = module.query_features.weight + query_audio
    query_pos = module.query_positions.weight.expand_as(queries)

    def predict() -> tuple[torch.Tensor, torch.Tensor]:
        normed = module.layer_norm(queries)
        masks = torch.einsum("fqd,fdhw->fqhw", module.mask_head(normed), features)
        return module.class_head(normed), masks

    predictions = [predict()]
    for index, layer in enumerate(module.layers):
        level = index % 3
        size = scales[level].shape[-2:]
        logits = nnf.interpolate(predictions[-1][1], size=size, mode="bilinear", align_corners=False)
        heads = layer.cross_attn.heads
        hidden = (logits.sigmoid().flatten(2)[:, None].repeat(1, heads, 1, 1) < 0.5).detach()  # (F, M, Q, S)
        hidden = hidden & ~hidden.all(dim=-1, keepdim=True)
        keys, values = memory[level] + positions[level], memory[level]
        queries = layer.cross_attn_layer_norm(
            queries + attend(layer.cross_attn, queries + query_pos, keys, values, hidden)
        )
        placed = queries + query_pos
        queries = layer.self_attn_layer_norm(queries + attend(layer.self_attn, placed, placed, queries, None))
        queries = layer.final_layer_norm(queries + layer.fc2(layer.fc1(queries).relu()))
        predictions.append(predict())
    return predictions


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None
) -> torch.Tensor:
    """Multi-head attention by product, softmax, product; `hidden` (F, M, Q, S) is True where nobody may look."""

    def split(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(2, (module.heads, -1)).transpose(1, 2)

    query, key, value = split(module.q_proj(query)), split(module.k_proj(key)), split(module.v_proj(value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return module.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
