"""Files and folders are whole or absent; what a killed process left goes, what a running one is busy with stays."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from combo_hf.files import atomic
from combo_hf.files.atomic import (
    appending,
    owned_prefix,
    recover_folder,
    remove,
    remove_leftovers,
    replacing,
    replacing_folder,
    write_text,
)


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
    place, dead, hours = atomic._place(), ended_process(), 2 * atomic.STALE
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
    stage = tmp_path / "a" / f".partial-{atomic._place()}-{ended_process()}-x"
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


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_is_whole_or_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / ("a b" + "é" * 100 + ".json")  # the temporary name may not be longer than the file's own
    write_text(path, "older é")
    with pytest.raises(error), replacing(path) as temporary:
        assert temporary.suffix == ".json" and temporary.parent == tmp_path
        temporary.write_text("half")
        raise error
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name] and path.read_text("utf-8") == "older é"
    with replacing(path) as temporary:
        temporary.write_text("newer")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name] and path.read_text() == "newer"


def test_a_link_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "out", "new")
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "out").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="there only age tells")
@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: _fill(path, "x")])
def test_the_next_writing_removes_what_a_killed_process_left(tmp_path: Path, write: Callable[[Path], object]) -> None:
    make(tmp_path, f".partial-{atomic._place()}-{ended_process()}-1234.mp4")
    write(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def _fill(target: Path, text: str) -> None:
    with replacing_folder(target) as folder:
        (folder / "file").write_text(text)


def test_folders_are_replaced(tmp_path: Path) -> None:
    target = tmp_path / "below" / "best"
    for text in ("one", "two"):
        _fill(target, text)
        assert (target / "file").read_text() == text and list(target.parent.iterdir()) == [target]
    with pytest.raises(KeyboardInterrupt), replacing_folder(target) as folder:
        (folder / "file").write_text("three")
        raise KeyboardInterrupt
    assert (target / "file").read_text() == "two" and list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="there only age tells")
@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ({".old-best": "old", "PARTIAL": "new"}, "old"),  # killed between the two renames
        ({".old-best": "old", "best": "new"}, "new"),  # killed before the older one was removed
        ({"best": "new", "PARTIAL": "half"}, "new"),
        ({}, None),
    ],
)
def test_what_a_kill_left_of_a_folder(tmp_path: Path, left: dict[str, str], kept: str | None) -> None:
    partial = f".partial-{atomic._place()}-{ended_process()}-1234"
    for name, text in left.items():
        folder = tmp_path / name.replace("PARTIAL", partial)
        folder.mkdir()
        (folder / "file").write_text(text)
    recover_folder(tmp_path / "best")
    present = [(path.name, (path / "file").read_text()) for path in tmp_path.iterdir()]
    assert present == ([] if kept is None else [("best", kept)])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_has_ended_runs_no_more_before_it_is_collected(tmp_path: Path) -> None:
    """A worker whose owner was killed may wait for the system for a while, as a zombie."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    left = tmp_path / owned_prefix().replace(f"-{os.getpid()}-", f"-{process.pid}-")
    left.touch()
    try:
        assert remove_leftovers(tmp_path) == [left]
    finally:
        process.wait()


LINKS = {
    "symbolic": lambda path, victim: path.symlink_to(victim),
    "dangling": lambda path, victim: path.symlink_to(victim.with_name("nowhere")),
    "hard": lambda path, victim: path.hardlink_to(victim),
    "fifo": lambda path, victim: os.mkfifo(path),
    "folder": lambda path, victim: path.mkdir(),
}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("kind", LINKS)
def test_lines_are_not_added_to_another_file(tmp_path: Path, kind: str) -> None:
    """An output folder may have been unpacked from somebody's archive."""
    victim, path = tmp_path / "victim.txt", tmp_path / "metrics.jsonl"
    victim.write_text("mine")
    LINKS[kind](path, victim)
    with pytest.raises(FileExistsError, match="is a link or no plain file"):
        appending(path)
    assert victim.read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_lines_are_added(tmp_path: Path) -> None:
    for line in (b"a\n", b"b\n"):
        with appending(tmp_path / "metrics.jsonl") as file:
            file.write(line)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"a\nb\n"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_what_a_link_points_to_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    make(tmp_path / "mine", "file")
    (tmp_path / ".old-best").symlink_to(tmp_path / "mine")
    with replacing_folder(tmp_path / "best") as folder:
        make(folder, "new")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["best", "mine"]
    assert (tmp_path / "mine" / "file").is_file() and (tmp_path / "best" / "new").is_file()
    remove(tmp_path / "nothing")
