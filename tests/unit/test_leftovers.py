"""What a killed process left goes; what a running one is busy with stays."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from combo_hf.files import leftovers
from combo_hf.files.leftovers import owned_prefix, remove_leftovers


def ended_process() -> int:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    return process.pid


def make(folder: Path, name: str, age: float = 0) -> Path:
    path = folder / name
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="there only age tells")
def test_whose_it_is(tmp_path: Path) -> None:
    place, dead, hours = leftovers._place(), ended_process(), 2 * leftovers.STALE
    gone = [
        make(tmp_path, f".partial-{place}-{dead}-a"),
        make(tmp_path, f".partial-{place}-{os.getpid()}-a", hours),  # older than this process: another's of its number
        make(tmp_path, f".partial-{place}-{os.getppid()}-a", hours),
        make(tmp_path, f".partial-00000000-{dead}-a", hours),
        make(tmp_path, f".partial-{dead}-a.npz", hours),
    ]
    kept = [
        make(tmp_path, f"{owned_prefix()}b"),
        make(tmp_path, f".partial-{place}-{os.getppid()}-b"),
        make(tmp_path, f".partial-00000000-{dead}-b"),  # of another machine, perhaps at work
        make(tmp_path, f".partial-{dead}-b.npz"),
        make(tmp_path, f".combo-{place}-{dead}-b"),
        make(tmp_path, "partial", hours),
        make(tmp_path, ".combo-settings", hours),  # not made by this package
    ]
    assert sorted(remove_leftovers(tmp_path)) == sorted(gone)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert remove_leftovers(tmp_path, ".combo") == [tmp_path / f".combo-{place}-{dead}-b"]


@pytest.mark.skipif(sys.platform == "win32", reason="there only age tells")
def test_folders_and_depth(tmp_path: Path) -> None:
    stage = tmp_path / "a" / f".partial-{leftovers._place()}-{ended_process()}-x"
    (stage / "masks").mkdir(parents=True)
    (stage / "masks" / "1.png").write_bytes(b"half")
    assert not remove_leftovers(tmp_path) and not remove_leftovers(tmp_path / "nowhere")
    assert remove_leftovers(tmp_path, deep=True) == [stage]
    assert not any((tmp_path / "a").iterdir())


def test_a_folder_is_as_young_as_its_youngest_file(tmp_path: Path) -> None:
    stage = tmp_path / ".partial-00000000-1-x"
    stage.mkdir()
    make(stage, "film.mp4")
    os.utime(stage, (0, 0))
    assert not remove_leftovers(tmp_path)
    os.utime(stage / "film.mp4", (0, 0))
    os.utime(stage, (0, 0))
    assert remove_leftovers(tmp_path) == [stage]
