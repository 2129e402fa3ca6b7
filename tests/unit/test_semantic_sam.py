"""Semantic-SAM at a toy size: sizes of frames, batches of clicks, reading of maps, save and load, proposals."""

import math
import re

import numpy as np
import pytest
import torch
from fixtures_semantic_sam import EVERYTHING, SMALL, answer, clicks, largest, lively, picture, pixels
from PIL import Image

from combo_hf.proposals.configuration_semantic_sam import LEVEL_TOKENS, VARIANTS, SemanticSamConfig
from combo_hf.proposals.modeling_semantic_sam import SemanticSamModel, enlarge, inverse_sigmoid
from combo_hf.proposals.modeling_semantic_sam_encoder import (
    ProjectedValues,
    SemanticSamDeformableAttention,
    sample_maps,
    sample_table,
    value_maps,
    value_table,
)
from combo_hf.proposals.semantic_sam import SemanticSamAdapter, SemanticSamProposals
from combo_hf.proposals_combo import get_proposal_generator


@pytest.fixture(scope="module")
def model() -> SemanticSamModel:
    return lively()


@pytest.fixture(scope="module")
def folder(model: SemanticSamModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("semantic-sam") / "modèle ü"
    model.save_pretrained(path)
    return str(path)


# -- configuration ---------------------------------------------------------
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_dim": 30}, "hidden_dim 30 must be a multiple of 4"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"level_tokens": [0, 2]}, "each of 0, 1, 2"),
        ({"level_tokens": []}, "level_tokens"),
        ({"click_box_size": 0.0}, "click_box_size is 0.0"),
        ({"points_per_batch": 0}, "points_per_batch is 0; use 1 or more"),
        ({"decoder_layers": 0}, "decoder_layers is 0"),
        ({"backbone_config": {"model_type": "swine"}}, "'swine'"),
    ],
)
def test_configuration_refuses(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SemanticSamConfig(**{**SMALL, **overrides})


@pytest.mark.parametrize(("variant", "width", "blocks", "window"), [("tiny", 96, 6, 7), ("large", 192, 18, 12)])
def test_released_sizes(variant, width, blocks, window):
    config = SemanticSamConfig.from_variant(variant, points_per_batch=64)
    backbone = config.backbone_config
    assert (backbone.embed_dim, backbone.depths[2], backbone.window_size) == (width, blocks, window)
    assert config.points_per_batch == 64 and config.level_tokens == LEVEL_TOKENS
    again = SemanticSamConfig.from_dict(config.to_dict())
    assert again.backbone_config.embed_dim == width and again.points_per_batch == 64


@pytest.mark.parametrize(
    "overrides",
    [
        {"hidden_dim": 16},
        {"num_attention_heads": 2},
        {"deformable_points": 2},
        {"encoder_layers": 1},
        {"encoder_feedforward_dim": 24},
        {"decoder_layers": 2},
        {"decoder_feedforward_dim": 24},
        {"level_tokens": [1, 0]},
    ],
)
def test_sizes_shape_the_network(model, overrides):
    smaller = SemanticSamModel(SemanticSamConfig(**{**SMALL, **overrides}))
    assert smaller.num_parameters() < model.num_parameters()


def test_unknown_variant():
    assert set(VARIANTS) == {"tiny", "large"}
    with pytest.raises(ValueError, match="sizes .*'large', 'tiny'.*got 'huge'"):
        SemanticSamConfig.from_variant("huge")


# -- network ---------------------------------------------------------------
@pytest.mark.parametrize(("height", "width"), [(64, 96), (1, 1), (33, 70), (31, 200), (90, 32)])
def test_any_size_of_frame(model, height, width):
    with torch.no_grad():
        features = model.encode(pixels(height, width))
        out = model.decode(features, clicks(3))
    rows, columns = -(-height // 32) * 8, -(-width // 32) * 8
    assert out.mask_logits.shape == (1, 3, 6, rows, columns) and out.iou_scores.shape == (1, 3, 6)
    assert torch.isfinite(out.mask_logits).all() and out.mask_logits.std() > 0
    assert enlarge(out.mask_logits[0, :, 0], features).shape == (3, height, width)


def test_enlarging_is_exact_where_maps_are_flat(model):
    with torch.no_grad():
        features = model.encode(pixels(40, 40))
    logits = torch.zeros(2, 16, 16)
    logits[1] = 3.0
    logits[0, :, 10:] = 9.0  # columns 40 to 63 of the padded frame: not in the picture, but beside it
    grown = enlarge(logits, features)
    assert grown.shape == (2, 40, 40) and (grown[1] == 3).all()
    assert (grown[0, :, :38] == 0).all() and (grown[0, :, 38:] > 0).all()


def test_clicks_count_in_parts_of_the_frame(model):
    """A click is placed in the padded frame: at 40 x 50 of 64 x 64 its box shrinks by 50 / 64 and 40 / 64."""
    with torch.no_grad():
        features = model.encode(pixels(40, 50))
    boxes = model.decoder.click_boxes(features, torch.tensor([[[1.0, 0.5]]]))[0, 0]
    expected = torch.tensor([50 / 64, 0.5 * 40 / 64, 0.005 * 50 / 64, 0.005 * 40 / 64])
    assert torch.allclose(boxes, expected)


def test_frames_of_a_batch_are_independent(model):
    frames, points = pixels(50, 70, frames=2), clicks(4, frames=2)
    together = answer(model, frames, points)
    for index in range(2):
        alone = answer(model, frames[index : index + 1], points[index : index + 1])
        assert largest(together.mask_logits[index], alone.mask_logits[0]) < 1e-4
        assert largest(together.iou_scores[index], alone.iou_scores[0]) < 1e-5


def test_clicks_of_a_batch_see_each_other(model):
    frames, points = pixels(64, 64), clicks(8)
    together = answer(model, frames, points).iou_scores
    halves = torch.cat([answer(model, frames, points[:, part]).iou_scores for part in (slice(4), slice(4, 8))], dim=1)
    assert largest(together, halves) > 1e-3


def test_levels_come_in_the_order_asked_for(model):
    frames, points = pixels(64, 40), clicks(3)
    every = answer(model, frames, points)
    some = answer(model, frames, points, [5, 1])
    assert largest(some.mask_logits, every.mask_logits[:, :, [4, 0]]) < 1e-4
    assert largest(some.iou_scores, every.iou_scores[:, :, [4, 0]]) < 1e-5
    swapped = lively(level_tokens=list(range(6)))
    tokens = answer(swapped, frames, points)
    assert largest(every.iou_scores, tokens.iou_scores[:, :, LEVEL_TOKENS]) < 1e-5


def test_size_of_the_click_box_counts(model):
    frames, points = pixels(64, 64), clicks(3)
    other = answer(lively(click_box_size=0.05), frames, points)
    assert largest(answer(model, frames, points).mask_logits, other.mask_logits) > 1e-3


@pytest.mark.parametrize(
    ("frames", "points", "levels", "message"),
    [
        (torch.zeros(3, 8, 8), clicks(1), None, "pixel_values: wanted shape (frames, 3, H, W), got (3, 8, 8)"),
        (torch.zeros(1, 3, 0, 8), clicks(1), None, "got (1, 3, 0, 8)"),
        (pixels(8, 8), torch.zeros(1, 0, 2), None, "points: wanted shape (frames, clicks, 2), got (1, 0, 2)"),
        (pixels(8, 8), clicks(2)[0], None, "got (2, 2)"),
        (pixels(8, 8), clicks(2, frames=2), None, "points are for 2 frames, the features of 1"),
        (pixels(8, 8), clicks(2), [0], "levels: wanted some of 1 to 6, got [0]"),
        (pixels(8, 8), clicks(2), [], "got []"),
    ],
)
def test_network_refuses(model, frames, points, levels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model(frames, points, levels)


def test_inverse_sigmoid():
    values = torch.tensor([0.0, 0.2, 1.0])
    assert torch.allclose(torch.sigmoid(inverse_sigmoid(values)), torch.tensor([1e-5, 0.2, 1 - 1e-5]), atol=1e-6)


# -- reading of maps -------------------------------------------------------
def read_slowly(value, shapes, location, weights) -> torch.Tensor:
    """The definition: for every query and head the weighted sum of bilinear reads, zeros outside."""
    frames, queries, heads, scales, points = weights.shape
    out = torch.zeros(frames, queries, heads, value.shape[-1] // heads)
    levels = value.split([h * w for h, w in shapes], dim=1)
    for f, n, m, s, r in np.ndindex(frames, queries, heads, scales, points):
        height, width = shapes[s]
        cells = levels[s][f].view(height, width, heads, -1)[:, :, m]
        x, y = (location[f, n, m, s, r] * torch.tensor([width, height]) - 0.5).tolist()
        for row, column in ((math.floor(y) + dy, math.floor(x) + dx) for dy in (0, 1) for dx in (0, 1)):
            if 0 <= row < height and 0 <= column < width:
                part = (1 - abs(y - row)) * (1 - abs(x - column))
                out[f, n, m] += part * weights[f, n, m, s, r] * cells[row, column]
    return out.flatten(2)


@pytest.mark.parametrize("shapes", [[(3, 5), (2, 2)], [(1, 1)], [(4, 1), (1, 3), (2, 6)]])
def test_both_ways_of_reading_follow_the_definition(shapes):
    generator = torch.Generator().manual_seed(0)
    frames, queries, heads, points, cells = 2, 3, 2, 2, sum(h * w for h, w in shapes)
    value = torch.randn(frames, cells, heads * 4, generator=generator)
    places = (frames, queries, heads, len(shapes), points)
    location = torch.rand(*places, 2, generator=generator) * 2.4 - 0.7  # a third lies outside
    location[0, 0, 0, 0, 0] = torch.tensor([1.0, 0.0])
    location[0, 1, 0, 0, 0] = torch.tensor([-50.0, 1e6])
    weights = torch.rand(places, generator=generator)
    expected = read_slowly(value, shapes, location, weights)
    table = sample_table(ProjectedValues(shapes, table=value_table(value, shapes, heads)), location, weights)
    maps = sample_maps(ProjectedValues(shapes, maps=value_maps(value, shapes, heads)), location, weights)
    assert largest(table, expected) < 1e-5 and largest(maps, expected) < 1e-5


def test_places_that_are_not_numbers_read_nothing_else():
    shapes = [(2, 3)]
    values = ProjectedValues(shapes, table=value_table(torch.ones(1, 6, 4), shapes, 2))
    location = torch.full((1, 1, 2, 1, 2, 2), float("nan"))
    assert sample_table(values, location, torch.ones(1, 1, 2, 1, 2)).shape == (1, 1, 4)


def test_boxes_scale_the_offsets():
    config = SemanticSamConfig(**SMALL)
    attention = SemanticSamDeformableAttention(config, scales=1).eval()
    torch.nn.init.zeros_(attention.sampling_offsets.weight)
    attention.sampling_offsets.bias.data = torch.tensor([1.0, 0.0]).repeat(config.num_attention_heads * 4)
    cells = torch.zeros(1, 64, 32)
    cells[0, :, 0] = torch.arange(64.0)
    with torch.no_grad():
        attention.value_proj.weight.copy_(torch.eye(32))
        attention.value_proj.bias.zero_()
        attention.output_proj.weight.copy_(torch.eye(32))
        attention.output_proj.bias.zero_()
        values = attention.project(cells, [(1, 64)])
        query = torch.zeros(1, 1, 32)
        point = attention(query, torch.tensor([[[0.5, 0.5]]]), values)[0, 0, 0]
        box = attention(query, torch.tensor([[[0.5, 0.5, 0.5, 1.0]]]), values)[0, 0, 0]
    assert float(point) == pytest.approx(31.5 + 1)  # one cell to the right
    assert float(box) == pytest.approx(31.5 + 0.5 * 64 / 2 / 4)  # half of the box divided by its 4 points


# -- save and load ---------------------------------------------------------
def test_round_trip(model, folder):
    again, report = SemanticSamModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.to_dict() == {
        **model.config.to_dict(),
        "_name_or_path": again.config.to_dict()["_name_or_path"],
    }
    frames, points = pixels(45, 70), clicks(3)
    assert torch.equal(answer(model, frames, points).mask_logits, answer(again, frames, points).mask_logits)


def test_missing_weights_are_initialised(model, tmp_path):
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("pixel_decoder.")}
    model.save_pretrained(tmp_path, state_dict=kept)
    again = SemanticSamModel.from_pretrained(tmp_path)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in again.state_dict().values())
    assert 0.5 < float(again.pixel_decoder.level_embed.detach().std()) < 2


def test_half_precision(model, folder):
    half = SemanticSamModel.from_pretrained(folder, dtype=torch.bfloat16)
    out = answer(half, pixels(64, 64), clicks(6))
    full = answer(model, pixels(64, 64), clicks(6))
    assert out.mask_logits.dtype == torch.bfloat16
    both = torch.stack([out.mask_logits.float().flatten(), full.mask_logits.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.99


# -- proposals -------------------------------------------------------------
def test_settings_of_the_release(model):
    settings = SemanticSamProposals(SemanticSamAdapter(model)).to_dict()
    wanted = {
        "name": "semantic_sam", "points_per_side": 32, "points_per_batch": 200, "pred_iou_thresh": 0.88,
        "stability_score_thresh": 0.92, "stability_score_offset": 1.0, "box_nms_thresh": 0.7,
        "min_mask_region_area": 10, "level": [3],
    }  # fmt: skip
    assert {key: settings[key] for key in wanted} == wanted


def test_number_of_clicks_together_belongs_to_the_model(model):
    other = lively(points_per_batch=5)
    assert SemanticSamProposals(SemanticSamAdapter(other)).settings.points_per_batch == 5
    assert SemanticSamProposals(SemanticSamAdapter(other), points_per_batch=9).settings.points_per_batch == 9
    generators = [
        SemanticSamProposals(SemanticSamAdapter(model), points_per_side=3, points_per_batch=count, **EVERYTHING)
        for count in (9, 4)
    ]
    scores = [generator.generate(picture(64, 40)).scores for generator in generators]
    assert np.abs(np.sort(scores[0])[-5:] - np.sort(scores[1])[-5:]).max() > 1e-4
    assert generators[0].identity() != generators[1].identity()


@pytest.mark.parametrize("size", [(64, 40), (1, 1), (70, 33)])
def test_proposals_of_any_size(model, size):
    generator = SemanticSamProposals(SemanticSamAdapter(model), points_per_side=2, level=[3, 1], **EVERYTHING)
    found = generator.generate(picture(*size))
    assert found.masks.shape[1:] == size[::-1] and found.masks.dtype == np.bool_
    assert len(found.masks) == len(found.scores) == len(found.points)
    assert found.masks.any(axis=(1, 2)).all() or size == (1, 1)
    with torch.no_grad():
        grid = np.array([[x, y] for y in (0.25, 0.75) for x in (0.25, 0.75)]) * size
        asked = SemanticSamAdapter(model, [3, 1])
        scores = asked.decode(asked.encode(picture(*size)), grid).ious.flatten()
    assert set(found.scores.tolist()) <= set(scores.tolist())


def test_no_mask_is_good_enough(model):
    generator = SemanticSamProposals(SemanticSamAdapter(model), points_per_side=2, pred_iou_thresh=1e6)
    masks = generator([picture(40, 30), picture(10, 20)])
    assert [mask.shape for mask in masks] == [(0, 30, 40), (0, 20, 10)]


def test_adapter_normalises_and_takes_any_mode(model):
    seen = []

    class Listener(SemanticSamModel):
        def encode(self, pixel_values, tap=None):
            seen.append(pixel_values)
            return super().encode(pixel_values, tap)

    adapter = SemanticSamAdapter(Listener(model.config))
    for mode in ("RGB", "L", "RGBA", "P"):
        adapter.encode(Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode))
    expected = torch.tensor([(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, (255 - 103.53) / 57.375])
    for pixel_values in seen:
        assert pixel_values.shape == (1, 3, 4, 5)
        assert torch.allclose(pixel_values[0, :, 2, 3], expected)


def test_generator_by_name(folder):
    generator = get_proposal_generator(
        {"name": "semantic_sam", "model": folder, "device": "cpu", "points_per_side": 2, "level": [1, 6], **EVERYTHING}
    )
    masks = generator([picture(48, 32)])[0]
    assert masks.shape[1:] == (32, 48) and len(masks) > 0
    settings = generator.to_dict()
    assert settings["level"] == [1, 6] and settings["model"] == folder and settings["points_per_batch"] == 200
    half = get_proposal_generator({**settings, "device": "cpu", "dtype": "bfloat16"})
    assert half.adapter.model.dtype == torch.bfloat16
    assert half([picture(48, 32)])[0].shape[1:] == (32, 48)


@pytest.mark.parametrize("level", [[], [0], [7], [3, 3], 3, ["3"], [True]])
def test_levels_are_checked(model, level):
    with pytest.raises(ValueError, match="^level: wanted"):
        SemanticSamProposals(SemanticSamAdapter(model), level=level)


def test_folder_of_another_model(tmp_path, model):
    with pytest.raises(ValueError, match="config.json"):
        SemanticSamProposals.from_pretrained(tmp_path, device="cpu")
    model.config.backbone_config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="wanted weights of model type .?semantic_sam.*swin"):
        SemanticSamProposals.from_pretrained(tmp_path, device="cpu")
