"""No room, and places that cannot be written: one line, exit code 2, nothing half-written, older files untouched.

The limit is that of the process on the size of a file, which fails a write in the middle as a full disk does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import limited

import combo_hf
from combo_hf import cli
from combo_hf.conversion.fill import ConversionReport
from combo_hf.conversion.saving import save_converted
from combo_hf.proposals.cache import write_masks
from combo_hf.results.video import write_video
from combo_hf.training.arguments import TrainingRecipe
from combo_hf.training.clips_in_memory import prepare_synthetic
from combo_hf.training.state import write_json


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips in the folders of AVSBench."""
    folder = tmp_path_factory.mktemp("official")
    call = f"data synthesize --kind s4 --clips 1 --layout official --split train test --output {folder}"
    assert cli.main(call.split()) == 0
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures with ünïcode"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a b.png")
    return folder


COMMANDS = {
    "predict": ("predict {film} --model {model} --masks --json --sheet", 3000),
    "maskige": ("maskige {pictures}", 80),
    "synthesize": ("data synthesize --kind s4 --clips 1 --rows", 3000),
    "official": ("data synthesize --kind ms3 --clips 1 --layout official", 3000),
    "build": ("data build --root {official} --subset s4 --splits train test", 3000),
}


def words(name: str, output: Path, **places: object) -> list[str]:
    parts = [part.format(**places) for part in COMMANDS[name][0].split()]
    return [*parts, "--output", str(output)]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_room(
    capsys: pytest.CaptureFixture, tmp_path: Path, film: Path, tiny_folder: str, official: Path, pictures: Path,
    name: str,
) -> None:  # fmt: skip
    output = tmp_path / "out put"
    call = words(name, output, film=film, model=tiny_folder, official=official, pictures=pictures)
    with limited(COMMANDS[name][1]):
        code = cli.main(call)
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and "unexpected" not in err and "Traceback" not in err, err
    left = [path for path in output.rglob("*") if path.is_file()] if output.exists() else []
    assert not [path for path in left if "partial" in path.name or path.suffix in (".mp4", ".parquet")], left
    assert cli.main(call) == 0  # with room again the same command does its work


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["/proc/nosuch/out", "{file}", "{file}/out", "{folder}/" + "x" * 300])
def test_places_that_cannot_be_written(
    capsys: pytest.CaptureFixture, tmp_path: Path, film: Path, tiny_folder: str, official: Path, pictures: Path,
    name: str, place: str,
) -> None:  # fmt: skip
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("needs /proc, which not even root may write to")
    file = tmp_path / "file"
    file.write_bytes(b"older")
    output = Path(place.format(file=file, folder=tmp_path))
    code = cli.main(words(name, output, film=film, model=tiny_folder, official=official, pictures=pictures))
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and "unexpected" not in err, err
    assert file.read_bytes() == b"older" and {path.name for path in tmp_path.iterdir()} == {"file", pictures.name}


def converted(path: Path) -> None:
    model = combo_hf.ComboForAudioVisualSegmentation(combo_hf.ComboConfig.from_preset("tiny"))
    save_converted(model, ConversionReport("r50-s4"), path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, list(range(1000))),
        lambda path: write_masks(path, np.random.default_rng(0).random((9, 64, 64)) < 0.5),
        lambda path: write_video(path.with_suffix(".mp4"), [np.zeros((64, 64, 3), np.uint8)] * 30, 25),
        lambda path: TrainingRecipe().save(path),
        lambda path: prepare_synthetic("s4", 0, 1, image_size=32, cache=path),
        converted,
    ],
    ids=["state", "masks", "film", "recipe", "clips", "weights"],
)
def test_no_room_for_one_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with limited(300), pytest.raises((OSError, ValueError)):
        write(tmp_path / "a.x")
    assert list(tmp_path.iterdir()) == []
