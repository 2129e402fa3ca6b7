"""Reading the official folders: csv files, rows, masks, sound."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from combo_hf.data.avsbench import (
    AVSS_CLASSES,
    RULES,
    SPLITS,
    SUBSETS,
    ClipEntry,
    find_home,
    parse_objects,
    read_entries,
    read_rows,
    subset_rule,
    to_class_ids,
)
from combo_hf.data.avsbench_layout import is_plain_name
from combo_hf.data.avsbench_rows import RowOptions, grey_mask
from combo_hf.data.synthetic.dataset import synthesize_clip
from combo_hf.data.synthetic.official_folders import write_official
from combo_hf.results.video import write_video


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic clips in the official folders of all three subsets, 64 pixels wide; not to be changed."""
    root = tmp_path_factory.mktemp("official")
    for subset in SUBSETS:
        write_official(root, subset, {"train": 3, "test": 1}, seed=1, size=64, processed=subset == "avss")
    return root


def pixels(image: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


def png(array: np.ndarray, palette: list[int] | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    if palette is not None:
        image = Image.frombytes("P", array.shape[::-1], array.tobytes())
        image.putpalette(palette)
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("subset", SUBSETS)
def test_synthetic_round_trip(official: Path, subset: str) -> None:
    """What was drawn comes back: labels, frames (exactly, where they are PNG), sound and flags."""
    for split, count in (("train", 3), ("test", 1)):
        rows = list(read_rows(official, subset, split))
        clips = [synthesize_clip(subset, 1, index, split, 64) for index in range(count)]
        assert len(rows) == count
        for row in rows:
            waveform, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
            assert rate == 16000
            near = [
                c for c in clips if len(c.waveform) == len(waveform) and np.abs(c.waveform - waveform).max() < 1e-4
            ]
            (clip,) = near
            sounding = {name for second in clip.sounding for name in second}
            assert (row["subset"], row["split"]) == (subset, split)
            assert subset == "ms3" or set(row["category"].split(",")) == sounding
            assert len(row["frames"]) == len(row["masks"]) == len(row["label_frames"]) == len(clip.frames)
            for k, known in enumerate(row["label_frames"]):
                ids = to_class_ids(pixels(row["masks"][k]), subset)
                if not known:
                    assert (pixels(row["masks"][k]) == 255).all()
                elif subset == "avss":
                    names = {AVSS_CLASSES[index] for index in np.unique(ids)} - {"background"}
                    assert names <= sounding
                    assert ((ids > 0) == (clip.masks[k] > 0)).all()
                else:
                    assert (ids == (clip.masks[k] > 0)).all()
                if subset != "avss":
                    assert (pixels(row["frames"][k]) == np.asarray(clip.frames[k])).all()


def test_sample_is_copied_byte_for_byte(avs_sample: Path) -> None:
    """Frames, annotated masks, wav files and Maskiges of all clips are those of the disk."""
    for subset in SUBSETS:
        home, rule = find_home(avs_sample, subset), subset_rule(subset)
        entries = {entry.name: entry for entry in read_entries(avs_sample, subset)}
        rows = [row for split in SPLITS for row in read_rows(avs_sample, subset, split, maskiges="yes")]
        assert sorted(entries) == sorted(row["video_id"] for row in rows)
        for row in rows:
            entry = entries[row["video_id"]]
            place = entry.maskige_place(home, rule)
            for name, template in (("frames", rule.frame), ("maskiges", place), ("masks", rule.mask)):
                for k, path in enumerate(entry.paths(home, rule, template)):
                    if name != "masks" or row["label_frames"][k]:
                        assert row[name][k] == {"bytes": path.read_bytes(), "path": None}
            assert row["audio"]["bytes"] == entry.path(home, rule, rule.wav).read_bytes()
            assert row["label_frames"] == entry.label_frames


def test_sample_categories(avs_sample: Path) -> None:
    """Categories of S4, none of MS3, class names of AVSS with commas."""
    rows = {row["video_id"]: row for subset in SUBSETS for row in read_rows(avs_sample, subset, "val")}
    assert rows["04dH6Cp2IKK"]["category"] == "cat_meowing"
    assert [row["category"] for row in read_rows(avs_sample, "ms3", "val")] == [""]
    assert [row["category"] for row in read_rows(avs_sample, "avss", "val")] == ["emergency-car,hen"]


def test_processed_pictures(avs_sample: Path, official: Path) -> None:
    """The 224 x 224 pictures come with their own masks and Maskiges."""
    (row,) = read_rows(avs_sample, "avss", "val", maskiges="yes", processed=True)
    assert {pixels(image).shape[:2] for name in ("frames", "masks", "maskiges") for image in row[name]} == {(224, 224)}
    (row,) = read_rows(official, "avss", "test", processed=True)
    assert {pixels(image).shape[:2] for image in row["frames"]} == {(224, 224)}


def test_first_frame_only() -> None:
    """S4 and the v1s part of AVSS are annotated in the first training frame only; v2 has ten frames."""
    cases = {
        ("s4", "train", ""): [True] + [False] * 4,
        ("s4", "val", ""): [True] * 5,
        ("ms3", "train", ""): [True] * 5,
        ("avss", "train", "v1s"): [True] + [False] * 4,
        ("avss", "test", "v1s"): [True] * 5,
        ("avss", "train", "v1m"): [True] * 5,
        ("avss", "train", "v2"): [True] * 10,
    }
    for (subset, split, label), flags in cases.items():
        assert ClipEntry(subset, split, "x", "", label, "x", 2).label_frames == flags


@pytest.mark.parametrize("given", ["", "{folder}", "{marker}"])
@pytest.mark.parametrize("subset", SUBSETS)
def test_root_may_be_any_of_them(official: Path, subset: str, given: str) -> None:
    """The folder of all AVSBench, of the subset, or of its data."""
    marker = RULES[subset].marker if subset != "avss" else ""
    root = official / given.format(folder=RULES[subset].folder, marker=f"{RULES[subset].folder}/{marker}")
    assert find_home(root, subset) == official / RULES[subset].folder


@pytest.mark.parametrize(
    ("old", "new"), [("AVSBench_object", "AVSBench-object"), ("AVSBench_semantic", "AVSBench-semantic")]
)
def test_official_spelling(official: Path, tmp_path: Path, old: str, new: str) -> None:
    """With a hyphen, as the authors write the folders."""
    (tmp_path / new).symlink_to(official / old)
    assert sum(1 for _ in read_entries(tmp_path, "avss" if "semantic" in new else "s4")) == 4


def test_byte_order_mark_and_spaces(official: Path, tmp_path: Path) -> None:
    """A csv file that went through a spreadsheet: BOM, CRLF, blank lines, spaces after commas, a column more."""
    lines = (official / RULES["ms3"].folder / "ms3_meta_data.csv").read_text().splitlines()
    text = "\r\n".join([lines[0] + ",note", "", *(line.replace(",", ", ") + ", x" for line in lines[1:]), ",,", ""])
    (tmp_path / "ms3_meta_data.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [e.name for e in read_entries(tmp_path, "ms3")] == [e.name for e in read_entries(official, "ms3")]


@pytest.mark.parametrize(
    ("text", "names", "unknown"),
    [
        ("dog", ["dog"], []),
        ("h orse_emergency-car", ["horse", "emergency-car"], []),
        ("Emergency car", ["emergency-car"], []),
        ("off-the-screen_man", ["off-the-screen", "man"], []),
        ("missile-rocket_", ["missile-rocket"], []),
        ("unicorn_man", ["unicorn", "man"], ["unicorn"]),
        ("", [], []),
    ],
)
def test_objects(text: str, names: list[str], unknown: list[str]) -> None:
    """`a_obj` with its slips of the pen."""
    assert parse_objects(text) == (names, unknown)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("-Nx1De7Q561", True),
        ("O_s-zCN_Y_4", True),
        ("caf\u00e9 \u97f3", True),
        (".hidden", True),
        ("", False),
        (".", False),
        ("..", False),
        ("a/b", False),
        ("a\\b", False),
        ("C:x", False),
        ("a\0b", False),
        ("a\nb", False),
        (" a", False),
        ("x" * 201, False),
    ],
)
def test_names(name: str, good: bool) -> None:
    """Nothing from a csv file leaves its folder."""
    assert is_plain_name(name) == good


@pytest.mark.parametrize(
    ("values", "subset", "expected"),
    [
        ([0, 255], "s4", [0, 1]),
        ([255, 255], "ms3", [1, 1]),
        ([0, 1], "s4", [0, 1]),
        ([0, 0], "s4", [0, 0]),
        ([0, 8], "ms3", [0, 8]),
        ([127, 128], "s4", [0, 1]),
        ([3, 200], "s4", [0, 1]),
        ([8, 255], "ms3", [8, 255]),
        ([70, 255], "avss", [70, 255]),
        ([0, 17], "avss", [0, 17]),
    ],
)
def test_class_ids(values: list[int], subset: str, expected: list[int]) -> None:
    """255 is the object in S4 and MS3, and "ignored" in AVSS; class indices stay."""
    assert to_class_ids(np.array([values], np.uint8), subset).tolist() == [expected]
    assert to_class_ids(Image.fromarray(np.array([values], np.uint8)), subset).tolist() == [expected]


SQUARE = np.tile(np.array([[0, 1], [1, 0]], np.uint8), (4, 4))


@pytest.mark.parametrize(
    ("data", "subset", "copied", "ids"),
    [
        (png(SQUARE * 255), "s4", True, SQUARE),
        (png(SQUARE), "s4", True, SQUARE),
        (png(SQUARE.astype(bool)), "s4", True, SQUARE),
        (png(np.dstack([SQUARE * 255] * 3)), "s4", True, SQUARE),
        (png(SQUARE, [0, 0, 0, 255, 255, 255]), "s4", True, SQUARE),
        (png(SQUARE, [0, 0, 0, 128, 0, 0]), "s4", False, SQUARE),
        (png(SQUARE * 15, [0, 0, 0] * 15 + [128, 0, 0]), "s4", False, SQUARE),
        (png(SQUARE * 17), "avss", True, SQUARE * 17),
        (png(SQUARE * 17, list(np.repeat(np.arange(256), 3))), "avss", True, SQUARE * 17),
        (png(SQUARE * 17, [9, 9, 9] * 18), "avss", False, SQUARE * 17),
    ],
    ids=["0-255", "0-1", "one-bit", "rgb", "white", "red", "red-15", "classes", "grey-palette", "flat-palette"],
)
def test_masks_are_copied_where_that_keeps_the_labels(data: bytes, subset: str, copied: bool, ids: np.ndarray) -> None:
    """The bytes of the file, unless grey levels of a palette would be read as labels; L and indices must agree."""
    stored, got, size = grey_mask(data, subset_rule(subset), "x.png")
    assert size == (8, 8)
    assert (got == ids).all()
    with Image.open(io.BytesIO(stored)) as image:
        assert (to_class_ids(image, subset) == ids).all()
        assert (to_class_ids(image.convert("L"), subset) == ids).all()
    assert (stored == data) is copied


def test_sound_of_another_rate(official: Path, tmp_path: Path) -> None:
    """44.1 kHz stereo becomes 16 kHz mono flac: the mean of the channels, of the same length in seconds."""
    shutil.copytree(official / RULES["ms3"].folder, tmp_path, dirs_exist_ok=True)
    entry = read_entries(tmp_path, "ms3", ("test",))[0]
    tone = np.sin(2 * np.pi * 440 * np.arange(5 * 44100) / 44100)
    path = entry.path(tmp_path, RULES["ms3"], RULES["ms3"].wav)
    soundfile.write(path, np.stack([tone * 0.5, tone * 0.1], 1), 44100, subtype="FLOAT")
    (row,) = read_rows(tmp_path, "ms3", "test")
    assert row["audio"]["path"].endswith(".flac")
    waveform, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    assert (rate, len(waveform)) == (16000, 80000)
    wanted = 0.3 * np.sin(2 * np.pi * 440 * np.arange(80000) / 16000)
    assert np.abs(waveform - wanted)[1000:-1000].max() < 1e-3


@pytest.mark.parametrize("place", ["raw_videos/{name}.mp4", "ms3_data/raw_videos/test/{name}.mp4"])
def test_sound_of_the_raw_film(official: Path, tmp_path: Path, place: str) -> None:
    """Without a wav file, the film's sound is taken: as long as the frames, and the same sound."""
    shutil.copytree(official / RULES["ms3"].folder, tmp_path, dirs_exist_ok=True)
    entry = read_entries(tmp_path, "ms3", ("test",))[0]
    wav = entry.path(tmp_path, RULES["ms3"], RULES["ms3"].wav)
    waveform, _ = soundfile.read(wav, dtype="float32")
    wav.unlink()
    film = tmp_path / place.format(name=entry.name)
    film.parent.mkdir(parents=True)
    frames = [Image.new("RGB", (64, 64), (k, 0, 0)) for k in range(60)]
    write_video(film, frames, 10, np.concatenate([waveform, np.zeros(16000, np.float32)]))
    (row,) = read_rows(tmp_path, "ms3", "test")
    got, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
    assert (rate, len(got)) == (16000, 80000)
    assert np.corrcoef(got, waveform)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda root: list(read_rows(root, "s5", "train")), "unknown subset 's5'"),
        (lambda root: list(read_rows(root, "s4", "dev")), "unknown split 'dev'"),
        (lambda root: list(read_rows(root, "s4", "train", maskiges="yes")), "it has no Maskiges"),
        (lambda root: list(read_rows(root, "s4", "train", maskiges="maybe")), "maskiges must be one of"),
        (lambda root: list(read_rows(root, "s4", "train", processed=True)), "processed is for avss only"),
        (lambda root: list(read_rows(root / "nothing", "s4", "train")), "no such folder"),
        (lambda root: find_home(root / RULES["s4"].folder, "ms3"), "no subset ms3 here"),
        (lambda root: write_official(root, "s4", {"train": 1}), "is there already"),
        (lambda root: write_official(root / "x", "s4", {}), "at least one clip"),
        (lambda root: write_official(root / "x", "s4", {"dev": 1}), "unknown split"),
        (lambda root: to_class_ids(np.zeros((2, 2, 3)), "s4"), "got (2, 2, 3)"),
        (lambda root: RowOptions(maskiges="all"), "maskiges must be one of"),
    ],
)
def test_bad_arguments(official: Path, call: Any, message: str) -> None:
    """Every refusal says what was wrong."""
    with pytest.raises(ValueError) as caught:
        call(official)
    assert message in str(caught.value)


def test_synthetic_maskiges(tmp_path: Path) -> None:
    """Maskiges on request, where the official ones are, and read from there."""
    write_official(tmp_path, "s4", {"train": 1}, size=64, maskiges="superpixels")
    (row,) = read_rows(tmp_path, "s4", "train", maskiges="yes")
    assert {pixels(image).shape for image in row["maskiges"]} == {(64, 64, 3)}
    (row,) = read_rows(tmp_path, "s4", "train", maskiges="no")
    assert row["maskiges"] is None
