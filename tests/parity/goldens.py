"""Readers of the recorded numbers: inputs, official weights from the filler, models converted from them."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from combo_hf.conversion.official import convert_official_checkpoint


PRESETS = {
    "s4_r50": "r50-s4",
    "ms3_r50": "r50-ms3",
    "avss_r50_mhab": "r50-avss",
    "avss_r50": "r50-avss",
    "s4_pvt": "pvtv2-b5-s4",
    "ms3_pvt": "pvtv2-b5-ms3",
    "avss_pvt": "pvtv2-b5-avss",
}
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


def manifest(shared: Path, config: str) -> dict:
    return json.loads((shared / f"goldens/manifests/manifest_{config}.json").read_text())


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


@functools.cache
def filler(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_weights", shared / "goldens/fill_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official_weights(shared: Path, config: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Synthetic state dict with the official names."""
    return filler(shared).fill_state_dict(manifest(shared, config), seed)


@functools.lru_cache(maxsize=1)  # one at a time: a PVT model is 1.1 GB
def official_model(shared: Path, config: str):
    """Converted model with the synthetic weights of seed 0."""
    return convert_official_checkpoint(official_weights(shared, config), PRESETS[config])[0]


def normalise(pixels: np.ndarray) -> torch.Tensor:
    """uint8 RGB (..., 3, H, W) -> model input (F, 3, H, W)."""
    return (torch.from_numpy(pixels).reshape(-1, *pixels.shape[-3:]).float() - MEAN) / STD


def log_mel(examples: np.ndarray, flags: np.ndarray | None) -> torch.Tensor:
    """(..., 1, 96, 64) -> (F, 1, 96, 64) without the padding rows of AVSS clips."""
    rows = torch.from_numpy(examples).reshape(-1, 1, 96, 64)
    return rows if flags is None else rows[torch.from_numpy(flags).flatten() > 0]


def forward_inputs(golden: dict[str, np.ndarray]) -> dict:
    clips, frames = golden["in/images"].shape[:2]
    return {
        "pixel_values": normalise(golden["in/images"]),
        "maskige_values": normalise(golden["in/maskiges"]),
        "input_features": log_mel(golden["in/log_mel"], golden.get("in/vid_flag")),
        "num_frames": [frames] * clips,
    }


def loss_inputs(golden: dict[str, np.ndarray]) -> dict:
    """Packed clips with their labels: one binary mask per class present, background included, 255 in none."""
    clips = []
    while f"clip{len(clips)}/images" in golden:
        clips.append({k.split("/", 1)[1]: v for k, v in golden.items() if k.startswith(f"clip{len(clips)}/")})
    label_frames, mask_labels, class_labels = [], [], []
    for clip in clips:
        flags = torch.zeros(len(clip["images"]), dtype=torch.bool)
        flags[torch.from_numpy(clip["labelled_frames"])] = True
        label_frames.append(flags)
        for labels in torch.from_numpy(clip["labels"]):
            classes = [index for index in labels.unique().tolist() if index != 255]
            class_labels.append(torch.tensor(classes))
            mask_labels.append(torch.stack([(labels == index).float() for index in classes]))
    return {
        "pixel_values": torch.cat([normalise(clip["images"]) for clip in clips]),
        "maskige_values": torch.cat([normalise(clip["maskiges"]) for clip in clips]),
        "input_features": torch.cat([log_mel(clip["log_mel"], clip.get("vid_flag")) for clip in clips]),
        "num_frames": [len(clip["images"]) for clip in clips],
        "label_frames": torch.cat(label_frames),
        "mask_labels": mask_labels,
        "class_labels": class_labels,
    }
