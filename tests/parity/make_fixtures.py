"""Makes tests/fixtures/goldens, the small part of the recorded numbers that every clone has (a program, not a test).

    python tests/parity/make_fixtures.py FOLDER_OF_THE_GOLDENS

All manifests, one S4 clip through ResNet-50 and one through PVTv2-B5 (fewer masks and pixels of the final scores), and
the losses and gradients of the ResNet-50 clip; MobileSAM's answers on two photographs.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np


BUNDLED = Path(__file__).resolve().parents[1] / "fixtures" / "goldens"
CONFIGS = ["s4_r50", "s4_pvt", "ms3_r50", "ms3_pvt", "avss_r50", "avss_r50_mhab", "avss_pvt"]


def thin_forward(arrays: dict[str, np.ndarray], layouts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """One mask instead of up to six, every eighth pixel of the scores; the label maps stay whole."""
    thin = {name: value for name, value in arrays.items() if not name.startswith("out/")}
    for layout in layouts:
        prefix = f"out/{layout}/"
        thin.update({name: value for name, value in arrays.items() if name.startswith(prefix)})
        thin[f"{prefix}pred_masks_queries"] = arrays[f"{prefix}pred_masks_queries"][:1]
        thin[f"{prefix}pred_masks_sub"] = arrays[f"{prefix}pred_masks_sub"][:, :1]
        every = 8 // int(arrays[f"{prefix}sem_seg_stride"])
        thin[f"{prefix}sem_seg_sub"] = arrays[f"{prefix}sem_seg_sub"][..., ::every, ::every]
        thin[f"{prefix}sem_seg_stride"] = np.array(8)
    return thin


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def compress(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(source.read_bytes(), 9, mtime=0))


def main(folder: Path) -> None:
    for config in CONFIGS:
        name = f"manifests/manifest_{config}.json"
        compress(folder / name, BUNDLED / f"{name}.gz")
    for config, layouts in (("s4_r50", ("official", "fixed")), ("s4_pvt", ("official",))):
        name = f"combo/forward_{config}_b1.npz"
        write(BUNDLED / name, thin_forward(dict(np.load(folder / name)), layouts))
    losses = dict(np.load(folder / "combo/loss_s4_r50_b1.npz"))
    kept = ("grad/", "clip0/labels", "clip0/labelled_frames")  # inputs are those of the forward golden
    write(BUNDLED / "combo/loss_s4_r50_b1.npz", {name: a for name, a in losses.items() if name.startswith(kept)})
    write(BUNDLED / "combo/loss_points.npz", dict(np.load(folder / "combo/loss_points.npz")))
    compress(folder / "combo/loss_s4_r50_b1.json", BUNDLED / "combo/loss_s4_r50_b1.json.gz")
    for photograph in ("chelsea", "coffee"):
        name = f"mobilesam_real_{photograph}.npz"
        write(BUNDLED / name, dict(np.load(folder / "proposals" / name)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
