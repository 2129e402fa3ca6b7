"""Pictures of strangers: no program is started on them, and whatever their decoder raises is one line."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from combo_hf.cli import main
from combo_hf.data.figures import row_picture
from combo_hf.data.rows import decode_row
from combo_hf.files.pictures import FORMATS, open_image


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
# A frame of 24 x 32 that Pillow's EPS reader would give to Ghostscript.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n%%EndComments\n(never run) show\n%%EOF\n"


def encoded(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, format=form, **options)
    return buffer.getvalue()


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `gs` first in PATH that notes that it was started."""
    note, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho started >> {note}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return note


@pytest.mark.parametrize("form", FORMATS)
def test_common_formats_are_read(form: str) -> None:
    assert open_image(encoded(form), "a.png").convert("RGB").size == PICTURE.size


@pytest.mark.parametrize(
    "read",
    [
        lambda data: open_image(data, "a.png"),
        lambda data: open_image(data, "a.png", decode=False),
        lambda data: decode_row({**row(data), "maskiges": None}, 2),
        lambda data: row_picture(row(data)),
    ],
)
def test_no_program_is_started(ghostscript: Path, read: Callable[[bytes], Any]) -> None:
    with pytest.raises(ValueError, match="no picture that is read; use one of PNG, JPEG"):
        read(POSTSCRIPT)
    assert not ghostscript.exists()


def row(data: bytes) -> dict[str, Any]:
    entry = {"bytes": data, "path": None}
    silence = io.BytesIO()
    import soundfile

    soundfile.write(silence, np.zeros(16000, np.float32), 16000, format="WAV")
    return {
        "video_id": "a", "subset": "s4", "split": "test", "category": "", "frames": [entry], "masks": [entry],
        "label_frames": [True], "maskiges": [entry], "audio": {"bytes": silence.getvalue(), "path": "a.wav"},
    }  # fmt: skip


@pytest.mark.parametrize("form", [*FORMATS, "QOI", "AVIF", "JPEG2000", "ICO", "SGI", "TGA", "DDS", "PCX", "EPS"])
def test_damage_of_any_kind_is_a_value_error(form: str) -> None:
    """Decoders raise IndexError, RuntimeError, struct.error and kinds of their own."""
    try:
        good = encoded(form)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow writes no {form}")
    rng = random.Random(form)
    for _ in range(60):
        data = bytearray(good[: rng.randrange(1, len(good) + 1)])
        for _ in range(rng.randrange(12)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            open_image(bytes(data), "a.png")
        except ValueError as error:
            assert str(error).startswith("a.png ") and "\n" not in str(error)


def test_a_damaged_picture_does_not_end_a_run_over_many(
    ghostscript: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for name, data in {"1": encoded("PNG"), "2": POSTSCRIPT, "3": encoded("PNG")[:200], "4": encoded("JPEG")}.items():
        (frames / f"{name}.png").write_bytes(data)
    assert main(["maskige", str(frames), "--output", str(tmp_path / "out")]) == 2
    out = capsys.readouterr()
    assert "2 made" in out.out + out.err and "Traceback" not in out.err
    assert sorted(path.name for path in (tmp_path / "out").rglob("[14]*.png")) and not ghostscript.exists()
