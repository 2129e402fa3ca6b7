"""A checkpoint of a stranger: its processor_config.json may not load other models, write files or take all memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import combo_hf
from combo_hf import cli
from combo_hf.proposals_combo import MAX_SEGMENTS, SuperpixelProposals, get_proposal_generator


FRAME = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
CLIP = {"frames": [FRAME], "audio": np.zeros(16000, np.float32), "sampling_rate": 16000}


@pytest.fixture
def checkpoint(tiny_folder: str, tmp_path: Path) -> Any:
    """`checkpoint(generator)` -> folder of a tiny checkpoint whose processor names this generator."""

    def make(generator: Any) -> Path:
        folder = Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))
        path = folder / "processor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "proposal_generator": generator}))
        return folder

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda place: {"name": "cached", "generator": "superpixels", "folder": str(place)},
        lambda place: {"name": "mobile_sam", "model": "somebody/some-model"},
        lambda place: {"name": "sam", "model": str(place)},
        lambda place: "semantic_sam",
        lambda place: "nosuch",
        lambda place: {"name": ["superpixels"]},
        lambda place: {"folder": str(place)},
        lambda place: ["superpixels"],
        lambda place: 7,
    ],
)
def test_other_generators_must_be_agreed_to(checkpoint: Any, tmp_path: Path, monkeypatch: Any, make: Any) -> None:
    generator = make(tmp_path / "written")
    folder = checkpoint(generator)
    monkeypatch.setattr("combo_hf.processing_combo.get_proposal_generator", lambda source: pytest.fail("was made"))
    processor = combo_hf.ComboProcessor.from_pretrained(folder)  # loading itself is no reason to fail
    pipe = combo_hf.load_pipeline(str(folder), device="cpu")
    with pytest.raises(ValueError, match=r"saved processor asks for the proposals .*proposal_generator="):
        processor(**CLIP)
    with pytest.raises(ValueError, match="saved processor asks"):
        pipe(CLIP)
    assert not processor.proposals_agreed and not (tmp_path / "written").exists()
    maskiges = combo_hf.ComboProcessor.from_pretrained(folder)(**CLIP, maskiges=[FRAME])  # none are needed
    assert maskiges["maskige_values"].shape[0] == 1
    processor.save_pretrained(tmp_path / "again")  # nothing is agreed to or lost by saving
    again = combo_hf.ComboProcessor.from_pretrained(tmp_path / "again")
    assert not again.proposals_agreed and again.to_dict()["proposal_generator"] == generator


def test_who_agrees_gets_it(checkpoint: Any, tmp_path: Path) -> None:
    generator = {"name": "cached", "generator": "superpixels", "folder": str(tmp_path / "masks")}
    folder = checkpoint(generator)
    processor = combo_hf.ComboProcessor.from_pretrained(folder, proposal_generator=generator)
    processor(**CLIP)
    assert processor.proposal_generator.misses == 1 and (tmp_path / "masks").is_dir()
    later = combo_hf.ComboProcessor.from_pretrained(folder)
    later.proposal_generator = "superpixels"
    assert later(**CLIP)["maskige_values"].shape[0] == 1
    assert (
        len(combo_hf.load_pipeline(str(folder), device="cpu", proposal_generator="superpixels")(CLIP)["frames"]) == 1
    )


def test_command_line(checkpoint: Any, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = checkpoint({"name": "cached", "generator": "superpixels", "folder": str(tmp_path / "masks")})
    arguments = ["predict", str(film), "--output", str(tmp_path / "out"), "--model", str(folder)]
    assert cli.main(arguments) == 2
    assert "--proposals" in capsys.readouterr().err and not (tmp_path / "masks").exists()
    assert cli.main([*arguments, "--proposals", "superpixels"]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"working_size": 1e9},
        {"sigma": 1e300},
        {"scale": float("nan")},
        {"scale": float("inf")},
        {"sigma": "2"},
        {"min_fraction": None},
        {"working_size": [1]},
        {"nosuch": 1},
        {"__init__": 1},
    ],
)
def test_parameters_of_superpixels(checkpoint: Any, change: dict[str, Any]) -> None:
    processor = combo_hf.ComboProcessor.from_pretrained(checkpoint({"name": "superpixels", **change}))
    with pytest.raises((ValueError, TypeError), match="superpixels"):
        processor(**CLIP)


@pytest.mark.parametrize("size", [{"height": 8192, "width": 8192}, {"height": 32, "width": 8192 * 32}, 1472])
def test_no_size_asks_for_gigabytes(tiny_folder: str, tmp_path: Path, size: Any) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))
    values = json.loads((folder / "processor_config.json").read_text())
    values["image_processor"]["size"] = size
    (folder / "processor_config.json").write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=r"size: wanted .* 1 to 8192|a clip of 5 frames .* make size or num_frames"
    ) as e:
        combo_hf.load_pipeline(folder, device="cpu")
    assert "\n" not in str(e.value)


def test_number_of_masks_is_bounded() -> None:
    """min_fraction 0 would give a mask a pixel: at 1080p 50,000 masks of 2 MB."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    (masks,) = SuperpixelProposals(scale=1e-3, sigma=0, min_fraction=0)([noise])
    assert len(masks) == MAX_SEGMENTS
    (usual,) = get_proposal_generator("superpixels")([noise])
    assert 0 < len(usual) <= 200
