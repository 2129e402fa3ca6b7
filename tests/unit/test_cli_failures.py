"""Whatever fails, a user of `combo-hf` sees one line; a traceback only with --debug."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from combo_hf import cli
from combo_hf.commands import models
from combo_hf.results import folder as prediction


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    code = cli.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.mp4")


def raising(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("a bad value\nand more"), 2, "a bad value"),
        (OSError(errno.ENOSPC, "No space left on device", "/secret/out.mp4"), 2, "out.mp4: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/secret/place"), 2, "place: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "Read-only file system"),
        (ValueError("a\x1b[2Jb\u202e.mp4 is damaged"), 2, r"a\x1b[2Jb\u202e.mp4 is damaged"),
        (OSError(errno.EACCES, "Permission denied", "/x/a\n\x07.mp4"), 2, r"a\n\x07.mp4: Permission denied"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), 2, "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to ..."), 2, "not enough memory"),
        (
            RuntimeError("mat1 and mat2 shapes"),
            3,
            "unexpected RuntimeError: mat1 and mat2 shapes (--debug shows where",
        ),
        (KeyError("frames"), 3, "unexpected KeyError: 'frames'"),
        (AssertionError(), 3, "unexpected AssertionError"),
        (RecursionError("maximum recursion depth"), 3, "unexpected RecursionError"),
        (TypeError("unsupported\noperand"), 3, "unexpected TypeError: unsupported"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_error_is_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, film: Path, tiny_folder: str,
    error: BaseException, code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("combo_hf.cli.os.dup2", lambda *_: None)  # the test's own output stays
    monkeypatch.setattr("combo_hf.results.folder.predict_to_folder", raising(error))
    arguments = ("predict", film, "--output", tmp_path / "out", "--model", tiny_folder)
    found, err = run(capsys, *arguments)
    assert found == code and err.count("\n") == bool(message) and message in err
    assert "Traceback" not in err and "/secret" not in err
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises((type(error), ValueError)):
            run(capsys, *arguments, "--debug")


@pytest.mark.parametrize("place", ["write_overlay_video", "contact_sheet", "Path.write_text"])
def test_a_full_disk_leaves_the_folder_as_it_was(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, film: Path, tiny_folder: str,
    place: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(f"combo_hf.results.folder.{place}", no_space)
    (tmp_path / "film.json").write_bytes(b"older")
    arguments = ("predict", film, "--output", tmp_path, "--model", tiny_folder, "--json", "--sheet", "--masks")
    code, err = run(capsys, *arguments)
    assert code == 2 and "No space left on device" in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"film.json": b"older"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_onto_a_full_disk_and_into_a_closed_pipe() -> None:
    command = [sys.executable, "-m", "combo_hf", "info"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == "combo-hf: error: No space left on device\n"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(
    capsys: pytest.CaptureFixture, tmp_path: Path, film: Path, tiny_folder: str
) -> None:
    tmp_path.chmod(0o500)
    try:
        code, err = run(capsys, "predict", film, "--output", tmp_path / "out", "--model", tiny_folder)
    finally:
        tmp_path.chmod(0o700)
    assert code == 2 and "Permission denied" in err and err.count("\n") == 1


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _other_weights(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_dim": 96, "num_attention_heads": 4}))


def _text(name: str, content: str) -> Any:
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize("command", ["predict", "info", "export"])
@pytest.mark.parametrize(
    "damage",
    [
        _cut_weights,
        _other_weights,
        lambda folder: (folder / "model.safetensors").unlink(),
        _text("model.safetensors", "text"),
        _text("config.json", "{"),
        _text("config.json", "[1, 2]"),
        _text("config.json", "{}"),
        _text("config.json", '{"model_type": "combo", "num_labels": "many"}'),
    ],
)
def test_damaged_checkpoints(
    capsys: pytest.CaptureFixture, tmp_path: Path, film: Path, tiny_folder: str, command: str, damage: Any
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    damage(folder)
    places = {"predict": [film, "--model", folder, "--output", tmp_path / "out"], "info": [folder]}
    places["export"] = [folder, "--output", tmp_path / "model.pt2"]
    code, err = run(capsys, command, *places[command])
    assert code == 2 and err.count("\n") == 1 and "unexpected" not in err and "Traceback" not in err, err
    assert not (tmp_path / "out").exists() and not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"num_frames": "x"}', '{"image_processor": 7}'])
def test_damaged_processors(
    capsys: pytest.CaptureFixture, tmp_path: Path, film: Path, tiny_folder: str, content: str
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (folder / "processor_config.json").write_text(content)
    code, err = run(capsys, "predict", film, "--model", folder, "--output", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1 and "unexpected" not in err, err
    assert not (tmp_path / "out").exists()


def test_keys_in_addresses_are_not_repeated(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: str
) -> None:
    monkeypatch.setenv("COMBO_PUBLIC_ADDRESSES_ONLY", "1")
    address = "http://user:PASSWORD@127.0.0.1:1/film.mp4?signature=SECRET"
    code, err = run(capsys, "predict", address, "--output", tmp_path / "out", "--model", tiny_folder)
    assert code == 2 and err.startswith("combo-hf: error: film.mp4: ") and err.count("film.mp4") == 1
    assert "SECRET" not in err and "PASSWORD" not in err
    assert "SECRET" not in prediction.display_name(address)


class Interrupting:
    """Ctrl-C comes while it is finalized, as while torch's or PyAV's objects are."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_in_a_finalizer_is_not_lost(capsys: Any, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    lost, went_on = [], []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)

    def work(*_: Any) -> None:
        for _ in range(times):
            kept = Interrupting()
            del kept
        until = time.monotonic() + 20
        while time.monotonic() < until:  # it is Python that raises it
            time.sleep(0.01)
        went_on.append(True)

    monkeypatch.setattr(models, "push", work)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        code, error = run(capsys, "push", ".", "me/name")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, error) == (130, "combo-hf: interrupted, nothing partial was left\n")
    assert not lost and not went_on
