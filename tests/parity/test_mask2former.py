"""Our pixel decoder and masked decoder against transformers' Mask2Former, both alive, with the same random weights."""

import re

import pytest
import torch
from tolerances import allowed
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoder,
    Mask2FormerPixelDecoder,
    Mask2FormerSinePositionEmbedding,
)

from combo_hf.configuration_combo import ComboConfig
from combo_hf.conversion.fill import cut, rename
from combo_hf.modeling_combo_decoder import ComboDecoder
from combo_hf.modeling_combo_pixel_decoder import ComboPixelDecoder


DIM, HEADS, QUERIES, CHANNELS = 32, 4, 7, [8, 12, 16, 24]
PIXEL_RULES = [
    (r"input_projections\.(.+)", r"input_projections.\1"),
    (r"level_embed", r"level_embed"),
    (r"encoder\.layers\.(\d)\.(self_attn(?:_layer_norm)?\..+)", r"layers.\1.\2"),
    (r"encoder\.layers\.(\d)\.(fc\d|final_layer_norm)\.(.+)", r"layers.\1.\2.\3"),
    (r"adapter_1\.(.+)", r"lateral.\1"),
    (r"layer_1\.(.+)", r"output.\1"),
    (r"mask_projection\.(.+)", r"mask_projection.\1"),
]
DECODER_RULES = [
    (r"layers\.(\d)\.(self_attn|cross_attn)(_layer_norm)\.(.+)", r"layers.\1.\2\3.\4"),
    (r"layers\.(\d)\.self_attn\.(.+)", r"layers.\1.self_attn.\2"),
    (r"layers\.(\d)\.cross_attn\.in_proj_(weight|bias)", r"layers.\1.cross_attn.{q,k,v}_proj.\2"),
    (r"layers\.(\d)\.cross_attn\.(.+)", r"layers.\1.cross_attn.\2"),
    (r"layers\.(\d)\.(fc\d|final_layer_norm)\.(.+)", r"layers.\1.\2.\3"),
    (r"layernorm\.(.+)", r"layer_norm.\1"),
    (r"mask_predictor\.mask_embedder\.(\d)\.0\.(.+)", r"mask_head.layers.\1.\2"),
]


@pytest.fixture(scope="module")
def configs() -> tuple[Mask2FormerConfig, ComboConfig]:
    theirs = Mask2FormerConfig(
        feature_size=DIM, mask_feature_size=DIM, hidden_dim=DIM, encoder_feedforward_dim=48, encoder_layers=2,
        decoder_layers=4, num_attention_heads=HEADS, dropout=0.0, dim_feedforward=40, num_queries=QUERIES,
    )  # fmt: skip
    ours = ComboConfig.from_preset(
        "tiny", hidden_dim=DIM, num_attention_heads=HEADS, num_queries=QUERIES, pixel_decoder_layers=2,
        pixel_decoder_feedforward_dim=48, decoder_layers=3, decoder_feedforward_dim=40,
    )  # fmt: skip
    return theirs, ours


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)


def transfer(theirs: torch.nn.Module, ours: torch.nn.Module, rules: list[tuple[str, str]]) -> None:
    wanted, found = ours.state_dict(), {}
    for name, tensor in theirs.state_dict().items():
        found.update(cut(rename(name, rules) or pytest.fail(name), tensor))
    missing = {name for name in wanted if name not in found}
    assert all(re.match(r"query_|level_embed|class_head", name) for name in missing), missing
    ours.load_state_dict(found, strict=False)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours - theirs).abs().max()) <= allowed("mask2former", float(theirs.abs().max()))


@torch.no_grad()
def test_pixel_decoder(configs: tuple[Mask2FormerConfig, ComboConfig]):
    theirs = Mask2FormerPixelDecoder(configs[0], feature_channels=CHANNELS).eval()
    randomise(theirs)
    ours = ComboPixelDecoder(configs[1], CHANNELS).eval()
    transfer(theirs, ours, PIXEL_RULES)
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, c, 96 // 2**s, 64 // 2**s, generator=generator) for s, c in enumerate(CHANNELS, start=2)]
    wanted = theirs(maps)
    features, scales = ours(tuple(maps))
    assert_same(features, wanted.mask_features)
    for scale, expected in zip(scales, wanted.multi_scale_features, strict=True):
        assert_same(scale, expected)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("all_layers", [True, False])
def test_masked_decoder(configs: tuple[Mask2FormerConfig, ComboConfig], all_layers: bool, attention: str):
    theirs = Mask2FormerMaskedAttentionDecoder(configs[0]).eval()
    randomise(theirs)
    configs[1]._attn_implementation = attention
    ours = ComboDecoder(configs[1]).eval()
    randomise(ours)
    transfer(theirs, ours, DECODER_RULES)
    generator = torch.Generator().manual_seed(2)
    scales = [torch.randn(2, DIM, side, side, generator=generator) for side in (2, 4, 8)]
    features = torch.randn(2, DIM, 16, 16, generator=generator)
    audio = torch.randn(2, QUERIES, DIM, generator=generator)
    position = Mask2FormerSinePositionEmbedding(num_position_features=DIM // 2, normalize=True)
    places = [position(maps.shape, maps.device, maps.dtype, None).flatten(2).permute(2, 0, 1) for maps in scales]
    values = [
        (maps.flatten(2) + ours.level_embed.weight[level][None, :, None]).permute(2, 0, 1)
        for level, maps in enumerate(scales)
    ]
    wanted = theirs(
        inputs_embeds=(ours.query_features.weight + audio).transpose(0, 1),
        multi_stage_positional_embeddings=places,
        pixel_embeddings=features,
        encoder_hidden_states=values,
        query_position_embeddings=ours.query_positions.weight[:, None].expand(-1, 2, -1),
        feature_size_list=[maps.shape[-2:] for maps in scales],
        output_hidden_states=True,
        return_dict=True,
    )
    predictions = ours(features, scales, audio, all_layers)
    assert_same(predictions[-1][1], wanted.masks_queries_logits[-1])
    if all_layers:
        assert len(predictions) == len(wanted.masks_queries_logits) == 4
        for (_, masks), expected in zip(predictions, wanted.masks_queries_logits, strict=True):
            assert_same(masks, expected)
