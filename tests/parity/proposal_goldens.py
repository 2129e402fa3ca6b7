"""Readers of the recorded numbers of SAM and MobileSAM: official weights by recipe, official results."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image


MANIFESTS = {"sam_tiny": "sam_tiny", "mobilesam": "mobile_sam_vit_t"}
EMBEDDING, LOGITS, IOU, PIXELS = 1e-4, 5e-4, 1e-4, 2e-4  # absolute; of the largest magnitude; absolute; of all pixels


@functools.cache
def recipe(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("proposal_recipe", shared / "goldens/recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def golden(shared: Path, kind: str) -> dict[str, np.ndarray]:
    with np.load(shared / f"goldens/proposals/{kind}.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def facts(shared: Path, kind: str) -> dict[str, Any]:
    return json.loads((shared / f"goldens/proposals/{kind}.json").read_text())


def official_weights(shared: Path, kind: str) -> dict[str, np.ndarray]:
    """Synthetic state dict with the official names."""
    manifest = json.loads((shared / f"goldens/manifests/{MANIFESTS[kind]}.json").read_text())
    with np.load(shared / f"goldens/proposals/{kind}.npz", allow_pickle=False) as arrays:
        return recipe(shared).weights(kind, facts(shared, kind)["seed"], arrays, manifest)


def sam_tiny_config(shared: Path) -> Any:
    from transformers import SamConfig

    sizes = facts(shared, "sam_tiny")["config"]
    side = {"image_size": sizes["image_size"]}
    return SamConfig(
        vision_config={**sizes["vision"], **side},
        prompt_encoder_config={**sizes["prompt"], **side},
        mask_decoder_config=sizes["decoder"],
    )


def frame(shared: Path, kind: str) -> Image.Image:
    return Image.fromarray(golden(shared, kind)["image"])


def recorded_masks(shared: Path, kind: str, run: str) -> np.ndarray:
    values = golden(shared, kind)
    return recipe(shared).unpack_masks(values[f"{run}/masks_packed"], values["image"].shape[1])


def assert_same_proposals(shared: Path, kind: str, run: str, found: Any) -> None:
    """Count, order, masks, boxes, clicks and scores of an automatic run."""
    values, wanted = golden(shared, kind), recorded_masks(shared, kind, run)
    assert found.masks.shape == wanted.shape
    assert (found.masks != wanted).mean(axis=(1, 2)).max(initial=0) <= PIXELS
    boxes = found.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    assert np.abs(boxes - values[f"{run}/bbox"]).max(initial=0) <= 1  # a pixel of the edge may differ
    np.testing.assert_allclose(found.points, values[f"{run}/point_coords"][:, 0])
    np.testing.assert_allclose(found.scores, values[f"{run}/predicted_iou"], atol=IOU, rtol=0)
    np.testing.assert_allclose(found.areas, found.masks.sum(axis=(1, 2)))
