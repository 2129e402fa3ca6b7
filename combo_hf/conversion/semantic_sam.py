"""Weights of the official Semantic-SAM release (Swin-T or Swin-L `.pth`) -> [`SemanticSamModel`], every name accounted
for.

The table follows the names that the official network has when it is built; no released file was at hand to try it on.
Licence: source files of the release carry an MIT header that points to a LICENSE file, but their repository has none,
and no licence is stated for the weights. Nothing of theirs is in this package. Ask the authors before you pass
converted weights on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

from combo_hf.conversion.files import read_state_dict
from combo_hf.conversion.fill import ConversionReport, Rules, check_fit, fill, rename_all
from combo_hf.files.wording import some
from combo_hf.proposals.configuration_semantic_sam import VARIANTS, SemanticSamConfig
from combo_hf.proposals.modeling_semantic_sam import SemanticSamModel


LICENCE_NOTE = (
    "The licence of the Semantic-SAM weights is not settled: their source files name MIT and a LICENSE file, but the "
    "repository has no such file, and nothing is said about the weights. Ask the authors before passing them on."
)
REPOSITORY = "https://github.com/UX-Decoder/Semantic-SAM"

_BLOCK, _OUR_BLOCK = r"backbone\.layers\.(\d)\.blocks\.(\d+)\.", r"backbone.swin.encoder.layers.\1.blocks.\2."
_PIXEL, _QUERY = r"sem_seg_head\.pixel_decoder\.", r"sem_seg_head\.predictor\."
_ENCODER, _DECODER = _PIXEL + r"transformer\.encoder\.layers\.(\d+)\.", _QUERY + r"decoder\.layers\.(\d+)\."

RULES: Rules = [
    (r"backbone\.patch_embed\.proj\.(.+)", r"backbone.swin.embeddings.patch_embeddings.projection.\1"),
    (r"backbone\.patch_embed\.norm\.(.+)", r"backbone.swin.embeddings.norm.\1"),
    (_BLOCK + r"norm1\.(.+)", _OUR_BLOCK + r"layernorm_before.\3"),
    (_BLOCK + r"norm2\.(.+)", _OUR_BLOCK + r"layernorm_after.\3"),
    (_BLOCK + r"attn\.qkv\.(.+)", _OUR_BLOCK + r"attention.{q,k,v}_proj.\3"),
    (_BLOCK + r"attn\.proj\.(.+)", _OUR_BLOCK + r"attention.o_proj.\3"),
    (
        _BLOCK + r"attn\.(relative_position_bias_table)",
        _OUR_BLOCK + r"attention.relative_position_bias.\3",
    ),
    (_BLOCK + r"(mlp\.fc\d\..+)", _OUR_BLOCK + r"\3"),
    (r"backbone\.layers\.(\d)\.(downsample\..+)", r"backbone.swin.encoder.layers.\1.\2"),
    *((rf"backbone\.norm{stage}\.(.+)", rf"backbone.hidden_states_norms.stage{stage + 1}.\1") for stage in range(4)),
    (_PIXEL + r"input_proj\.(\d)\.(\d)\.(.+)", r"pixel_decoder.input_projections.\1.\2.\3"),
    (_PIXEL + r"transformer\.level_embed", r"pixel_decoder.level_embed"),
    (_ENCODER + r"(self_attn\..+)", r"pixel_decoder.layers.\1.\2"),
    (_ENCODER + r"norm1\.(.+)", r"pixel_decoder.layers.\1.self_attn_layer_norm.\2"),
    (_ENCODER + r"linear(\d)\.(.+)", r"pixel_decoder.layers.\1.fc\2.\3"),
    (_ENCODER + r"norm2\.(.+)", r"pixel_decoder.layers.\1.final_layer_norm.\2"),
    (_PIXEL + r"adapter_1\.norm\.(.+)", r"pixel_decoder.lateral.1.\1"),
    (_PIXEL + r"adapter_1\.weight", r"pixel_decoder.lateral.0.weight"),
    (_PIXEL + r"layer_1\.norm\.(.+)", r"pixel_decoder.output.1.\1"),
    (_PIXEL + r"layer_1\.weight", r"pixel_decoder.output.0.weight"),
    (_PIXEL + r"mask_features\.(.+)", r"pixel_decoder.mask_projection.\1"),
    (_DECODER + r"self_attn\.in_proj_(weight|bias)", r"decoder.layers.\1.{q,k,v}_proj.\2"),
    (_DECODER + r"self_attn\.(out_proj\..+)", r"decoder.layers.\1.\2"),
    (_DECODER + r"norm2\.(.+)", r"decoder.layers.\1.self_attn_layer_norm.\2"),
    (_DECODER + r"(cross_attn\..+)", r"decoder.layers.\1.\2"),
    (_DECODER + r"norm1\.(.+)", r"decoder.layers.\1.cross_attn_layer_norm.\2"),
    (_DECODER + r"linear(\d)\.(.+)", r"decoder.layers.\1.fc\2.\3"),
    (_DECODER + r"norm3\.(.+)", r"decoder.layers.\1.final_layer_norm.\2"),
    (_QUERY + r"decoder\.ref_point_head\.(.+)", r"decoder.position_mlp.\1"),
    (_QUERY + r"decoder_norm\.(.+)", r"decoder.layer_norm.\1"),
    (_QUERY + r"_bbox_embed\.(.+)", r"decoder.box_head.\1"),
    (_QUERY + r"mask_embed\.(.+)", r"decoder.mask_head.\1"),
    (_QUERY + r"iou_prediction_head\.(.+)", r"decoder.iou_head.\1"),
    (_QUERY + r"mask_tokens\.weight", r"decoder.mask_tokens.weight"),
    (_QUERY + r"label_enc\.weight", r"decoder.label_embed.weight"),
    (_QUERY + r"pb_embedding\.weight", r"decoder.prompt_embed.weight"),
]
ALIASES: Rules = [  # a second name of a tensor -> its first
    (_QUERY + r"(?:decoder\.)?bbox_embed\.\d+\.(.+)", r"sem_seg_head.predictor._bbox_embed.\1"),
    (_QUERY + r"decoder\.norm\.(.+)", r"sem_seg_head.predictor.decoder_norm.\1"),
]
DROPPED: Rules = [
    (_BLOCK + r"attn\.relative_position_index", "follows from the window size"),
    (_QUERY + r"(lang_mapper|class_embed|class_embed_part)", "class names, not used for masks"),
    (r"(?!backbone\.|sem_seg_head\.(pixel_decoder|predictor)\.).*", "outside the network that makes masks"),
]
UNUSED_NORM = "a norm that transformers' backbone computes and nobody reads; identity"
SIGNATURE = (
    "backbone.patch_embed.proj.weight",
    *(f"sem_seg_head.predictor.{n}.weight" for n in ("mask_tokens", "pb_embedding")),
)


def convert_semantic_sam(
    source: str | Path | Mapping[str, Any], variant: str | None = None, config: SemanticSamConfig | None = None
) -> tuple[SemanticSamModel, ConversionReport]:
    """Our model with the weights of an official file, in evaluation mode, and the report. Writes nothing.

    Args:
        source: a `.pth` of the release, or the state dict itself (tensors or numpy arrays); names with or without the
            leading `model.`.
        variant: `"tiny"` (Swin-T) or `"large"` (Swin-L); `None` follows the file.
        config ([`SemanticSamConfig`], *optional*): for weights of another size than the two released ones.

    Raises:
        ValueError: a file that is truncated or foreign, of another variant, incomplete, or with shared tensors that
            are not equal.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"Semantic-SAM was released in the sizes {sorted(VARIANTS)}, got {variant!r}.")
    tensors = read_state_dict(source)
    if all(name.startswith("model.") for name in tensors):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    check_signature(tensors)
    if config is None:
        variant = check_variant(tensors, variant)
        config = SemanticSamConfig.from_variant(variant)
    report = ConversionReport(f"semantic-sam-{variant or 'custom'}")
    converted = rename_all(tensors, RULES, DROPPED, report, ALIASES)
    with no_init_weights():  # on the CPU, not "meta": the window indices of Swin are no part of a state dict
        model = SemanticSamModel(config)
    for name, tensor in model.backbone.swin.layernorm.state_dict().items():
        full = f"backbone.swin.layernorm.{name}"
        converted[full] = torch.ones_like(tensor) if name == "weight" else torch.zeros_like(tensor)
        report.missing[full] = UNUSED_NORM
    check_fit(model, converted, "the checkpoint")
    fill(model, converted, report)
    return model.eval(), report


