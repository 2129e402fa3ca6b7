"""The bundled weights for animals: their files, and what they say of the bundled clip."""

from __future__ import annotations

import json

import pytest
import torch

import combo_hf


@pytest.fixture(scope="module")
def found() -> list[set[str]]:
    """Labels of every second of the clip."""
    result = combo_hf.load_pipeline(device="cpu")(str(combo_hf.ASSETS / "demo_real.mp4"))
    return [{segment["label"] for segment in frame["segments"]} for frame in result["frames"]]


def test_files_are_small_and_state_their_terms() -> None:
    folder = combo_hf.DEFAULT_MODEL
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25e6
    assert "not commercial" in (folder / "LICENSE.txt").read_text()
    assert json.loads((folder / "origin.json").read_text())["license"] == "other"
    assert "demo_real.mp4" in (combo_hf.ASSETS / "CREDITS.md").read_text()
    assert not list(folder.glob("*.py"))


def test_half_the_bytes_on_disk_compute_in_single_precision() -> None:
    model = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(combo_hf.DEFAULT_MODEL)
    assert model.dtype == torch.float32 and model.config.background_weight < 1
    assert (combo_hf.DEFAULT_MODEL / "model.safetensors").stat().st_size < 2.2 * model.num_parameters()


def test_a_barking_dog_and_a_mooing_cow_are_lit(found: list[set[str]]) -> None:
    assert found[0] == found[1] == {"dog"} and found[5] == {"cow"}


def test_silence_and_another_animals_sound_light_nothing(found: list[set[str]]) -> None:
    """A dog and a cow in silence; a sheep under a cat's meow."""
    assert found[2] == found[3] == found[8] == set()


def test_the_published_card_states_the_terms() -> None:
    from combo_hf.publishing import find_origin

    origin = find_origin(combo_hf.DEFAULT_MODEL)
    assert origin.license == "other" and "not commercial" in origin.license_text
