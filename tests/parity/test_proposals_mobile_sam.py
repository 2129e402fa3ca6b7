"""MobileSAM, full size, against numbers of the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from proposal_goldens import (
    EMBEDDING,
    IOU,
    LOGITS,
    assert_same_proposals,
    facts,
    frame,
    golden,
    official_weights,
)

from combo_hf.conversion.sam import convert_mobile_sam
from combo_hf.conversion.saving import save_converted_proposal_model
from combo_hf.proposals.sam import MobileSamProposals


KIND = "mobilesam"
# Official stage -> our module; the official ones have tokens (B, N, C), ours maps (B, C, h, w).
STAGES = {
    "patch_embed": "patch_embed.1",
    "layers.0": "stages.0",
    "layers.1.blocks.0": "stages.1.blocks.0",
    "layers.1": "stages.1",
    "layers.2": "stages.2",
    "layers.3": "stages.3",
}


@pytest.fixture(scope="module")
def generator(shared, tmp_path_factory) -> MobileSamProposals:
    """Through an official file, the converter, a folder and `from_pretrained`."""
    place = tmp_path_factory.mktemp("mobile-sam")
    weights = {name: torch.from_numpy(values) for name, values in official_weights(shared, KIND).items()}
    torch.save(weights, place / "mobile_sam.pt")
    model, report = convert_mobile_sam(place / "mobile_sam.pt")
    assert len(report.consumed) == 435 and len(report.dropped) == 4 and not report.missing
    folder = save_converted_proposal_model(model, report, place / "mobile-sam")
    return MobileSamProposals.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def encoded(shared, generator):
    """The encoded frame, and what the stages of the encoder gave on the way."""
    stages = {}
    modules = dict(generator.adapter.model.vision_encoder.named_modules())
    hooks = [
        modules[ours].register_forward_hook(lambda module, inputs, output, name=name: stages.update({name: output}))
        for name, ours in STAGES.items()
    ]
    with torch.no_grad():
        result = generator.adapter.encode(frame(shared, KIND))
    for hook in hooks:
        hook.remove()
    return result, stages


def test_preprocessing_is_bit_equal(shared, generator):
    processor = type(generator.adapter.image_processor)(do_normalize=False, do_rescale=False, do_pad=False)
    pixels = processor(frame(shared, KIND), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels, golden(shared, KIND)["resized_uint8"])


def test_stages_and_embedding(shared, encoded):
    result, stages = encoded
    values = golden(shared, KIND)
    for name in STAGES:
        tokens = stages[name] if name == "patch_embed" else stages[name].flatten(2).transpose(1, 2)
        flat = tokens.flatten()
        sample = flat[torch.from_numpy(np.linspace(0, len(flat) - 1, 4096).astype(np.int64))]
        np.testing.assert_allclose(sample, values[f"stage/{name}"], atol=EMBEDDING, rtol=0, err_msg=name)
    np.testing.assert_allclose(result.features, values["image_embedding"], atol=EMBEDDING, rtol=0)


def test_prompts(shared, generator, encoded):
    values = golden(shared, KIND)
    with torch.no_grad():
        found = generator.adapter.decode(encoded[0], values["prompt_a/points_xy"][:, 0])
    largest = np.abs(values["prompt_a/low_res"]).max()
    np.testing.assert_allclose(found.logits, values["prompt_a/low_res"], atol=LOGITS * largest, rtol=0)
    np.testing.assert_allclose(found.ious, values["prompt_a/iou"], atol=IOU, rtol=0)


@pytest.mark.slow
def test_automatic_masks(shared, generator):
    """Both recorded runs from one pass of the decoder: the thresholds of run B let everything through that A keeps."""
    adapter = Replayed(generator.adapter)
    for run in ("A", "B"):
        recorded = facts(shared, KIND)["amg"][run]
        found = MobileSamProposals(adapter, points_per_side=8, **recorded["params"]).generate(frame(shared, KIND))
        assert_same_proposals(shared, KIND, f"amg_{run}", found)
    assert adapter.encodings == 1 and adapter.decodings == 1


class Replayed:
    """An adapter that works once and then repeats itself: the clicks of both runs are the same."""

    def __init__(self, adapter):
        self.model, self.adapter, self.encodings, self.decodings = adapter.model, adapter, 0, 0

    def encode(self, frame):
        if not self.encodings:
            self.encodings, self.encoded = 1, self.adapter.encode(frame)
        return self.encoded

    def decode(self, encoded, points):
        if not self.decodings:
            self.decodings, self.points, self.found = 1, points, self.adapter.decode(encoded, points)
        np.testing.assert_array_equal(points, self.points)
        return self.found

    def upscale(self, encoded, logits):
        return self.adapter.upscale(encoded, logits)
