"""The proposal models of the paper on a real photograph, through the folder that the converter makes of an official
file. The weights are random (official names, right shapes): what is tested is that everything fits and runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from combo_hf.commands import proposals
from combo_hf.commands.common import Parser
from combo_hf.media_combo import iter_clips
from combo_hf.proposals import load_proposal_generator


FEW = {"points_per_side": 2, "pred_iou_thresh": -1.0, "stability_score_thresh": 0.0, "device": "cpu"}


@pytest.fixture(scope="module")
def photograph(avs_sample) -> Image.Image:
    return next(iter_clips(avs_sample / "videos" / "s4_O_s-zCN_Y_4.mp4")).frames[0]


def official_file(shared: Path, manifest: str, path: Path) -> Path:
    """A file as the authors published it, with random numbers."""
    tensors = json.loads((shared / f"goldens/manifests/{manifest}.json").read_text())["tensors"]
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, info in tensors.items():
        if info.get("dtype") == "int64":
            weights[name] = torch.zeros(info["shape"], dtype=torch.int64)
        elif name.endswith("running_var"):
            weights[name] = torch.ones(info["shape"])
        else:
            scale = max(1, int(np.prod(info["shape"][1:]))) ** -0.5 if len(info["shape"]) > 1 else 0.1
            weights[name] = torch.randn(info["shape"], generator=generator) * scale
    torch.save(weights, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("name", "manifest"), [("mobile_sam", "mobile_sam_vit_t"), ("sam", "sam_vit_b")])
def test_full_size(shared, photograph, tmp_path, name, manifest, capsys):
    file = official_file(shared, manifest, tmp_path / f"{manifest}.pth")
    parser = Parser(prog="combo-hf")
    proposals.register(parser.add_subparsers(required=True, parser_class=Parser))
    folder = tmp_path / name
    parsed = parser.parse_args(["proposals", "convert", str(file), "--model", name, "--output", str(folder)])
    parsed.run(parsed)
    file.unlink()
    assert "entries consumed" in capsys.readouterr().out
    found = load_proposal_generator(name, folder, **FEW).generate(photograph)
    assert found.masks.shape[1:] == (photograph.height, photograph.width)
    assert len(found.masks) and np.isfinite(found.scores).all()
