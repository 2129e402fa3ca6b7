"""Pictures of results."""

import numpy as np
import pytest
from PIL import Image

from combo_hf.results.pictures import (
    class_colors,
    contact_sheet,
    draw_timeline,
    heat_map,
    overlay,
    summarize,
    timeline,
)


def make_frame(second, labels=(), size=(64, 48), **extra):
    label_map = np.zeros((size[1], size[0]), dtype=np.uint8)
    label_map[10:20, 10:30] = 1 if labels else 0
    return {
        "timestamp": second + 15 / 16,
        "segments": [{"label": label, "score": 0.5} for label in labels],
        "label_map": label_map,
        "image": Image.new("RGB", size, (90, 90, 90)),
        "maskige": Image.new("RGB", (32, 32), (0, 200, 0)),
        "heat_map": label_map.astype(np.float32),
        **extra,
    }


def make_result(*labels, **extra):
    frames = [make_frame(second, names) for second, names in enumerate(labels)]
    return {"frames": frames, "fps": 1, "labels": {0: "background", 1: "bell"}, "has_audio": True, **extra}


def test_colors_are_distinct_and_stable():
    colors = class_colors(71)
    assert colors.shape == (71, 3) and colors.dtype == np.uint8 and not colors[0].any()
    assert len({tuple(color) for color in colors.tolist()}) == 71
    np.testing.assert_array_equal(class_colors(5), colors[:5])
    with pytest.raises(ValueError, match="num_labels"):
        class_colors(0)


def test_overlay_tints_only_the_classes():
    image, label_map = Image.new("RGB", (4, 3), (100, 100, 100)), np.zeros((3, 4), dtype=np.uint8)
    label_map[1, 2] = 1
    tinted = np.asarray(overlay(image, label_map, np.array([[0, 0, 0], [200, 0, 50]]), alpha=0.5))
    assert tinted[1, 2].tolist() == [150, 50, 75]
    tinted = np.delete(tinted.reshape(-1, 3), 6, axis=0)
    assert (tinted == 100).all()


@pytest.mark.parametrize(
    ("label_map", "options", "message"),
    [
        (np.zeros((4, 3), dtype=np.uint8), {}, r"\(3, 4\)"),
        (np.zeros((3, 4), dtype=np.uint8), {"alpha": 1.5}, "alpha"),
        (np.full((3, 4), 9, dtype=np.uint8), {"colors": class_colors(3)}, "class 9"),
    ],
)
def test_overlay_errors(label_map, options, message):
    with pytest.raises(ValueError, match=message):
        overlay(Image.new("RGB", (4, 3)), label_map, **options)


def test_heat_map_gets_lighter_with_the_score():
    lightness = np.asarray(heat_map(None, np.linspace(0, 1, 11)[None]).convert("L"))[0].astype(int)
    assert (np.diff(lightness) > 0).all()
    odd = heat_map(Image.new("L", (3, 1)), np.array([[np.nan, -1, 2]]))
    np.testing.assert_array_equal(odd, heat_map(Image.new("L", (3, 1)), np.array([[0, 0, 1]])))
    with pytest.raises(ValueError, match="scores"):
        heat_map(Image.new("L", (3, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([["bell"], ["bell"], [], ["car"], ["car"]], "bell 0-2 s, car 3-5 s"),
        ([["bell", "car"], ["car"], ["bell"]], "bell 0-1 s, car 0-2 s, bell 2-3 s"),
        ([[], []], "nothing sounds"),
        ([], "nothing sounds"),
    ],
)
def test_summary(labels, text):
    assert summarize(make_result(*labels)) == text


def test_timeline_at_two_frames_per_second():
    frames = [make_frame((k + 15 / 16) / 2 - 15 / 16, ["bell"] if k in (1, 2, 5) else []) for k in range(6)]
    assert timeline(frames, fps=2) == [("bell", 0.5, 1.5), ("bell", 2.5, 3.0)]


def test_contact_sheet_has_a_column_per_frame():
    two, five = (contact_sheet(make_result(*[["bell"]] * count), np.ones(99)) for count in (2, 5))
    assert five.mode == "RGB" and five.height == two.height and five.width - two.width == 3 * (200 + 6)


def test_contact_sheet_draws_what_differs():
    silent = contact_sheet(make_result([], has_audio=False))
    quiet = contact_sheet(make_result([]), np.zeros(100))
    loud = contact_sheet(make_result([]), np.sin(np.arange(100)))
    bell = contact_sheet(make_result(["bell"]), np.zeros(100))
    pictures = [np.asarray(picture) for picture in (silent, quiet, loud, bell)]
    for first in range(4):
        for second in range(first):
            assert (pictures[first] != pictures[second]).any(), (first, second)


def test_contact_sheet_without_maskiges_has_a_row_less():
    frames = [make_frame(0, ["bell"], maskige=None)]
    assert contact_sheet({**make_result(), "frames": frames}).height < contact_sheet(make_result(["bell"])).height


@pytest.mark.parametrize("size", [(2000, 4), (4, 2000), (1, 1)])
def test_contact_sheet_of_odd_shapes_stays_small(size):
    sheet = contact_sheet({**make_result(), "frames": [make_frame(0, size=size)]})
    assert max(sheet.size) < 2000


def test_contact_sheet_needs_maps():
    frame = {key: value for key, value in make_frame(0).items() if key != "image"}
    for frames in ([], [frame]):
        with pytest.raises(ValueError, match="return_maps"):
            contact_sheet({**make_result(), "frames": frames})


def test_foot_of_a_sheet_of_some_frames_can_speak_of_the_whole_film():
    frames = [{"timestamp": 0.5, "segments": [], "label_map": np.zeros((8, 8), np.uint8),
               "image": Image.new("RGB", (8, 8))}]  # fmt: skip
    result = {"frames": frames, "labels": {0: "background", 1: "bell"}, "fps": 1, "has_audio": False}
    sheets = [contact_sheet(result, np.zeros(10, np.float32), summary=text) for text in (None, "bell 3-9 s")]
    differs = np.any(np.asarray(sheets[0]) != np.asarray(sheets[1]), axis=(1, 2)).nonzero()[0]
    assert len(differs) and differs.min() >= sheets[0].height - 26


def test_timeline_has_a_bar_where_a_class_sounds():
    picture = np.asarray(draw_timeline(make_result(["bell"], [], ["bell"], []), np.ones(400), width=500)).astype(int)
    bar = class_colors(2)[1]
    columns = np.flatnonzero((picture[110 + 16] == bar).all(-1))
    scale = (500 - 180) / 4
    found = np.unique(((columns - 170) / scale).astype(int))
    assert found.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("frames", "options"), [((), {}), ((["bell"],), {"width": 100}), ((["bell"],), {"duration": 0})]
)
def test_timeline_refuses(frames, options):
    with pytest.raises(ValueError, match="wanted frames"):
        draw_timeline(make_result(*frames), np.ones(10), **options)


def test_timeline_of_hours_and_of_nothing():
    long = make_result(*[["bell"] if second % 7 else [] for second in range(200)])
    assert draw_timeline(long, duration=7200.5).width == 720
    assert draw_timeline(make_result([])).height == draw_timeline(make_result(["bell"])).height
