"""The folder of results: what is written, what goes, and what is found out before the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from combo_hf.media_combo import MediaError
from combo_hf.results.folder import predict_to_folder


def test_a_second_run_leaves_nothing_of_the_first(tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    first = predict_to_folder(tiny_pipe, film, tmp_path, "a", masks=True, summary=True, sheet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a_masks", "a_overlay.mp4", "a_sheet.png"]
    assert set(first.files.values()) == set(tmp_path.iterdir())
    (tmp_path / "b.json").write_text("{}")
    predict_to_folder(tiny_pipe, film, tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_overlay.mp4", "b.json"]


def test_files_of_others_stay(tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"mine": 1}))
    predict_to_folder(tiny_pipe, film, tmp_path, "a")
    assert (tmp_path / "a.json").read_text() == json.dumps({"mine": 1})


def test_a_name_that_is_too_long_is_refused_before_the_work(tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the network ran")

    with pytest.raises(OSError, match="name too long"):
        predict_to_folder(tiny_pipe, film, tmp_path / "out", "x" * 246, progress=work)
    assert not (tmp_path / "out").exists()
    predict_to_folder(tiny_pipe, film, tmp_path / "out", "x" * 240, masks=True)
    predict_to_folder(tiny_pipe, film, tmp_path / "out", "x" * 240, masks=True)  # with the older ones in the way


def test_a_limit_on_the_length(tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"is longer than 1 s"):
        predict_to_folder(tiny_pipe, film, tmp_path / "out", max_seconds=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(MediaError, match=r"is longer than 1 s"):
        tiny_pipe(str(film), max_seconds=1)
