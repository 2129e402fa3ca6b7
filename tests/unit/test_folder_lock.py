"""Folders that one process at a time may work in: real processes, killed ones too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import BARE

from combo_hf.files import folder_lock as only_run
from combo_hf.files.folder_lock import MARKER


HEAD = f"""{BARE}
import os, time
from pathlib import Path
from combo_hf.files import folder_lock as module
folder = Path(sys.argv[1])
"""
HOLD = """
with module.only_run(folder):
    print("holds", flush=True)
    time.sleep(300)
"""
FORK = """
with module.only_run(folder):
    if os.fork() == 0:
        assert not module._held.get(folder.resolve()) == os.getpid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        time.sleep(5)
        os._exit(0)
    print("holds", flush=True)
    time.sleep(300)
"""
TAKE_TURNS = """
held = 0
while held < 40:
    try:
        with module.only_run(folder):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            (folder / "inside").unlink()
            held += 1
    except FileExistsError as error:
        assert "in use" in str(error), error
print(held)
"""


def start(code: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def test_another_process_is_refused_until_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "ein lauf é" / "x"
    holder = start(HOLD, folder)
    try:
        assert holder.stdout.readline() == "holds\n"
        for _ in range(2):  # a refusal must not end the lock
            with pytest.raises(FileExistsError, match=rf"in use by another run \(process {holder.pid} on "):
                with only_run.only_run(folder):
                    pass
    finally:
        kill(holder)
    assert (folder / MARKER).is_file()
    (folder / "result").write_bytes(b"")
    with only_run.only_run(folder):
        assert str(os.getpid()) in (folder / MARKER).read_text()
    assert [path.name for path in folder.iterdir()] == ["result"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_what_a_killed_one_has_forked_holds_nothing(tmp_path: Path) -> None:
    holder = start(FORK, tmp_path)
    assert holder.stdout.readline() == "holds\n"
    kill(holder)
    with only_run.only_run(tmp_path):
        pass


def test_never_two_at_once(tmp_path: Path) -> None:
    """Everyone removes the file in the end, which those who have just opened it must notice."""
    processes = [start(TAKE_TURNS, tmp_path) for _ in range(4)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "40\n"), err
    assert list(tmp_path.iterdir()) == []


def test_taken_again_and_nothing_left(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with pytest.raises(KeyError), only_run.only_run(folder):
        with only_run.only_run(tmp_path / "a" / "." / "b"):
            pass
        assert (folder / MARKER).is_file()
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"older")
    for place in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(OSError), only_run.only_run(place):
            pass
    assert (tmp_path / "file").read_bytes() == b"older"


def test_a_file_system_without_locks_refuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def lockf(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    for _ in range(2):
        with only_run.only_run(tmp_path):
            assert (tmp_path / MARKER).is_file()


@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard", "fifo", "folder"])
def test_links_are_refused_and_nothing_is_written_elsewhere(tmp_path: Path, kind: str) -> None:
    """An output folder may have been unpacked from somebody's archive."""
    victim, folder = tmp_path / "victim.txt", tmp_path / "out"
    folder.mkdir()
    victim.write_text("mine")
    make = {
        "symbolic": lambda path: path.symlink_to(victim),
        "dangling": lambda path: path.symlink_to(tmp_path / "nowhere"),
        "hard": lambda path: path.hardlink_to(victim),
        "fifo": lambda path: os.mkfifo(path),
        "folder": lambda path: path.mkdir(),
    }
    make[kind](folder / MARKER)
    with pytest.raises(FileExistsError, match="is a link or no plain file"), only_run.only_run(folder):
        pass
    assert victim.read_text() == "mine" and not (tmp_path / "nowhere").exists()
    assert [path.name for path in folder.iterdir()] == [MARKER]
