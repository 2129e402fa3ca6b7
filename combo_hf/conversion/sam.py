"""Official files of SAM (`sam_vit_*.pth`) and MobileSAM (`mobile_sam.pt`) -> models that `from_pretrained` takes.

As everywhere in this package, every name of the file is consumed or listed as dropped, and every tensor of the model
is filled. Files are read without running what is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from combo_hf.conversion.files import read_state_dict
from combo_hf.conversion.fill import ConversionReport, Rules, check_fit, fill, rename_all
from combo_hf.files.wording import some


_POSITIONS = "shared_image_embedding.positional_embedding"
_TIED = "prompt_encoder.shared_embedding.positional_embedding"  # where the network has it, the same tensor
_ENDS = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}  # the heads have three layers

_HEADS: list[tuple[str, str]] = [
    (rf"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.\d)\.layers\.{number}\.(.+)",
     rf"mask_decoder.\1.{target}.\2")
    for number, target in _ENDS.items()
]  # fmt: skip

# Everything behind the image encoder: the same in both files.
DECODER_RULES: Rules = [
    (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", _POSITIONS),
    (r"prompt_encoder\.point_embeddings\.(.+)", r"prompt_encoder.point_embed.\1"),
    (r"prompt_encoder\.(not_a_point_embed|no_mask_embed)\.(.+)", r"prompt_encoder.\1.\2"),
    (r"prompt_encoder\.mask_downscaling\.0\.(.+)", r"prompt_encoder.mask_embed.conv1.\1"),
    (r"prompt_encoder\.mask_downscaling\.1\.(.+)", r"prompt_encoder.mask_embed.layer_norm1.\1"),
    (r"prompt_encoder\.mask_downscaling\.3\.(.+)", r"prompt_encoder.mask_embed.conv2.\1"),
    (r"prompt_encoder\.mask_downscaling\.4\.(.+)", r"prompt_encoder.mask_embed.layer_norm2.\1"),
    (r"prompt_encoder\.mask_downscaling\.6\.(.+)", r"prompt_encoder.mask_embed.conv3.\1"),
    *_HEADS,
    (r"mask_decoder\.output_upscaling\.0\.(.+)", r"mask_decoder.upscale_conv1.\1"),
    (r"mask_decoder\.output_upscaling\.1\.(.+)", r"mask_decoder.upscale_layer_norm.\1"),
    (r"mask_decoder\.output_upscaling\.3\.(.+)", r"mask_decoder.upscale_conv2.\1"),
    (r"mask_decoder\.(iou_token|mask_tokens)\.(.+)", r"mask_decoder.\1.\2"),
    (r"mask_decoder\.transformer\.norm_final_attn\.(.+)", r"mask_decoder.transformer.layer_norm_final_attn.\1"),
    (r"mask_decoder\.transformer\.layers\.(\d+)\.norm(\d)\.(.+)",
     r"mask_decoder.transformer.layers.\1.layer_norm\2.\3"),
    (r"mask_decoder\.transformer\.(.+)", r"mask_decoder.transformer.\1"),
]  # fmt: skip

_NECK: Rules = [
    (rf"image_encoder\.neck\.{number}\.(.+)", rf"vision_encoder.neck.{target}.\1")
    for number, target in enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2"))
]

SAM_RULES: Rules = [
    *_NECK,
    (r"image_encoder\.pos_embed", r"vision_encoder.pos_embed"),
    (r"image_encoder\.patch_embed\.proj\.(.+)", r"vision_encoder.patch_embed.projection.\1"),
    (r"image_encoder\.blocks\.(\d+)\.norm(\d)\.(.+)", r"vision_encoder.layers.\1.layer_norm\2.\3"),
    (r"image_encoder\.blocks\.(\d+)\.(.+)", r"vision_encoder.layers.\1.\2"),
    *DECODER_RULES,
]

_CONVOLUTIONS = {"1": "expand", "2": "depthwise", "3": "project"}
_LAYER = r"image_encoder\.layers\.(\d)\."
_STAGE = r"vision_encoder.stages.\1."

MOBILE_SAM_RULES: Rules = [
    *_NECK,
    *(
        (rf"image_encoder\.patch_embed\.seq\.{2 * number}\.{short}\.(.+)",
         rf"vision_encoder.patch_embed.{number}.{name}.\1")
        for number in range(2) for short, name in (("c", "conv"), ("bn", "norm"))
    ),
    *(
        rule
        for number, part in _CONVOLUTIONS.items() for short, name in (("c", "conv"), ("bn", "norm"))
        for rule in (
            (_LAYER + rf"blocks\.(\d+)\.conv{number}\.{short}\.(.+)", _STAGE + rf"blocks.\2.{part}.{name}.\3"),
            (_LAYER + rf"downsample\.conv{number}\.{short}\.(.+)", _STAGE + rf"downsample.{part}.{name}.\2"),
        )
    ),
    (_LAYER + r"blocks\.(\d+)\.local_conv\.c\.(.+)", _STAGE + r"blocks.\2.local_conv.conv.\3"),
    (_LAYER + r"blocks\.(\d+)\.local_conv\.bn\.(.+)", _STAGE + r"blocks.\2.local_conv.norm.\3"),
    (_LAYER + r"blocks\.(\d+)\.attn\.(.+)", _STAGE + r"blocks.\2.attention.\3"),
    (_LAYER + r"blocks\.(\d+)\.mlp\.(.+)", _STAGE + r"blocks.\2.mlp.\3"),
    *DECODER_RULES,
]  # fmt: skip

DROPPED: Rules = [
    (r"image_encoder\.(norm_head|head)\..+", "ImageNet classifier, not used for segmentation"),
    (r"image_encoder\..+\.attention_bias_idxs", "table of distances, computed"),
    (r"image_encoder\..+\.attn\.ab", "cache of the attention bias"),
    (r"pixel_(mean|std)", "normalisation is done by the image processor"),
]

# Width of the image encoder -> what else differs between the three official SAM files.
SAM_VARIANTS: dict[int, dict[str, Any]] = {
    768: {"num_hidden_layers": 12, "num_attention_heads": 12, "global_attn_indexes": [2, 5, 8, 11]},
    1024: {"num_hidden_layers": 24, "num_attention_heads": 16, "global_attn_indexes": [5, 11, 17, 23]},
    1280: {"num_hidden_layers": 32, "num_attention_heads": 16, "global_attn_indexes": [7, 15, 23, 31]},
}


def convert_sam(source: str | Path | Mapping[str, Any], config: Any = None) -> tuple[Any, ConversionReport]:
    """`SamModel` with the weights of an official file, and the report. Writes nothing.

    Args:
        source: `sam_vit_b_*.pth`, `sam_vit_l_*.pth`, `sam_vit_h_*.pth`, or the state dict itself.
        config (`SamConfig`, *optional*): default: told from the width of the image encoder.

    Raises:
        ValueError: a truncated or foreign file, or a variant that there is not.
    """
    from transformers import SamConfig, SamModel

    tensors = read_state_dict(source)
    first = tensors.get("image_encoder.pos_embed")
    if first is None or first.ndim != 4:
        raise ValueError(_foreign(tensors, "SAM", "image_encoder.pos_embed", "mobile_sam"))
    if config is None:
        width = first.shape[-1]
        if width not in SAM_VARIANTS:
            raise ValueError(f"no official SAM has an image encoder {width} wide; known: {list(SAM_VARIANTS)}.")
        config = SamConfig(vision_config={"hidden_size": width, **SAM_VARIANTS[width]})
    return _build(SamModel, config, tensors, SAM_RULES, f"SAM, width {first.shape[-1]}")


def convert_mobile_sam(source: str | Path | Mapping[str, Any], config: Any = None) -> tuple[Any, ConversionReport]:
    """[`MobileSamModel`] with the weights of the official file, and the report. Writes nothing.

    Args:
        source: `mobile_sam.pt`, or the state dict itself.
        config ([`MobileSamConfig`], *optional*): default: the released model.

    Raises:
        ValueError: a truncated or foreign file.
    """
    from combo_hf.proposals.modeling_mobile_sam import MobileSamConfig, MobileSamModel

    tensors = read_state_dict(source)
    if "image_encoder.patch_embed.seq.0.c.weight" not in tensors:
        raise ValueError(_foreign(tensors, "MobileSAM", "image_encoder.patch_embed.seq.0.c.weight", "sam"))
    return _build(MobileSamModel, config or MobileSamConfig(), tensors, MOBILE_SAM_RULES, "MobileSAM vit_t")


def _build(
    network: Any, config: Any, tensors: Mapping[str, torch.Tensor], rules: Rules, name: str
) -> tuple[Any, ConversionReport]:
    """A network with every tensor taken from a file, and the report.

    Raises:
        ValueError: names without a place, tensors that are missing, of another shape or not finite.
    """
    report = ConversionReport(name)
    converted = rename_all(tensors, rules, DROPPED, report)
    model = network(config)
    if _TIED in model.state_dict() and _POSITIONS in converted:
        converted[_TIED] = converted[_POSITIONS]
    check_fit(model, converted, "the file")
    fill(model, converted, report)
    return model.eval(), report


def _foreign(tensors: Mapping[str, torch.Tensor], name: str, wanted: str, other: str) -> str:
    return f"this is not a file of {name}: it has no {wanted} (it has {some(tensors)}). Is it one of --model {other}?"
