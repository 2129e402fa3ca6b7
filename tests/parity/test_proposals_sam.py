"""SAM against numbers of the official code (a small configuration), and against transformers' own generator."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from proposal_goldens import (
    EMBEDDING,
    IOU,
    LOGITS,
    PIXELS,
    assert_same_proposals,
    facts,
    frame,
    golden,
    official_weights,
    recorded_masks,
    sam_tiny_config,
)

from combo_hf.conversion.sam import convert_sam
from combo_hf.conversion.saving import save_converted_proposal_model
from combo_hf.maskige_combo import PALETTE, maskige_index, paint_maskige
from combo_hf.proposals.sam import SamAdapter, SamProposals


KIND = "sam_tiny"


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    model, report = convert_sam(official_weights(shared, KIND), sam_tiny_config(shared))
    assert len(report.consumed) == 202 and not report.dropped
    return save_converted_proposal_model(model, report, tmp_path_factory.mktemp("sam") / "sam-tiny")


@pytest.fixture(scope="module")
def adapter(folder) -> SamAdapter:
    return SamProposals.from_pretrained(folder, device="cpu").adapter


def test_preprocessing_is_bit_equal(shared, adapter):
    processor = type(adapter.image_processor)(
        **{**adapter.image_processor.to_dict(), "do_normalize": False, "do_rescale": False, "do_pad": False}
    )
    pixels = processor(frame(shared, KIND), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels, golden(shared, KIND)["resized_uint8"])


def test_embedding_and_prompts(shared, adapter):
    values = golden(shared, KIND)
    with torch.no_grad():
        encoded = adapter.encode(frame(shared, KIND))
        found = adapter.decode(encoded, values["prompt_a/points_xy"][:, 0])
        enlarged = adapter.upscale(encoded, found.logits[0])
    np.testing.assert_allclose(encoded.features, values["image_embedding"], atol=EMBEDDING, rtol=0)
    largest = np.abs(values["prompt_a/low_res"]).max()
    np.testing.assert_allclose(found.logits, values["prompt_a/low_res"], atol=LOGITS * largest, rtol=0)
    np.testing.assert_allclose(found.ious, values["prompt_a/iou"], atol=IOU, rtol=0)
    np.testing.assert_allclose(enlarged, values["prompt_a/mask_point0"], atol=LOGITS * largest, rtol=0)


@pytest.mark.parametrize("run", ["A", "B", "C"])
def test_automatic_masks(shared, adapter, run):
    recorded = facts(shared, KIND)["amg"][run]
    generator = SamProposals(adapter, points_per_side=recorded["points_per_side"], **recorded["params"])
    assert_same_proposals(shared, KIND, f"amg_{run}", generator.generate(frame(shared, KIND)))


def test_batches_of_clicks_are_a_matter_of_memory_only(shared, adapter):
    thresholds = {"points_per_side": 6, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.7}
    whole, parts = (
        SamProposals(adapter, points_per_batch=count, **thresholds).generate(frame(shared, KIND)) for count in (36, 7)
    )
    assert len(whole.masks) > 5
    np.testing.assert_array_equal(whole.points, parts.points)
    assert (whole.masks != parts.masks).mean(axis=(1, 2)).max() <= PIXELS


def test_transformers_own_generator_agrees(shared, folder, adapter, monkeypatch):
    pytest.importorskip("torchvision", exc_type=ImportError)
    from transformers import SamImageProcessorPil, SamModel
    from transformers.pipelines.mask_generation import MaskGenerationPipeline

    logging.getLogger("transformers").setLevel(logging.ERROR)
    thresholds = {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.8}
    pipe = MaskGenerationPipeline(
        model=SamModel.from_pretrained(folder), image_processor=SamImageProcessorPil.from_pretrained(folder)
    )
    theirs = np.stack(pipe(frame(shared, KIND), points_per_crop=8, points_per_batch=64, **thresholds)["masks"])
    ours = SamProposals(adapter, points_per_side=8, **thresholds).generate(frame(shared, KIND)).masks
    assert len(ours) and ours.shape == theirs.shape
    assert (ours != theirs).mean(axis=(1, 2)).max() <= PIXELS


@pytest.mark.parametrize(("kind", "run"), [("sam_tiny", "amg_B"), ("mobilesam", "amg_B"), ("many", None)])
def test_maskiges(shared, kind, run):
    recorded = golden(shared, "maskige")
    if run is None:
        width = recorded["many/index_map"].shape[1]
        masks = np.unpackbits(recorded["many/masks_packed"], axis=-1).astype(bool)[..., :width]
    else:
        masks = recorded_masks(shared, kind, run)[recorded[f"{kind}/selected_masks"]]
    np.testing.assert_array_equal(maskige_index(masks), recorded[f"{kind}/index_map"])
    np.testing.assert_array_equal(paint_maskige(masks), recorded[f"{kind}/rgb224"])


def test_palette_and_the_empty_maskige(shared):
    recorded = golden(shared, "maskige")
    np.testing.assert_array_equal(PALETTE[:150], recorded["palette"])
    np.testing.assert_array_equal(paint_maskige(np.zeros((0, 30, 40), bool)), recorded["empty/rgb224"])
