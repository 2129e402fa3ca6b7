"""Checkpoints of the official release (a detectron2 `.pth`) -> our model, with a report that accounts for every name.

The mapping is the table `RULES` (with `BACKBONE_RULES` for either backbone); `fill.py` says how tables are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from combo_hf.configuration_combo import OWN_PRESETS, SUBSETS, ComboConfig, preset_names
from combo_hf.conversion.files import read_state_dict
from combo_hf.conversion.fill import ConversionReport, Rules, check_fit, fill, rename_all
from combo_hf.files.wording import some
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


# ResNet of detectron2 (res2 .. res5) and PVTv2 of its authors (stage 1 .. 4) -> transformers' backbones.
BACKBONE_RULES: list[tuple[str, str]] = [
    (r"stem\.conv1\.norm\.(.+)", r"embedder.embedder.normalization.\1"),
    (r"stem\.conv1\.weight", r"embedder.embedder.convolution.weight"),
]
for _stage in range(4):
    _res, _pvt = rf"encoder.stages.{_stage}.layers.\1", rf"encoder.layers.{_stage}"
    BACKBONE_RULES += [
        (rf"res{_stage + 2}\.(\d+)\.shortcut\.norm\.(.+)", rf"{_res}.shortcut.normalization.\2"),
        (rf"res{_stage + 2}\.(\d+)\.shortcut\.weight", rf"{_res}.shortcut.convolution.weight"),
        *(
            rule
            for conv in range(3)
            for rule in (
                (rf"res{_stage + 2}\.(\d+)\.conv{conv + 1}\.norm\.(.+)", rf"{_res}.layer.{conv}.normalization.\2"),
                (rf"res{_stage + 2}\.(\d+)\.conv{conv + 1}\.weight", rf"{_res}.layer.{conv}.convolution.weight"),
            )
        ),
        (rf"patch_embed{_stage + 1}\.proj\.(.+)", rf"{_pvt}.patch_embedding.proj.\1"),
        (rf"patch_embed{_stage + 1}\.norm\.(.+)", rf"{_pvt}.patch_embedding.layer_norm.\1"),
        (rf"norm{_stage + 1}\.(.+)", rf"{_pvt}.layer_norm.\1"),
        (rf"block{_stage + 1}\.(\d+)\.norm(\d)\.(.+)", rf"{_pvt}.blocks.\1.layer_norm_\2.\3"),
        (rf"block{_stage + 1}\.(\d+)\.attn\.q\.(.+)", rf"{_pvt}.blocks.\1.attention.query.\2"),
        (rf"block{_stage + 1}\.(\d+)\.attn\.kv\.(.+)", rf"{_pvt}.blocks.\1.attention.{{key,value}}.\2"),
        (rf"block{_stage + 1}\.(\d+)\.attn\.proj\.(.+)", rf"{_pvt}.blocks.\1.attention.proj.\2"),
        (rf"block{_stage + 1}\.(\d+)\.attn\.sr\.(.+)", rf"{_pvt}.blocks.\1.attention.spatial_reduction.\2"),
        (rf"block{_stage + 1}\.(\d+)\.attn\.norm\.(.+)", rf"{_pvt}.blocks.\1.attention.layer_norm.\2"),
        (rf"block{_stage + 1}\.(\d+)\.mlp\.fc(\d)\.(.+)", rf"{_pvt}.blocks.\1.mlp.dense\2.\3"),
        (rf"block{_stage + 1}\.(\d+)\.mlp\.(dwconv\..+)", rf"{_pvt}.blocks.\1.mlp.\2"),
    ]

_PIXEL, _FUSION, _QUERY = (rf"sem_seg_head\.{part}\." for part in ("pixel_decoder", "fusion_module", "predictor"))
_ENCODER = _PIXEL + r"transformer\.encoder\.layers\.(\d+)\."

RULES: Rules = [
    *((rf"backbone\.{name}", f"model.encoder.backbone.{target}") for name, target in BACKBONE_RULES),
    *((rf"pre_sam_backbone\.{name}", f"model.encoder.maskige_backbone.{target}") for name, target in BACKBONE_RULES),
    (r"scale_factor_module\.(\d)\.(fc\d\..+)", r"model.encoder.channel_weights.\1.\2"),
    (r"audio_backbone\.(features|embeddings)\.(.+)", r"model.audio_encoder.\1.\2"),
    (_PIXEL + r"input_proj\.(\d)\.(\d)\.(.+)", r"model.pixel_decoder.input_projections.\1.\2.\3"),
    (_PIXEL + r"transformer\.level_embed", r"model.pixel_decoder.level_embed"),
    (_ENCODER + r"(self_attn\..+)", r"model.pixel_decoder.layers.\1.\2"),
    (_ENCODER + r"norm1\.(.+)", r"model.pixel_decoder.layers.\1.self_attn_layer_norm.\2"),
    (_ENCODER + r"linear(\d)\.(.+)", r"model.pixel_decoder.layers.\1.fc\2.\3"),
    (_ENCODER + r"norm2\.(.+)", r"model.pixel_decoder.layers.\1.final_layer_norm.\2"),
    (_PIXEL + r"adapter_1\.norm\.(.+)", r"model.pixel_decoder.lateral.1.\1"),
    (_PIXEL + r"adapter_1\.weight", r"model.pixel_decoder.lateral.0.weight"),
    (_PIXEL + r"layer_1\.norm\.(.+)", r"model.pixel_decoder.output.1.\1"),
    (_PIXEL + r"layer_1\.weight", r"model.pixel_decoder.output.0.weight"),
    (_PIXEL + r"mask_features\.(.+)", r"model.pixel_decoder.mask_projection.\1"),
    (_FUSION + r"level_embed\.weight", r"model.fusion.level_embed.weight"),
    (_FUSION + r"audio_pos\.weight", r"model.fusion.audio_position.weight"),
    (_FUSION + r"b_attn\.gamma_v_list\.0", r"model.fusion.attention.visual_gate"),
    (_FUSION + r"b_attn\.gamma_a", r"model.fusion.attention.audio_gate"),
    (_FUSION + r"b_attn\.layer_norm_v_list\.0\.(.+)", r"model.fusion.attention.visual_norm.\1"),
    (_FUSION + r"b_attn\.layer_norm_a_list\.0\.(.+)", r"model.fusion.attention.audio_norm.\1"),
    (_FUSION + r"b_attn\.attn_list\.0\.v_proj\.(.+)", r"model.fusion.attention.q_proj.\1"),
    (_FUSION + r"b_attn\.attn_list\.0\.a_proj\.(.+)", r"model.fusion.attention.k_proj.\1"),
    (_FUSION + r"b_attn\.attn_list\.0\.values_v_proj\.(.+)", r"model.fusion.attention.visual_value_proj.\1"),
    (_FUSION + r"b_attn\.attn_list\.0\.values_a_proj\.(.+)", r"model.fusion.attention.audio_value_proj.\1"),
    (_FUSION + r"b_attn\.attn_list\.0\.out_v_proj\.(.+)", r"model.fusion.attention.visual_out_proj.\1"),
    (_FUSION + r"b_attn\.attn_list\.0\.out_a_proj\.(.+)", r"model.fusion.attention.audio_out_proj.\1"),
    (r"sem_seg_head\.audio_transformation\.embeddings\.(.+)", r"model.audio_projection.layers.\1"),
    (_QUERY + r"query_feat\.weight", r"model.decoder.query_features.weight"),
    (_QUERY + r"query_embed\.weight", r"model.decoder.query_positions.weight"),
    (_QUERY + r"level_embed\.weight", r"model.decoder.level_embed.weight"),
    *(
        rule
        for kind, attention in (("self", "self_attn"), ("cross", "multihead_attn"))
        for rule in (
            (
                _QUERY + rf"transformer_{kind}_attention_layers\.(\d+)\.{attention}\.in_proj_(weight|bias)",
                rf"model.decoder.layers.\1.{kind}_attn.{{q,k,v}}_proj.\2",
            ),
            (
                _QUERY + rf"transformer_{kind}_attention_layers\.(\d+)\.{attention}\.out_proj\.(.+)",
                rf"model.decoder.layers.\1.{kind}_attn.out_proj.\2",
            ),
            (
                _QUERY + rf"transformer_{kind}_attention_layers\.(\d+)\.norm\.(.+)",
                rf"model.decoder.layers.\1.{kind}_attn_layer_norm.\2",
            ),
        )
    ),
    (_QUERY + r"transformer_ffn_layers\.(\d+)\.linear(\d)\.(.+)", r"model.decoder.layers.\1.fc\2.\3"),
    (_QUERY + r"transformer_ffn_layers\.(\d+)\.norm\.(.+)", r"model.decoder.layers.\1.final_layer_norm.\2"),
    (_QUERY + r"decoder_norm\.(.+)", r"model.decoder.layer_norm.\1"),
    (_QUERY + r"class_embed\.(.+)", r"model.decoder.class_head.\1"),
    (_QUERY + r"mask_embed\.layers\.(.+)", r"model.decoder.mask_head.layers.\1"),
]

DROPPED: Rules = [
    (r"criterion\.empty_weight", "class weights of the loss; ours come from config.no_object_weight"),
    (r"pixel_(mean|std)", "normalisation is done by the processor"),
    (r".*\.num_batches_tracked", "counter of a frozen batch norm"),
]
NO_FUSION: Rules = [(r".*\.b_attn\..+", "converted without the bilateral fusion (fusion=False)")]


def convert_official_checkpoint(
    source: str | Path | Mapping[str, Any], preset: str, fusion: bool | None = None
) -> tuple[ComboForAudioVisualSegmentation, ConversionReport]:
    """Our model with the weights of an official checkpoint, in evaluation mode, and the report. Writes nothing.

    The model hears like the release (`audio_query_layout="official"`, per clip), L_ada counts in windows of 5 frames.

    Args:
        source: a detectron2 `.pth` (`{"model": state_dict}`), or the state dict itself (tensors or numpy arrays).
        preset: which configuration the weights were trained with, `"pvtv2-b5-s4"` for example.
        fusion: `None` follows the file; `False` leaves the bilateral fusion out, as the released AVSS/R50 test
            configuration does.

    Raises:
        ValueError: unknown preset, a file that is truncated or foreign, or weights of another configuration.

    Examples:
        >>> import torch
        >>> from combo_hf import convert_official_checkpoint
        >>> foreign = {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}  # or the path of the release's .pth
        >>> try:
        ...     model, report = convert_official_checkpoint(foreign, "r50-s4")
        ... except ValueError as error:
        ...     print(str(error)[:35])
        this is not a COMBO checkpoint: its
    """
    if preset in OWN_PRESETS or preset not in preset_names():
        known = ", ".join(name for name in preset_names() if name not in OWN_PRESETS)
        raise ValueError(f"no official checkpoint has preset {preset!r}; known: {known}.")
    tensors = read_state_dict(source)
    check_preset(tensors, preset)
    has_fusion = any(".b_attn." in name for name in tensors)
    if fusion and not has_fusion:
        raise ValueError("fusion=True, but the checkpoint has no bilateral fusion (b_attn); use None or False.")
    fusion = has_fusion if fusion is None else fusion
    with torch.device("meta"):
        config = ComboConfig.from_preset(preset, audio_query_layout="official", consistency_window=5, fusion=fusion)
        model = ComboForAudioVisualSegmentation(config)
    report = ConversionReport(preset)
    converted = rename_all(tensors, RULES, DROPPED if fusion else [*NO_FUSION, *DROPPED], report)
    check_fit(model, converted, "the checkpoint")
    fill(model, converted, report)
    return model.eval(), report


def check_preset(tensors: Mapping[str, torch.Tensor], preset: str) -> None:
    """Raise `ValueError` where the names and the class layer are of another configuration, or of another network."""
    kinds = {"r50": "backbone.stem.conv1.weight", "pvtv2-b5": "backbone.patch_embed1.proj.weight"}
    found = [kind for kind, name in kinds.items() if name in tensors]
    head = tensors.get("sem_seg_head.predictor.class_embed.bias")
    if not found or head is None or not any(name.startswith("pre_sam_backbone.") for name in tensors):
        raise ValueError(
            f"this is not a COMBO checkpoint: its {len(tensors)} entries ({some(tensors)}) lack a backbone, "
            "pre_sam_backbone or sem_seg_head.predictor.class_embed; give the official .pth."
        )
    backbone, _, subset = preset.rpartition("-")
    wanted = len(SUBSETS[subset]["classes"])
    if found[0] != backbone or len(head) - 1 != wanted:
        fits = [f"{found[0]}-{name}" for name, facts in SUBSETS.items() if len(facts["classes"]) == len(head) - 1]
        raise ValueError(
            f"preset {preset} has backbone {backbone} and {wanted} classes; the checkpoint has {found[0]} and "
            f"{len(head) - 1}. It fits: {', '.join(fits) or 'no preset'}."
        )
