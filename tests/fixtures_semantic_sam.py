"""Semantic-SAM at a toy size, and its weights under the names of the release."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from PIL import Image

from combo_hf.proposals.configuration_semantic_sam import SemanticSamConfig
from combo_hf.proposals.modeling_semantic_sam import SemanticSamModel


SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
SMALL = {
    "backbone_config": SWIN,
    "hidden_dim": 32,
    "num_attention_heads": 4,
    "encoder_layers": 2,
    "encoder_feedforward_dim": 48,
    "decoder_layers": 3,
    "decoder_feedforward_dim": 40,
}
EVERYTHING = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0, "min_mask_region_area": 0}


def lively(**overrides) -> SemanticSamModel:
    """Random weights of a scale at which every part has a say."""
    model = SemanticSamModel(SemanticSamConfig(**{**SMALL, **overrides})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and not re.search("embed|tokens", name):
                values /= math.sqrt(parameter[0].numel())
            elif parameter.ndim == 1:
                values = values * 0.1 + float(name.endswith("weight"))
            parameter.copy_(values)
    return model


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def answer(model: SemanticSamModel, frames: torch.Tensor, points: torch.Tensor, levels=None):
    with torch.no_grad():
        return model(frames, points, levels)


def clicks(count: int, frames: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.rand(frames, count, 2, generator=torch.Generator().manual_seed(seed))


def pixels(height: int, width: int, frames: int = 1) -> torch.Tensor:
    return torch.randn(frames, 3, height, width, generator=torch.Generator().manual_seed(2))


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


BLOCK = r"backbone\.swin\.encoder\.layers\.(\d)\.(blocks\.\d+)\."
TO_OFFICIAL = [
    (r"backbone\.swin\.embeddings\.patch_embeddings\.projection\.(.+)", r"backbone.patch_embed.proj.\1"),
    (r"backbone\.swin\.embeddings\.norm\.(.+)", r"backbone.patch_embed.norm.\1"),
    (r"backbone\.swin\.encoder\.layers\.(\d)\.downsample\.(.+)", r"backbone.layers.\1.downsample.\2"),
    (BLOCK + r"layernorm_before\.(.+)", r"backbone.layers.\1.\2.norm1.\3"),
    (BLOCK + r"layernorm_after\.(.+)", r"backbone.layers.\1.\2.norm2.\3"),
    (BLOCK + r"mlp\.(.+)", r"backbone.layers.\1.\2.mlp.\3"),
    (BLOCK + r"attention\.o_proj\.(.+)",
     r"backbone.layers.\1.\2.attn.proj.\3"),
    (BLOCK + r"attention\.relative_position_bias\.(.+)",
     r"backbone.layers.\1.\2.attn.\3"),
    (r"backbone\.hidden_states_norms\.stage1\.(.+)", r"backbone.norm0.\1"),
    (r"backbone\.hidden_states_norms\.stage2\.(.+)", r"backbone.norm1.\1"),
    (r"backbone\.hidden_states_norms\.stage3\.(.+)", r"backbone.norm2.\1"),
    (r"backbone\.hidden_states_norms\.stage4\.(.+)", r"backbone.norm3.\1"),
    (r"pixel_decoder\.input_projections\.(.+)", r"sem_seg_head.pixel_decoder.input_proj.\1"),
    (r"pixel_decoder\.level_embed", r"sem_seg_head.pixel_decoder.transformer.level_embed"),
    (r"pixel_decoder\.(layers\.\d)\.self_attn_layer_norm\.(.+)", r"ENCODER.\1.norm1.\2"),
    (r"pixel_decoder\.(layers\.\d)\.final_layer_norm\.(.+)", r"ENCODER.\1.norm2.\2"),
    (r"pixel_decoder\.(layers\.\d)\.fc(\d)\.(.+)", r"ENCODER.\1.linear\2.\3"),
    (r"pixel_decoder\.(layers\.\d)\.self_attn\.(.+)", r"ENCODER.\1.self_attn.\2"),
    (r"pixel_decoder\.lateral\.0\.(.+)", r"sem_seg_head.pixel_decoder.adapter_1.\1"),
    (r"pixel_decoder\.lateral\.1\.(.+)", r"sem_seg_head.pixel_decoder.adapter_1.norm.\1"),
    (r"pixel_decoder\.output\.0\.(.+)", r"sem_seg_head.pixel_decoder.layer_1.\1"),
    (r"pixel_decoder\.output\.1\.(.+)", r"sem_seg_head.pixel_decoder.layer_1.norm.\1"),
    (r"pixel_decoder\.mask_projection\.(.+)", r"sem_seg_head.pixel_decoder.mask_features.\1"),
    (r"decoder\.(layers\.\d)\.out_proj\.(.+)", r"DECODER.\1.self_attn.out_proj.\2"),
    (r"decoder\.(layers\.\d)\.self_attn_layer_norm\.(.+)", r"DECODER.\1.norm2.\2"),
    (r"decoder\.(layers\.\d)\.cross_attn\.(.+)", r"DECODER.\1.cross_attn.\2"),
    (r"decoder\.(layers\.\d)\.cross_attn_layer_norm\.(.+)", r"DECODER.\1.norm1.\2"),
    (r"decoder\.(layers\.\d)\.fc(\d)\.(.+)", r"DECODER.\1.linear\2.\3"),
    (r"decoder\.(layers\.\d)\.final_layer_norm\.(.+)", r"DECODER.\1.norm3.\2"),
    (r"decoder\.position_mlp\.(.+)", r"sem_seg_head.predictor.decoder.ref_point_head.\1"),
    (r"decoder\.layer_norm\.(.+)", r"sem_seg_head.predictor.decoder_norm.\1"),
    (r"decoder\.box_head\.(.+)", r"sem_seg_head.predictor._bbox_embed.\1"),
    (r"decoder\.mask_head\.(.+)", r"sem_seg_head.predictor.mask_embed.\1"),
    (r"decoder\.iou_head\.(.+)", r"sem_seg_head.predictor.iou_prediction_head.\1"),
    (r"decoder\.mask_tokens\.(.+)", r"sem_seg_head.predictor.mask_tokens.\1"),
    (r"decoder\.label_embed\.(.+)", r"sem_seg_head.predictor.label_enc.\1"),
    (r"decoder\.prompt_embed\.(.+)", r"sem_seg_head.predictor.pb_embedding.\1"),
]  # fmt: skip


def official(model: SemanticSamModel) -> dict[str, torch.Tensor]:
    """The state dict under the names of the release, with the entries that are of no use to us."""
    ours = model.state_dict()
    found = {}
    for name, tensor in ours.items():
        if match := re.fullmatch(
            r"backbone\.swin\.encoder\.layers\.(\d)\.(blocks\.\d+)\.attention\.q_proj\.(.+)", name
        ):
            joined = torch.cat([ours[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            found[f"backbone.layers.{match[1]}.{match[2]}.attn.qkv.{match[3]}"] = joined
        elif match := re.fullmatch(r"decoder\.(layers\.\d)\.q_proj\.(.+)", name):
            joined = torch.cat([ours[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            found[f"DECODER.{match[1]}.self_attn.in_proj_{match[2]}"] = joined
        elif not re.search(r"\.[kv]_proj\.|swin\.layernorm\.", name):
            target = next(match.expand(new) for old, new in TO_OFFICIAL if (match := re.fullmatch(old, name)))
            found[target] = tensor
    found = {
        name.replace("ENCODER", "sem_seg_head.pixel_decoder.transformer.encoder").replace(
            "DECODER", "sem_seg_head.predictor.decoder"
        ): tensor.clone()
        for name, tensor in found.items()
    }
    for name in [name for name in found if "_bbox_embed" in name]:
        found[name.replace("_bbox_embed", "decoder.bbox_embed.0")] = found[name]
    found["sem_seg_head.predictor.decoder.norm.weight"] = found["sem_seg_head.predictor.decoder_norm.weight"]
    found["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    found["sem_seg_head.predictor.class_embed"] = torch.zeros(32, 8)
    found["criterion.empty_weight"] = torch.ones(2)
    return {f"model.{name}": tensor for name, tensor in found.items()}
