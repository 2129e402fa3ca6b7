"""Conversion of Semantic-SAM's official files: every name accounted for, variants, damaged and foreign files."""

import re

import numpy as np
import pytest
import torch
from fixtures_semantic_sam import EVERYTHING, answer, clicks, largest, lively, official, picture, pixels

from combo_hf.conversion.saving import save_converted_proposal_model
from combo_hf.conversion.semantic_sam import LICENCE_NOTE, RULES, check_variant, convert_semantic_sam
from combo_hf.proposals.configuration_semantic_sam import SemanticSamConfig
from combo_hf.proposals.modeling_semantic_sam import SemanticSamModel
from combo_hf.proposals.semantic_sam import SemanticSamAdapter, SemanticSamProposals


@pytest.fixture(scope="module")
def model() -> SemanticSamModel:
    return lively()


@pytest.mark.parametrize("form", ["file", "outer dict", "numpy", "no prefix", "half"])
def test_conversion(model, tmp_path, form):
    state = official(model)
    if form == "half":
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    source = state
    if form == "numpy":
        source = {name: tensor.numpy() for name, tensor in state.items()}
    elif form == "no prefix":
        source = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    elif form != "half":
        source = tmp_path / "swin.pth"
        torch.save({"model": state, "iteration": 7} if form == "outer dict" else state, source)
    converted, report = convert_semantic_sam(source, config=model.config)
    assert not converted.training and converted.dtype == torch.float32
    assert {name.removeprefix("model.") for name in state} == {*report.consumed, *report.dropped}
    assert len(report.dropped) == 10 and len(report.missing) == 2
    frames, points = pixels(40, 64), clicks(3)
    difference = largest(answer(model, frames, points).mask_logits, answer(converted, frames, points).mask_logits)
    assert difference == 0 or (form == "half" and difference < 1)


def test_converted_folder(model, tmp_path):
    converted, report = convert_semantic_sam(official(model), config=model.config)
    path = save_converted_proposal_model(converted, report, tmp_path / "out", terms=LICENCE_NOTE)
    assert "licence of the Semantic-SAM weights is not settled" in (path / "README.md").read_text(encoding="utf-8")
    generator = SemanticSamProposals.from_pretrained(path, device="cpu", points_per_side=2, **EVERYTHING)
    mine = SemanticSamProposals(SemanticSamAdapter(model), points_per_side=2, **EVERYTHING)
    assert np.array_equal(generator([picture(40, 50)])[0], mine([picture(40, 50)])[0])


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


def changed(state, part, value):
    (name,) = [name for name in state if name.endswith(part)]
    return {**state, name: value(state[name])}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: without(s, "pb_embedding"), "not a Semantic-SAM checkpoint.*lack .*pb_embedding"),
        (lambda s: {"image_encoder.pos_embed": torch.zeros(1)}, "not a Semantic-SAM checkpoint.*image_encoder"),
        (lambda s: without(s, "iou_prediction_head.layers.1"), "2 of .* entries are missing: decoder.iou_head"),
        (lambda s: {**s, "model.backbone.layers.0.blocks.7.norm1.weight": torch.ones(8)}, "no place here: .*blocks.7"),
        (lambda s: {**s, "model.sem_seg_head.predictor.hat": torch.ones(8)}, "1 entries are not of semantic-.*hat"),
        (lambda s: changed(s, "mask_tokens.weight", lambda t: t[:5]), r"\(5, 32\), wanted \(6, 32\)"),
        (lambda s: changed(s, "mask_tokens.weight", lambda t: t * float("nan")), "damaged: .* not finite"),
        (lambda s: changed(s, "decoder.bbox_embed.0.layers.1.bias", lambda t: t + 1), "differs from .*_bbox_embed"),
        (lambda s: changed(s, "layers.3.blocks.0.attn.qkv.bias", lambda t: t[:-1]), "cannot be cut"),
        (lambda s: {}, "holds no state dict"),
    ],
)  # fmt: skip
def test_conversion_refuses(model, damage, message):
    with pytest.raises(ValueError, match=message):
        convert_semantic_sam(damage(official(model)), config=model.config)


def test_damaged_files(model, tmp_path):
    path = tmp_path / "swin.pth"
    torch.save(official(model), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="swin.pth is truncated or not a PyTorch weight file"):
        convert_semantic_sam(path)
    with pytest.raises(ValueError, match="no such file"):
        convert_semantic_sam(tmp_path / "none.pth")
    torch.save({"model": official(model), "trainer": SemanticSamConfig}, path)  # a class: would be run when unpickled
    with pytest.raises(ValueError, match="swin.pth (is truncated or not|holds a .*, which is no tensor)"):
        convert_semantic_sam(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["swin.pth"]


@pytest.mark.parametrize(
    ("width", "blocks", "asked", "result"),
    [
        (96, 6, None, "tiny"),
        (192, 18, "large", "large"),
        (96, 6, "large", ValueError("'large' was asked for, but the checkpoint is 'tiny'")),
        (192, 18, "tiny", ValueError("'tiny' was asked for, but the checkpoint is 'large'")),
        (96, 18, None, ValueError("a Swin of width 96 with 18 blocks in stage 3, which was not released")),
        (192, 5, None, ValueError("or the file is incomplete")),
    ],
)
def test_variant_of_a_file(width, blocks, asked, result):
    state = {f"backbone.layers.2.blocks.{index}.norm1.weight": torch.ones(1) for index in range(blocks)}
    state["backbone.patch_embed.proj.weight"] = torch.empty(width, 3, 4, 4)
    if isinstance(result, str):
        assert check_variant(state, asked) == result
    else:
        with pytest.raises(ValueError, match=re.escape(str(result))):
            check_variant(state, asked)


def test_wrong_variant_is_told_before_the_weights_are_filled(model):
    with pytest.raises(ValueError, match="width 8 with 2 blocks"):
        convert_semantic_sam(official(model))
    with pytest.raises(ValueError, match="sizes .*got 'base'"):
        convert_semantic_sam(official(model), variant="base")


def test_rules_are_all_used(model):
    """No dead line in the table: every rule takes at least one name of the toy network."""
    names = [name.removeprefix("model.") for name in official(model)]
    assert all(any(re.fullmatch(pattern, name) for name in names) for pattern, _ in RULES)
