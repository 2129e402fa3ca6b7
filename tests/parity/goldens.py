"""Readers of the recorded numbers: inputs, official weights from the filler, models converted from them.

Three places are looked at: the folder named by the environment variable COMBO_GOLDENS (any seed: COMBO_GOLDENS_SEED,
default 0), `shared/goldens` beside the clone, and the small part of it in tests/fixtures/goldens that every clone has.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
from pathlib import Path

import filler
import numpy as np
import pytest
import torch

from combo_hf.conversion.official import convert_official_checkpoint


BUNDLED = Path(__file__).resolve().parents[1] / "fixtures" / "goldens"
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


class Goldens:
    """One folder of recorded numbers, all of one seed."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed

    @classmethod
    def find(cls, shared: Path) -> Goldens:
        """The folder to use; `shared` need not exist."""
        if chosen := os.environ.get("COMBO_GOLDENS"):
            if not Path(chosen, "manifests").is_dir():  # or everything would be skipped
                raise FileNotFoundError(f"COMBO_GOLDENS is {chosen}, which has no folder 'manifests'")
            return cls(Path(chosen), int(os.environ.get("COMBO_GOLDENS_SEED", "0")))
        return cls(shared / "goldens" if (shared / "goldens").is_dir() else BUNDLED)

    def path(self, name: str) -> Path:
        """A file of the folder, itself or compressed; the test is skipped where it is not there."""
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if path.is_file():
                return path
        pytest.skip(f"needs {name} of the project's goldens (shared/goldens beside the clone), which is not here")

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file() or (self.folder / f"{name}.gz").is_file()

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.path(name), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays}

    def values(self, name: str) -> dict:
        content = self.path(name).read_bytes()
        return json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)

    def manifest(self, config: str) -> dict:
        return self.values(f"manifests/manifest_{config}.json")

    def weights(self, config: str, seed: int | None = None) -> dict[str, np.ndarray]:
        """Synthetic state dict with the official names."""
        return filler.fill_state_dict(self.manifest(config), self.seed if seed is None else seed)

    def model(self, config: str):
        """Converted model with the synthetic weights. One is kept: a PVT model is 1.1 GB."""
        return _model(self.folder, self.seed, config)

    def loss_arrays(self, case: str) -> dict[str, np.ndarray]:
        """Inputs, labels and gradients of a loss case; bundled ones take their inputs from the forward golden."""
        arrays = self.arrays(f"combo/loss_{case}.npz")
        if "clip0/images" not in arrays:
            inputs = self.arrays(f"combo/forward_{case}.npz")
            for name in ("images", "maskiges", "log_mel"):
                for clip, values in enumerate(inputs[f"in/{name}"]):
                    arrays[f"clip{clip}/{name}"] = values
        return arrays


@functools.lru_cache(maxsize=1)
def _model(folder: Path, seed: int, config: str):
    return convert_official_checkpoint(Goldens(folder, seed).weights(config), PRESETS[config])[0]


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
