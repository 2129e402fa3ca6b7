"""Own videos with masks: three layouts give the same rows; every fault has its line in the table of `data check`."""

from __future__ import annotations

import io
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fixtures_own import CLASSES, FAULTS, coco, label_map, make_folder, write_json
from PIL import Image

from combo_hf.cli import main
from combo_hf.data.findings import format_findings
from combo_hf.data.loading import load_avsbench
from combo_hf.data.own import build_own
from combo_hf.data.own_check import check_own
from combo_hf.data.own_layout import OwnFolder
from combo_hf.data.own_masks import CocoMask, decode_segmentation, read_mask
from combo_hf.data.own_rows import OwnSettings, rows_of_video
from combo_hf.data.row_format import class_names_of
from combo_hf.data.rows import decode_row


FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of seven seconds with index PNGs; not to be changed."""
    return make_folder(tmp_path_factory.mktemp("own") / "my videos é")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "own")
    return tmp_path / "own"


def rows_of(folder: Path, **settings: int) -> dict[str, dict[str, Any]]:
    own = OwnFolder(folder)
    assert not [finding for finding in own.findings if finding.serious], own.findings
    rows = (row for video in own.annotated() for row in rows_of_video(video, own.classes, OwnSettings(**settings)))
    return {row["video_id"]: row for row in rows}


def decoded(entries: list[dict[str, Any]]) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(entry["bytes"]))) for entry in entries]


def test_rows_hold_what_the_folder_says(made: Path) -> None:
    """Frames at the time of the mask, masks in their place, the sound of the same seconds; no clip without a mask."""
    rows = rows_of(made)
    assert sorted(rows) == ["a_00000", "a_00005", "b_00000", "c_00000"]  # b and c have no mask after 5 s
    first, last = rows["a_00000"], rows["a_00005"]
    assert first["label_frames"] == [True, True, False, True, False] and last["label_frames"] == [True, False]
    masks = decoded(first["masks"])
    assert (masks[0] == label_map(0.9375)).all() and (masks[1] == label_map(1.25)).all()
    assert (masks[2] == 255).all() and not masks[3].any()  # not annotated; annotated, and nothing sounds
    assert (first["category"], first["classes"], first["subset"]) == ("cat,dog", [1, 2], "own")
    for frame, time in zip(decoded(first["frames"]), (0.9375, 1.25, 2.9375, 3.5, 4.9375), strict=True):
        assert abs(frame.mean() - (20 + 30 * np.floor(time * 4) / 4)) < 3, time  # a picture's grey is its time
    waveform, rate = soundfile.read(io.BytesIO(last["audio"]["bytes"]), dtype="float32")
    assert (rate, len(waveform)) == (16000, 2 * 16000)
    pitch = np.fft.rfftfreq(16000, 1 / 16000)[np.abs(np.fft.rfft(waveform[:16000])).argmax()]
    assert abs(pitch - (200 + 100 * 5)) < 10  # a second's pitch is its number
    clip = decode_row(first, len(CLASSES), use_maskige=False)
    assert len(clip.frames) == 5 and len(clip.masks) == 3


def test_lengths_and_sizes_are_chosen(made: Path) -> None:
    rows = rows_of(made, clip_seconds=3, max_side=32)
    assert [len(rows[f"a_{start:05d}"]["frames"]) for start in (0, 3)] == [3, 3] and "a_00006" not in rows
    frame, mask = decoded(rows["a_00000"]["frames"])[0], decoded(rows["a_00000"]["masks"])[0]
    assert frame.shape == (24, 32, 3) and mask.shape == (24, 32) and set(np.unique(mask)) == {0, 1, 2}


def to_coco(folder: Path, name: Callable[[str, float], str]) -> None:
    """Layout (b) of a folder of layout (a): rectangles as polygons."""
    images, annotations = [], []
    for path in sorted((folder / "masks").rglob("*.png")):
        ids, number = np.asarray(Image.open(path)), len(images) + 1
        size = {"width": ids.shape[1], "height": ids.shape[0]}
        images.append({"id": number, "file_name": name(path.parent.name, float(path.stem)), **size})
        for k in set(np.unique(ids).tolist()) - {0}:
            rows, columns = np.nonzero(ids == k)
            x, y, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            polygon = [float(value) for value in (x, y, right, y, right, bottom, x, bottom)]
            entry = {"id": len(annotations), "image_id": number, "category_id": 10 * k, "segmentation": [polygon]}
            annotations.append(entry)
    categories = [{"id": 10 * k, "name": name} for k, name in enumerate(CLASSES) if k]
    write_json(folder / "coco.json", {"images": images, "annotations": annotations, "categories": categories})
    shutil.rmtree(folder / "masks")
    (folder / "classes.txt").unlink()


def to_metadata(folder: Path) -> None:
    """Layout (c)."""
    lines = []
    for place in sorted((folder / "masks").iterdir()):
        masks = [{"time": float(p.stem), "mask": f"masks/{place.name}/{p.name}"} for p in sorted(place.glob("*.png"))]
        masks = [entry | {"mask": None} if entry["time"] == 3.5 else entry for entry in masks]
        lines.append(json.dumps({"file_name": f"videos/{place.name}.mp4", "masks": masks}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


NAMES = {
    "ours": lambda video, time: f"{video}/{time}.jpg",
    "flat": lambda video, time: f"{video}_{time}.png",
    "label studio": lambda video, time: f"..\\..\\media\\upload\\1\\0a1b2c3d-{video}_{time}.jpg",
    "roboflow": lambda video, time: f"{video}_{str(time).replace('.', '-')}_jpg.rf.5d1f0c.jpg",
    "cvat": lambda video, time: f"{video}/frame_{round(time * 4):06d}.PNG",  # four pictures a second
}


@pytest.mark.parametrize("name", NAMES)
def test_coco_gives_the_same_rows(made: Path, folder: Path, name: str) -> None:
    for path in (folder / "masks").rglob("0.9375.png"):
        path.rename(path.with_name("0.75.png"))
    wanted = rows_of(folder)
    to_coco(folder, NAMES[name])
    assert rows_of(folder) == wanted


def test_metadata_gives_the_same_rows(made: Path, folder: Path) -> None:
    to_metadata(folder)
    assert rows_of(folder) == rows_of(made)


def test_a_file_of_pycocotools(folder: Path) -> None:
    """Packed run lengths, holes included; an image without objects means that nothing sounds."""
    y, x = np.mgrid[:24, :32]
    radius, noise = np.hypot(x - 12, y - 11), np.random.default_rng(0).random((24, 32)) < 0.3
    masks = [(radius < 9) & (radius > 4), (x > 25) & (y > 2), noise]  # as make_coco.py has them
    content = json.loads((FIXTURES / "coco_pycocotools.json").read_text())
    for mask, entry in zip(masks, content["annotations"], strict=True):
        assert (decode_segmentation(entry["segmentation"], (24, 32)) == mask).all()
    shutil.rmtree(folder / "masks")
    (folder / "classes.txt").unlink()
    (folder / "videos" / "a.mp4").rename(folder / "videos" / "street.mp4")
    shutil.copy(FIXTURES / "coco_pycocotools.json", folder / "instances.json")
    rows = rows_of(folder)
    assert OwnFolder(folder).classes == ["background", "dog", "tram"]
    assert rows["street_00000"]["label_frames"] == [True, True, True, True, False]
    assert not decoded(rows["street_00000"]["masks"])[3].any()


def test_overlaps_holes_and_crowds() -> None:
    """The smaller object is on top, holes of run lengths stay, polygons are united, crowds are ignored."""
    from combo_hf.data.own_masks import CocoMask, read_mask

    box = [[0.0, 0.0, 8.0, 0.0, 8.0, 8.0, 0.0, 8.0]]
    small = [[2.0, 2.0, 4.0, 2.0, 4.0, 4.0, 2.0, 4.0], [5.0, 5.0, 7.0, 5.0, 7.0, 7.0, 5.0, 7.0]]
    runs = {"size": [10, 10], "counts": [90, 10]}
    objects = ((2, small, False), (1, box, False), (1, runs, True))
    ids = read_mask(CocoMask((10, 10), objects), 3)
    assert ids is not None and (ids[2:4, 2:4] == 2).all() and (ids[5:7, 5:7] == 2).all() and ids[0, 0] == 1
    assert ids[4, 2] == 1 and (ids[:, 9] == 255).all() and ids[9, 0] == 0


def test_built_and_loaded(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Names of classes travel with the rows; a second run keeps the files, and another folder is refused."""
    output = tmp_path / "out put"
    call = ["data", "build", "--from", str(made), "--output", str(output)]
    assert main(call) == 0 and main(call) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("(0 files written, 3 kept)")
    rows = load_avsbench(output, "train", cache_dir=tmp_path / "cache")
    assert class_names_of(rows.features) == CLASSES and rows["subset"][:] == ["own"] * len(rows)
    card = (output / "README.md").read_text()
    assert "| train | 1 |" in card and "background, cat, dog" in card
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"begun otherwise \(clip_seconds changed\); start anew \(--restart\)"):
        build_own(made, output, OwnSettings(clip_seconds=3))
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    build_own(made, output, OwnSettings(clip_seconds=3), resume=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ValueError, match="no build of own videos; choose a new or empty folder"):
        build_own(made, tmp_path / "mine")