def check_signature(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `ValueError` where the names are of another network."""
    absent = [name for name in SIGNATURE if name not in tensors]
    if absent:
        raise ValueError(
            f"this is not a Semantic-SAM checkpoint: its {len(tensors)} entries ({some(tensors)}) lack "
            f"{some(absent)}; give a .pth of {REPOSITORY}, Swin-T or Swin-L, only_sam_many2many."
        )


def check_variant(tensors: Mapping[str, torch.Tensor], variant: str | None) -> str:
    """The variant of a state dict.

    Raises:
        ValueError: a Swin that was not released, or not the variant that was asked for.
    """
    width = tensors[SIGNATURE[0]].shape[0]
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"backbone\.layers\.2\.blocks\.(\d+)\.", name))}
    found = [
        name for name, swin in VARIANTS.items() if swin["embed_dim"] == width and swin["depths"][2] == len(blocks)
    ]
    if not found:
        raise ValueError(
            f"the checkpoint has a Swin of width {width} with {len(blocks)} blocks in stage 3, which was not released "
            "with Semantic-SAM (or the file is incomplete); known: width 96 with 6 blocks (tiny), width 192 with 18 "
            "(large)."
        )
    if variant not in (None, found[0]):
        raise ValueError(f"variant {variant!r} was asked for, but the checkpoint is {found[0]!r}.")
    return found[0]
