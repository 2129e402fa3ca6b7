"""Semantic-SAM against numbers of the official code (synthetic weights, CPU, float32), Swin-T and Swin-L.

The official weights are rebuilt by the recipe beside the goldens, go through the converter, and every stage, the masks
of single clicks and the automatic masks are compared. No released weight file was at hand.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from goldens import Goldens, normalise
from PIL import Image

from combo_hf.conversion.saving import save_converted_proposal_model
from combo_hf.conversion.semantic_sam import convert_semantic_sam
from combo_hf.proposals.modeling_semantic_sam import enlarge
from combo_hf.proposals.semantic_sam import SemanticSamAdapter, SemanticSamProposals


NAMES = {  # golden -> ours
    **{f"backbone.res{stage + 2}": f"backbone/{stage}" for stage in range(4)},
    **{f"enc{layer}": f"pixel_decoder_layer/{layer}" for layer in (0, 5)},
    "mask_features": "mask_features",
    **{f"multi_scale.{scale}": f"multi_scale/{scale}" for scale in range(4)},
    **{f"dec{layer}": f"decoder_layer/{layer}" for layer in (0, 8)},
    "final_reference_points": "boxes",
}
BY_TOKEN = [3, 5, 2, 1, 4, 6]  # the goldens of single clicks are in the order of tokens; these are their levels
MASKS = {"A": {}, "B": {"points_per_batch": 40}, "C": {"level": [1, 2, 3, 4, 5, 6]}}
THRESHOLDS = ("pred_iou_thresh", "stability_score_thresh")
# Largest differences. Measured: stages 6e-6, logits 3e-6 of the largest, IoU 3e-6, at most one pixel of a mask.
STAGE, LOGITS, IOU, PIXELS = 1e-4, 5e-4, 1e-4, 2e-4


class EncodedOnce(SemanticSamAdapter):
    """The frame of the goldens is encoded once for all tests."""

    def encode(self, frame):
        if not hasattr(self, "features"):
            self.features = super().encode(frame)
        return self.features


def recipe(goldens: Goldens, shared: Path):
    path = next(p for p in (goldens.folder / "recipe.py", shared / "goldens" / "recipe.py") if p.is_file())
    spec = importlib.util.spec_from_file_location("proposal_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(
    scope="module", params=[pytest.param("t", id="swin-t"), pytest.param("l", id="swin-l", marks=pytest.mark.slow)]
)
def case(request: pytest.FixtureRequest, shared: Path) -> SimpleNamespace:
    """Golden, converted model and all its states for the four clicks; the official weights too if they are small."""
    size, goldens = request.param, Goldens.find(shared)
    with np.load(goldens.path(f"proposals/semantic_sam_{size}.npz"), allow_pickle=False) as golden:
        manifest = goldens.values(f"manifests/semantic_sam_swin{size}_only_sam_many2many.json")
        module = recipe(goldens, shared)
        weights = module.weights(f"semantic_sam_{size}", goldens.seed, golden, manifest)
        golden = dict(golden)
    model, report = convert_semantic_sam(weights)
    tap: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        features = model.encode(normalise(golden["image"].transpose(2, 0, 1)), tap)
        output = model.decode(features, torch.from_numpy(golden["points_a"])[None], BY_TOKEN, tap)
    return SimpleNamespace(
        size=size, golden=golden, facts=goldens.values(f"proposals/semantic_sam_{size}.json"), manifest=manifest,
        weights=weights if size == "t" else None, model=model, report=report, tap=tap, features=features,
        output=output, adapter=EncodedOnce(model), unpack=module.unpack_masks,
    )  # fmt: skip


def test_every_name_of_the_manifest(case):
    needed = {
        name.removeprefix("model.")
        for name, facts in case.manifest["tensors"].items()
        if facts["used_at_inference"] and not facts["alias_of"]
    }
    assert set(case.report.consumed) == needed and len(needed) == case.manifest["unique_needed"]
    numel = sum(parameter.numel() for parameter in case.model.parameters())
    unused = sum(case.model.get_parameter(name).numel() for name in case.report.missing)
    assert numel - unused == case.manifest["numel_needed"]


def test_stages(case):
    """Large ones are recorded at 4096 evenly spaced places."""
    differences = {}
    for stage, name in NAMES.items():
        expected, ours = case.golden[f"stage/{stage}"], case.tap[name]
        ours = ours.transpose(0, 1) if stage.startswith("dec") else ours  # the official decoder has clicks first
        assert list(ours.shape) == case.facts["stats"][stage]["shape"], stage
        ours = ours.flatten().numpy()
        if ours.size != expected.size:
            ours = ours[np.linspace(0, ours.size - 1, expected.size).astype(np.int64)]
        differences[stage] = float(np.abs(ours - expected.ravel()).max())
    assert max(differences.values()) <= STAGE, differences


def test_clicks(case):
    """Masks at all six levels and their predicted quality for four clicks that see each other."""
    golden, logits = case.golden, case.output.mask_logits[0]
    grown = enlarge(logits.flatten(0, 1), case.features).unflatten(0, logits.shape[:2]).numpy()
    assert np.abs(case.output.iou_scores[0].numpy() - golden["a/ious"][0]).max() <= IOU
    first = golden["a/mask_logits_pt0_lev0"]
    assert np.abs(grown[0, 0] - first).max() <= LOGITS * np.abs(first).max()
    half = golden["a/mask_logits_half"].astype(np.float32)  # every second row and column, float16
    bound = LOGITS * np.abs(half).max()
    assert (np.abs(grown[:, :, ::2, ::2] - half) <= bound + np.abs(half) * 2**-11).all()
    moments = np.stack([grown.mean((2, 3)), grown.std((2, 3), ddof=1)])
    assert np.abs(moments - golden["a/mask_mean_std"]).max() <= bound


@torch.no_grad()
def test_last_layer_for_the_wanted_level_only(case):
    points = torch.from_numpy(case.golden["points_a"])[None]
    alone = case.model.decode(case.features, points, [3])
    whole = case.output.mask_logits[:, :, :1]
    assert float((alone.mask_logits - whole).abs().max()) <= LOGITS * float(whole.abs().max())


@pytest.mark.parametrize(
    "run", ["A", pytest.param("B", marks=pytest.mark.slow), pytest.param("C", marks=pytest.mark.slow)]
)
def test_automatic_masks(case, run):
    """As many, in the same order: 200 clicks at once, 40 at once (which gives other masks), all levels."""
    golden, facts = case.golden, case.facts["amg"][run]
    options = {key: facts[key] for key in THRESHOLDS if key in facts}
    generator = SemanticSamProposals(case.adapter, points_per_side=case.facts["grid"], **MASKS[run], **options)
    frame = Image.fromarray(golden["image"])
    found = generator.generate(frame)
    expected = case.unpack(golden[f"amg_{run}/masks_packed"], frame.width)
    assert found.masks.shape == expected.shape and len(expected) == facts["n"]
    if len(expected):
        assert (found.masks != expected).mean(axis=(1, 2)).max() <= PIXELS
        assert np.abs(found.scores - golden[f"amg_{run}/predicted_iou"]).max() <= IOU
        one_pixel = 1 / found.areas  # stability is a ratio of pixel counts
        assert (np.abs(found.stability - golden[f"amg_{run}/stability_score"]) <= one_pixel + 1e-6).all()
        clicks = golden[f"amg_{run}/point_coords"][:, 0, :2] * frame.size
        assert np.abs(found.points - clicks).max() < 1e-3  # recorded in float32


@pytest.mark.slow
def test_photograph_through_a_converted_folder(case, avs_sample, tmp_path):
    """The way of a user: an official file, the converter, `from_pretrained`, a real photograph."""
    if case.size != "t":
        pytest.skip("once is enough; the two sizes differ in the backbone's numbers only")
    path = tmp_path / "swint.pth"
    official = {f"model.{name}": torch.from_numpy(tensor) for name, tensor in case.weights.items()}
    torch.save({"model": official}, path)
    with pytest.raises(ValueError, match="'large' was asked for, but the checkpoint is 'tiny'"):
        convert_semantic_sam(path, variant="large")
    folder = save_converted_proposal_model(*convert_semantic_sam(path, variant="tiny"), tmp_path / "semantic-sam")
    path.unlink()
    photographs = sorted((avs_sample / "AVSBench_object").rglob("visual_frames/**/*.png"))
    with Image.open(photographs[0]) as photograph:
        frame = photograph.convert("RGB")
    options = {"points_per_side": 4, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.7}
    generator = SemanticSamProposals.from_pretrained(folder, device="cpu", **options)
    found = generator.generate(frame)
    assert found.masks.shape[1:] == frame.size[::-1] and len(found.masks) > 0
    assert (np.diff(found.areas) != 0).any() or len(found.masks) == 1
    again = SemanticSamProposals(SemanticSamAdapter(case.model), **options).generate(frame)
    assert np.array_equal(found.masks, again.masks)
