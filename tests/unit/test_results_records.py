"""JSON, RLE and timelines, read by others than us where they are there."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from combo_hf.results.folder import predict_to_folder
from combo_hf.results.records import TIMELINES, encode_rle, segment_record, write_timeline


# pycocotools 2.0.11 and numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def decode_rle(record: dict[str, Any]) -> np.ndarray:
    """The definition of pycocotools (rleFrString and rleDecode), written out."""
    runs: list[int] = []
    value = shift = 0
    for character in record["counts"]:
        code = ord(character) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value |= -1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(record["size"], order="F")


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 7), (7, 1), (13, 9), (48, 64), (300, 200)]
    found = [np.zeros((4, 5), bool), np.ones((4, 5), bool), np.eye(6, dtype=bool)]
    found += [rng.random(shape) < share for shape in shapes for share in (0.02, 0.5, 0.98)]
    block = np.zeros((1080, 1920), bool)
    block[200:900, 300:1700] = True
    return [*found, block]


@pytest.mark.parametrize("mask", masks(), ids=str)
def test_rle(mask: np.ndarray) -> None:
    record = encode_rle(mask)
    assert np.array_equal(decode_rle(record), mask)
    assert json.loads(json.dumps(record)) == {"size": list(mask.shape), "counts": record["counts"]}
    assert np.array_equal(coco.decode({**record, "counts": record["counts"].encode()}).astype(bool), mask)
    assert coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() == record["counts"]


def test_segment() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 10:25] = 255
    record = segment_record({"label": "bird", "score": 0.123456, "mask": Image.fromarray(mask)}, 7)
    assert record["bbox"] == [10, 5, 15, 4] and record["area"] == 60 and record["category_id"] == 7
    assert record["score"] == 0.1235 and np.array_equal(decode_rle(record["segmentation"]), mask > 0)


STRETCHES = [("bird, small", 0.0, 2.0), ("dog <b>\n", 1.5, 3661.25)]


@pytest.mark.parametrize("kind", TIMELINES)
def test_timelines(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    write_timeline(path, kind, STRETCHES)
    text = path.read_text(encoding="utf-8")
    if kind == "csv":
        rows = list(csv.DictReader(text.splitlines()[:2]))
        assert rows == [{"label": "bird, small", "start": "0.000", "end": "2.000"}]
        return
    if kind == "audacity":
        assert text == "0.000000\t2.000000\tbird, small\n1.500000\t3661.250000\tdog <b>\n"
        return
    point = "," if kind == "srt" else r"\."
    clock = rf"(\d\d):([0-5]\d):([0-5]\d){point}(\d{{3}})"
    times = re.findall(rf"^{clock} --> {clock}$", text, re.M)
    assert times == [
        ("00", "00", "00", "000", "00", "00", "02", "000"),
        ("00", "00", "01", "500", "01", "01", "01", "250"),
    ]
    assert text.startswith("1\n" if kind == "srt" else "WEBVTT\n\n")
    blocks = text.strip().split("\n\n")
    assert blocks[-1].endswith("dog <b>" if kind == "srt" else "dog &lt;b>")


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@SUM(1)", "=cmd|' /C calc'!A0"])
def test_no_class_is_a_formula_of_a_spreadsheet(tmp_path: Path, label: str) -> None:
    write_timeline(tmp_path / "a.csv", "csv", [(label, 0.0, 2.0)])
    (row,) = csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    assert row["label"] == f"'{label}"


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_subtitles_are_read_by_ffmpeg(tmp_path: Path, kind: str) -> None:
    write_timeline(tmp_path / f"a.{kind}", kind, STRETCHES)
    with av.open(str(tmp_path / f"a.{kind}")) as container:
        stream = container.streams.subtitles[0]
        cues = [
            (html.unescape(bytes(packet).decode()), packet.pts * stream.time_base, packet.duration * stream.time_base)
            for packet in container.demux(stream)
            if packet.size
        ]
    assert [text for text, _, _ in cues] == ["bird, small", "dog <b>"]
    assert [(start, start + length) for _, start, length in cues] == [(0, 2), (1.5, 3661.25)]


def test_unknown_timelines(tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a timeline is one of srt, vtt, csv, audacity, got 'ass'"):
        write_timeline(tmp_path / "a", "ass", STRETCHES)
    with pytest.raises(ValueError, match="timelines: wanted some of srt, vtt, csv, audacity, got ass"):
        predict_to_folder(tiny_pipe, film, tmp_path / "out", timelines=["ass", "srt"])
    assert not list(tmp_path.iterdir())


def test_the_json_file_agrees_with_the_masks(tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    found = predict_to_folder(
        tiny_pipe, film, tmp_path, "a", masks=True, summary=True, timelines=["csv", "srt"], fps=2
    )
    report = json.loads(found.files["json"].read_text(encoding="utf-8"))
    pictures = sorted(found.files["masks"].iterdir())
    assert [path.name for path in pictures[:2]] == ["000000_0.469s.png", "000001_0.969s.png"]
    assert len(pictures) == len(report["frames"]) == 6
    for path, frame in zip(pictures, report["frames"], strict=True):
        ids = np.asarray(Image.open(path))
        assert {segment["category_id"] for segment in frame["segments"]} == set(np.unique(ids)) - {0}
        for segment in frame["segments"]:
            mask = decode_rle(segment["segmentation"])
            left, top, width, height = segment["bbox"]
            assert np.array_equal(mask, ids == segment["category_id"]) and segment["area"] == mask.sum()
            assert mask[top : top + height, left : left + width].sum() == mask.sum()
            assert report["labels"][str(segment["category_id"])] == segment["label"]
            red, green, blue = Image.open(path).getpalette()[3 * segment["category_id"] :][:3]
            assert report["colors"][segment["label"]] == f"#{red:02x}{green:02x}{blue:02x}"
    assert found.files["csv"].read_text().count("\n") == 1 + len(report["stretches"])
    for stretch in report["stretches"]:
        assert f"{stretch['label']} {stretch['start']:g}-{stretch['end']:g} s" in report["summary"]


def test_threshold_and_area(tiny_pipe: Any, film: Path) -> None:
    """More is left out the higher the threshold; what is left keeps its class."""
    before = None
    for threshold in (0.0, 0.3, 0.6, 1.0):
        frames = tiny_pipe(str(film), threshold=threshold)["frames"]
        if before is not None:
            for old, new in zip(before, frames, strict=True):
                kept = new["label_map"] > 0
                assert np.array_equal(new["label_map"][kept], old["label_map"][kept])
        assert all(segment["score"] >= threshold for frame in frames for segment in frame["segments"])
        before = frames
    assert not any(frame["segments"] for frame in before)
    for wrong in (-0.1, 1.1, True):
        with pytest.raises(ValueError, match="threshold must be 0 to 1"):
            tiny_pipe(str(film), threshold=wrong)


def test_what_was_asked_for_and_does_not_sound(tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    names = [label for index, label in tiny_pipe.model.config.id2label.items() if index][:2]
    found = predict_to_folder(tiny_pipe, film, tmp_path, "a", classes=names, threshold=1.0, summary=True)
    assert found.summary == f"no {' or '.join(names)} sounds"
    assert json.loads(found.files["json"].read_text())["stretches"] == []
