"""Output folders: two runs at once, a folder that is removed midway, and what a killed run has left."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from combo_hf.cli import main
from combo_hf.data.synthetic.dataset import write_dataset
from combo_hf.data.synthetic.official_folders import write_official
from combo_hf.files import atomic
from combo_hf.files.folder_lock import MARKER, only_run
from combo_hf.proposals.pregenerate import pregenerate
from combo_hf.results.folder import _staged


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dataset(output: Path) -> Path:
    return write_dataset("ms3", output, {"test": 2}, size=40, num_frames=2, fps=5, progress=False)


def official(output: Path) -> Path:
    return write_official(output, "ms3", {"test": 1}, size=40, progress=False)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def halves(frames: list[Image.Image]) -> list[np.ndarray]:
    masks = np.zeros((2, frames[0].height, frames[0].width), bool)
    masks[0, :, :10] = masks[1, :, 20:] = True
    return [masks for _ in frames]


@pytest.mark.parametrize(("write", "place"), [(dataset, "out"), (official, "out/AVSBench_object/Multi-sources")])
def test_synthesize_is_refused_beside_another(tmp_path: Path, write: Callable[[Path], Path], place: str) -> None:
    """A lock of this process is its own; another one's is a file that another process has locked."""
    ready, done = multiprocessing.get_context("fork").Event(), multiprocessing.get_context("fork").Event()

    def hold() -> None:
        with only_run(tmp_path / place):
            ready.set()
            done.wait(60)

    other = multiprocessing.get_context("fork").Process(target=hold)
    other.start()
    assert ready.wait(60)
    try:
        with pytest.raises(FileExistsError, match="in use by another run"):
            write(tmp_path / "out")
    finally:
        done.set()
        other.join()
    assert not files(tmp_path)
    write(tmp_path / "out")


def test_maskige_beside_itself(pictures: Path, tmp_path: Path) -> None:
    """Machines share a folder on purpose: every file is written whole, and the result is that of one run."""
    pregenerate(pictures, halves, tmp_path / "one", size=(24, 32))
    context = multiprocessing.get_context("fork")
    both = [
        context.Process(target=pregenerate, args=(pictures, halves, tmp_path / "two"), kwargs={"size": (24, 32)})
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_predict_beside_itself(tmp_path: Path) -> None:
    """Runs that end one in the other: the last one stays, whole, and nothing else."""
    with _staged(tmp_path, "a", ["masks"]) as places:
        places["masks"].mkdir()
        (places["masks"] / "1.png").write_text("first")
        with _staged(tmp_path, "a", ["masks"]) as others:
            others["masks"].mkdir()
            (others["masks"] / "2.png").write_text("second")
        assert files(tmp_path / "a_masks") == {"2.png": b"second"}
    assert files(tmp_path) == {"a_masks/1.png": b"first"} and not list(tmp_path.glob(".combo-*"))


def test_predict_when_the_other_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run puts its folder there between the look and the move."""
    replace, calls = os.replace, 0

    def slow(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / "a_masks").mkdir()
            (tmp_path / "a_masks" / "theirs.png").touch()
        replace(source, target)

    monkeypatch.setattr("combo_hf.results.folder.os.replace", slow)
    with _staged(tmp_path, "a", ["masks"]) as places:
        places["masks"].mkdir()
        (places["masks"] / "ours.png").touch()
    assert files(tmp_path) == {"a_masks/ours.png": b""}


def remove_after(folder: Path, count: int) -> Callable[[list[Image.Image]], list[np.ndarray]]:
    """A generator that removes the output folder when it is asked for frame `count`."""
    asked = 0

    def generate(frames: list[Image.Image]) -> list[np.ndarray]:
        nonlocal asked
        asked += 1
        if asked == count:
            shutil.rmtree(folder)
        return halves(frames)

    return generate


def test_maskige_into_a_folder_that_is_removed(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="out is gone: it was removed while"):
        pregenerate(pictures, remove_after(output, 3), output, size=(24, 32))
    assert not output.exists()


@pytest.mark.parametrize(("write", "name"), [(dataset, "dataset.to_row"), (official, "official_folders._wav")])
def test_synthesize_into_a_folder_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path], name: str
) -> None:
    module, _, function = f"combo_hf.data.synthetic.{name}".rpartition(".")
    original = getattr(sys.modules[module], function)

    def remove(*arguments: object) -> object:
        shutil.rmtree(tmp_path / "out")
        return original(*arguments)

    monkeypatch.setattr(f"{module}.{function}", remove)
    with pytest.raises((FileNotFoundError, ValueError)):
        write(tmp_path / "out")
    assert not files(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="there only age tells")
def test_synthesize_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    wanted = files(dataset(tmp_path / "whole"))
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    dataset(tmp_path / "out")
    for folder in ("", "data", "videos/test"):
        (tmp_path / "out" / folder / f".partial-{atomic._place()}-{process.pid}-12ab34cd.mp4").write_bytes(b"half")
    (tmp_path / "out" / MARKER).write_text("process 1 on elsewhere")
    dataset(tmp_path / "out")
    assert files(tmp_path / "out") == wanted


def test_a_folder_of_a_killed_run_is_one_line(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MARKER).symlink_to(tmp_path / "victim")
    assert main(["data", "synthesize", "--output", str(tmp_path / "out"), "--clips", "1"]) == 2
    err = capsys.readouterr().err
    assert "is a link or no plain file" in err and err.count("\n") == 1 and not (tmp_path / "victim").exists()
