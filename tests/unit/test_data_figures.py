"""Pictures of rows and counts, against rows whose content is known."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from combo_hf.data.figures import count_rows, draw_histogram, row_picture
from combo_hf.results.pictures import class_colors


def stored(array: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_row(subset: str = "s4", value: int = 255, **changes: Any) -> dict[str, Any]:
    """Two frames of 40 x 20, grey; the left half of the first mask marked, the second not annotated."""
    frame, mask = np.full((20, 40, 3), 128, np.uint8), np.zeros((20, 40), np.uint8)
    mask[:, :20] = value
    sound = io.BytesIO()
    soundfile.write(sound, np.sin(np.arange(32000) / 9), 16000, format="WAV")
    return {
        "video_id": "x",
        "subset": subset,
        "split": "train",
        "category": "dog,cat",
        "frames": [stored(frame)] * 2,
        "masks": [stored(mask), stored(np.full_like(mask, 255))],
        "label_frames": [True, False],
        "maskiges": None,
        "audio": {"bytes": sound.getvalue(), "path": "x.wav"},
    } | changes


def test_row_picture_shows_the_mask() -> None:
    """The marked half is tinted in the colour of the class, the other is not; the second frame is dimmed."""
    picture = np.asarray(row_picture(make_row(), tile=80)).astype(int)
    left, top = 92, 34 + 40 + 6
    marked, plain = picture[top + 20, left + 20], picture[top + 20, left + 60]
    tint = class_colors(2)[1].astype(float)
    assert np.abs(marked - (0.35 * 128 + 0.65 * tint)).max() <= 2
    assert (plain == 128).all()
    assert picture[top + 20, left + 86 + 20].max() < 80


def test_row_picture_with_maskiges_is_taller() -> None:
    """A row more; its colours as they are."""
    colors = np.full((20, 40, 3), (180, 120, 120), np.uint8)
    plain, more = row_picture(make_row(), tile=80), row_picture(make_row(maskiges=[stored(colors)] * 2), tile=80)
    assert more.size == (plain.width, plain.height + 46)
    assert more.getpixel((92 + 40, 34 + 2 * 46 + 20)) == (180, 120, 120)


@pytest.mark.parametrize(
    ("subset", "value", "names", "expected"),
    [
        ("s4", 255, None, "sounding object"),
        ("avss", 17, None, "dog"),
        ("ms3", 2, ["background", "bell", "bird"], "bird"),
        ("own", 1, ["background", "tram"], "tram"),
    ],
)
def test_counts(subset: str, value: int, names: list[str] | None, expected: str) -> None:
    """Clips, frames, classes and areas of two rows, one of them empty."""
    rows = [make_row(subset, value), make_row(subset, 0, video_id="y", split="val", category="")]
    counts = count_rows(rows, names)
    assert (counts.clips, counts.frames, counts.annotated, counts.empty, counts.with_maskiges) == (2, 4, 2, 1, 0)
    assert counts.splits == {"train": 1, "val": 1}
    assert counts.categories == {"dog": 1, "cat": 1}
    assert counts.classes == {expected: 1}
    assert counts.pixels == {"background": 0.75, expected: 0.25}
    assert str(counts) == (
        "2 clips (train 1, val 1), 4 frames, 2 annotated, 1 of them without anything marked; 0 clips with Maskiges"
    )


def test_decoded_pictures_count_the_same() -> None:
    """Rows of `datasets` hold PIL images."""
    row = make_row()
    row["masks"] = [Image.open(io.BytesIO(mask["bytes"])) for mask in row["masks"]]
    del row["maskiges"]
    counts = count_rows([row])
    assert counts.classes == {"sounding object": 1}
    assert counts.with_maskiges is None
    assert "Maskiges" not in str(counts)


def test_histogram_bars_are_proportional() -> None:
    """Largest first, lengths as the numbers, the rest counted."""
    picture = np.asarray(draw_histogram({"few": 1, "many": 4}, "title", width=400))
    lengths = [(picture[44 + line * 24 + 12, 190:320] == (110, 170, 220)).all(-1).sum() for line in (0, 1)]
    assert abs(lengths[0] - 4 * lengths[1]) <= 4
    assert lengths[0] > 100
    assert draw_histogram({f"{n:03d}": n for n in range(100)}, "x").height == 44 + 80 * 24 + 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: row_picture(make_row(frames=[])), "row with frames"),
        (lambda: row_picture(make_row(), tile=10), "tile of 48"),
        (lambda: row_picture(make_row("avss", 9), ["background", "dog"]), "holds class 9"),
        (lambda: row_picture(make_row(audio={"bytes": b"no", "path": None})), "the sound cannot be read"),
        (lambda: row_picture(make_row(frames=[{"bytes": b"no"}] * 2)), "no picture that is read"),
        (lambda: count_rows([make_row("avss", 9)], ["background"]), "there are 1 names"),
        (lambda: draw_histogram({}, "x"), "numbers of 0 or more"),
        (lambda: draw_histogram({"a": -1}, "x"), "numbers of 0 or more"),
        (lambda: draw_histogram({"a": 1}, "x", width=10), "320"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    """Every refusal says what was wrong."""
    with pytest.raises(ValueError, match=message):
        call()
