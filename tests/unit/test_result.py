"""The result of the pipeline in its other forms, read by pycocotools, supervision and a parser of HTML."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from combo_hf.results.folder import predict_to_folder


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture
def result(tiny_pipe: Any, film: Path) -> Any:
    """Of three seconds, with two things painted that an untrained network does not find."""
    found = tiny_pipe(str(film))
    found["labels"] = {0: "background", 1: "bell", 2: "car"}
    for number, frame in enumerate(found["frames"]):
        frame["label_map"] = np.zeros((48, 64), np.uint8)
        frame["label_map"][5 : 30 + number, 4:20], frame["label_map"][40:, 30:] = 1, 2
        frame["segments"] = [
            {"label": label, "score": score, "mask": Image.fromarray((frame["label_map"] == index) * np.uint8(255))}
            for index, label, score in ((2, "car", 0.75), (1, "bell", 0.51234))
        ]
    return found


def test_it_is_a_dict_as_before(result: Any, tiny_pipe: Any, film: Path) -> None:
    assert isinstance(result, dict) and len(result["frames"]) == 3
    assert list(result) == ["frames", "sampling_rate", "size", "fps", "has_audio", "labels", "warnings"]
    assert set(result["frames"][0]) == {"timestamp", "segments", "label_map"}
    for same in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert type(same) is type(result) and same.to_dict() == result.to_dict()
    assert all(type(window) is type(result) for window in tiny_pipe.stream(str(film)))


def test_to_dict_is_the_json_file(result: Any, tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    found = predict_to_folder(tiny_pipe, film, tmp_path, "a", summary=True, fps=1)
    report = json.loads(found.files["json"].read_text(encoding="utf-8"))
    assert report.pop("source") == film.name
    assert json.loads(json.dumps(tiny_pipe(str(film)).to_dict())) == report
    assert result.to_dict()["summary"] == "bell 0-3 s, car 0-3 s"


def test_to_coco_is_read_by_pycocotools(result: Any, tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text(json.dumps(result.to_coco()))
    coco = COCO(str(tmp_path / "coco.json"))
    assert [coco.imgs[key]["file_name"] for key in sorted(coco.imgs)][0] == "000000_0.938s.png"
    assert {entry["name"] for entry in coco.cats.values()} == set(result["labels"].values()) - {result["labels"][0]}
    for number, frame in enumerate(result["frames"], start=1):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=number))
        assert len(annotations) == len(frame["segments"])
        for annotation, segment in zip(annotations, frame["segments"], strict=True):
            assert np.array_equal(coco.annToMask(annotation) * 255, np.asarray(segment["mask"]))
            assert coco.cats[annotation["category_id"]]["name"] == segment["label"]
            assert annotation["score"] == round(segment["score"], 4)


class Detections:
    """The arguments of `supervision.Detections`, kept."""

    def __init__(self, **columns: Any) -> None:
        self.__dict__.update(columns)


def test_to_supervision(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the class itself where it is installed, else against its arguments."""
    try:
        import supervision
    except ImportError:
        supervision = ModuleType("supervision")
        supervision.Detections = Detections
        monkeypatch.setitem(sys.modules, "supervision", supervision)
    empty = {**result["frames"][0], "segments": []}
    frames = [*result["frames"], empty]
    found = type(result)({**result, "frames": frames}).to_supervision()
    assert all(isinstance(entry, supervision.Detections) for entry in found) and len(found) == len(frames)
    for frame, entry in zip(frames, found, strict=True):
        count = len(frame["segments"])
        assert entry.xyxy.shape == (count, 4) and entry.mask.shape == (count, *frame["label_map"].shape)
        assert list(entry.data["class_name"]) == [segment["label"] for segment in frame["segments"]]
        for mask, box, index in zip(entry.mask, entry.xyxy.astype(int), entry.class_id, strict=True):
            assert np.array_equal(mask, frame["label_map"] == index)
            left, top, right, bottom = box
            assert mask[top:bottom, left:right].sum() == mask.sum() and mask[top].any() and mask[:, right - 1].any()


def test_to_supervision_without_the_library(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="to_supervision needs the library supervision: pip install supervision"):
        result.to_supervision()


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("options", [{}, {"return_maps": True}], ids=str)
def test_a_notebook_shows_the_sheet(tiny_pipe: Any, film: Path, result: Any, options: dict[str, bool]) -> None:
    found, name = tiny_pipe(str(film), **options), '<script>alert("1")</script>'
    found["labels"] = {0: "background", 1: name}
    for frame, painted in zip(found["frames"], result["frames"], strict=True):
        frame["label_map"], frame["segments"] = painted["label_map"] % 2, [{**painted["segments"][1], "label": name}]
    page = Page(found._repr_html_())
    assert [tag for tag, _ in page.tags] == ["figure", "img", "figcaption"] and name in page.text
    head, _, data = page.tags[1][1]["src"].partition(",")
    sheet = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert head == "data:image/png;base64" and sheet.format == "PNG"
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert (pixels == (110, 170, 220)).all(2).sum() > 500, "no waveform"
    for column, second in enumerate(range(3)):  # the middle of each picture: its grey value is its number
        shown = pixels[60, 84 + 166 * column + 130]
        assert np.ptp(shown) < 6 and abs(shown.mean() - (20 + 3 * (25 * second + 23))) < 8