def splits_of(folder: Path) -> dict[str, str]:
    return {video.name: video.split for video in OwnFolder(folder).videos.values()}


def test_splits_are_by_video(made: Path, folder: Path) -> None:
    """By their names' digests; by a table; by folders; never by clip."""
    assert sorted(splits_of(made).values()) == ["test", "train", "val"]
    (folder / "splits.csv").write_text("video,split\na,train\nb.mp4,train\nc,val\n")
    assert splits_of(folder) == {"a": "train", "b": "train", "c": "val"}
    (folder / "splits.csv").unlink()
    wanted = {"a": "val", "b": "train", "c": "train"}
    for name, split in wanted.items():
        (folder / "videos" / split).mkdir(exist_ok=True)
        (folder / "videos" / f"{name}.mp4").rename(folder / "videos" / split / f"{name}.mp4")
    assert splits_of(folder) == wanted


def test_a_good_folder_has_no_fault(made: Path, capsys: pytest.CaptureFixture) -> None:
    assert not [finding for finding in check_own(made) if finding.serious]
    assert main(["data", "check", str(made)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 error(s), ")


def test_there_are_at_least_thirty_kinds() -> None:
    assert len({code for _, code, _, _ in FAULTS.values()}) >= 30


@pytest.mark.parametrize("name", FAULTS)
def test_faults(folder: Path, tmp_path: Path, name: str) -> None:
    """One fault, one line with its kind and message; where it is serious, a build stops at it and leaves nothing."""
    change, code, message, serious = FAULTS[name]
    change(folder)
    findings = check_own(folder)
    found = [finding for finding in findings if finding.code == code]
    assert found and found[0].serious is serious, format_findings(findings)
    assert message in f"{found[0].where}: {found[0].message}"
    if serious:
        with pytest.raises(ValueError) as caught:
            build_own(folder, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not [path for path in (tmp_path / "out").rglob("*.parquet")]
    else:
        build_own(folder, tmp_path / "out")


STRANGE: list[Any] = [
    *(None, True, -1, 0, 1e300, 10**400, float("nan")),
    *("", "\0", "\ud800", "x" * 5000, "9" * 5000, "a_" + "9" * 500),
    *([], {}, [[]], [{}], [["x"] * 6], [[1e300] * 6]),
    *({"size": [48, 64], "counts": [10**400]}, {"size": [48, 64], "counts": "o" * 90}),
]


@pytest.mark.parametrize("layout", ["coco", "metadata"])
def test_strange_values_are_faults_or_nothing(folder: Path, layout: str) -> None:
    """Each value of the table in place of each part of the file: no exception, whatever it is."""
    (to_metadata if layout == "metadata" else coco)(folder)
    path = folder / ("metadata.jsonl" if layout == "metadata" else "coco.json")
    text = path.read_text()
    good = [json.loads(line) for line in text.splitlines()] if layout == "metadata" else json.loads(text)

    def places(value: Any) -> list[tuple[Any, Any]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]

    for inside, key in places(good):
        kept = inside[key]
        for strange in STRANGE:
            inside[key] = strange
            lines = "\n".join(map(json.dumps, good)) if layout == "metadata" else json.dumps(good)
            path.write_text(lines)
            OwnFolder(folder)
        inside[key] = kept


def test_a_thousand_masks_are_painted_one_by_one() -> None:
    """A few bytes describe each; the smaller one is on top."""
    edge = [[0, 0, side, 0, side, side, 0, side] for side in (200, 100)]
    whole = {"size": [1500, 2000], "counts": [0, 1500 * 2000]}
    objects = [(1, [edge[0]], False), (2, [edge[1]], True), *[(3, whole, False)] * 60]
    tracemalloc.start()
    ids = read_mask(CocoMask((1500, 2000), tuple(objects)), 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000  # 60 of them take 180 MB
    assert ids is not None and [int(ids[place]) for place in ((50, 50), (150, 150), (500, 500))] == [255, 1, 3]


def test_what_is_told_of_a_folder_commands_no_terminal(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "videos" / "x\x1b[2J\n.txt").touch()
    (folder / "masks" / "\u202ex").mkdir()
    assert main(["data", "check", str(folder)]) == 1
    told = "".join(capsys.readouterr())
    assert r"x\x1b[2J\n.txt" in told and r"\u202ex" in told and not re.search("[\x00-\x09\x0b-\x1f\u202e]", told)


def test_broken_videos_are_left_out_on_request(folder: Path, tmp_path: Path) -> None:
    (folder / "splits.csv").write_text("video,split\na,train\nb,train\nc,train\n")
    (folder / "videos" / "b.mp4").write_bytes(b"no video")
    report = build_own(folder, tmp_path / "out", on_error="skip")
    assert report.rows == {"train": 3} and [name for name, _ in report.skipped] == ["b"]
    assert "- train: b: " in (tmp_path / "out" / "README.md").read_text()


def test_card_and_counts_are_true_after_maskige(made: Path, tmp_path: Path) -> None:
    """Of own data and of AVSBench: what was 0 is the number of clips then."""
    from combo_hf.data.avsbench import build_dataset
    from combo_hf.data.synthetic.official_folders import write_official

    build_own(made, tmp_path / "own")
    write_official(tmp_path / "avsbench", "ms3", {"train": 2, "test": 1}, size=48)
    build_dataset(tmp_path / "avsbench", "ms3", tmp_path / "ms3", splits=["train", "test"], progress=False)
    assert "| train | 1 | 2 | 4 | 0 |" in (tmp_path / "own" / "README.md").read_text()
    assert "MS3: 0 clips have them" in (tmp_path / "ms3" / "README.md").read_text()
    for name in ("own", "ms3"):
        assert main(["maskige", str(tmp_path / name), "--output", str(tmp_path / f"{name}-maskiges")]) == 0
    assert "| train | 1 | 2 | 4 | 2 |" in (tmp_path / "own-maskiges" / "README.md").read_text()
    assert "MS3: 3 clips have them" in (tmp_path / "ms3-maskiges" / "README.md").read_text()
    assert json.loads((tmp_path / "ms3-maskiges" / "build-ms3.json").read_text())["clips_with_maskiges"] == 3
