"""What a killed process may leave behind is put right or not taken for good."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from combo_hf.training.reporting import Reporter
from combo_hf.training.state import (
    FILE_LIST,
    commit_state,
    cut_log,
    is_whole,
    newest_state,
    seal,
    state_path,
)


def state(folder: Path, step: int, text: str = "weights") -> Path:
    path = state_path(folder, step)
    path.mkdir(parents=True)
    (path / "model.bin").write_text(text)
    (path / "part").mkdir()
    (path / "part" / "shard.bin").write_text("half of it")
    seal(path)
    return path


def test_newest_whole_state_wins(tmp_path: Path):
    assert newest_state(tmp_path / "absent") is None and newest_state(tmp_path) is None
    state(tmp_path, 9)
    state(tmp_path, 100)
    (tmp_path / "notes").mkdir()
    assert newest_state(tmp_path) == state_path(tmp_path, 100)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / FILE_LIST).unlink(),
        lambda path: (path / FILE_LIST).write_text('{"model.bin"'),
        lambda path: (path / FILE_LIST).write_text("[]"),
        lambda path: (path / "model.bin").write_text("wei"),
        lambda path: (path / "part" / "shard.bin").unlink(),
    ],
)
def test_damaged_state_is_passed_over(tmp_path: Path, damage):
    older, newer = state(tmp_path, 2), state(tmp_path, 4)
    assert is_whole(newer)
    damage(newer)
    assert not is_whole(newer) and newest_state(tmp_path) == older


def test_a_new_state_takes_the_place_of_all_others(tmp_path: Path):
    temporary = tmp_path / ".partial-state"
    temporary.mkdir()
    (temporary / "model.bin").write_text("new")
    folder = tmp_path / "state"
    state(folder, 2)
    damaged = state(folder, 6)
    (damaged / FILE_LIST).unlink()
    (folder / "notes").mkdir()  # somebody else's, where `state` is a link, say
    commit_state(temporary, folder, 6)
    assert sorted(path.name for path in folder.iterdir()) == ["notes", "step-00000006"]
    assert newest_state(folder) and (folder / "step-00000006" / "model.bin").read_text() == "new"
    assert not temporary.exists()


def test_log_is_cut(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    cut_log(path, 3)
    assert not path.exists()
    lines = [json.dumps({"step": step, "validation": {"M_J": 0.5}}) for step in (1, 3, 3)]
    for text, count, kept in (
        ("\n".join(lines), 3, lines[:2]),  # the end of the last line is not there
        ("\n".join([*lines, ""]), 3, lines),
        ("\n".join([*lines, ""]), 2, lines[:2]),
        ("\n".join([*lines, ""]), 0, []),
    ):
        path.write_text(text)
        cut_log(path, count)
        assert path.read_text().splitlines() == kept
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_records_are_not_written_through_a_link(tmp_path: Path):
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    reporter = Reporter(SimpleNamespace(is_main_process=True), tmp_path)
    with pytest.raises(FileExistsError, match="is a link or no plain file"):
        reporter.log({"step": 1})
    assert not (tmp_path / "elsewhere").exists()
