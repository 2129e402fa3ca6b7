import io
import itertools
import json
import os
import shutil

import numpy as np
import pytest
from fixtures_proposals import picture
from PIL import Image

from combo_hf.maskige_combo import paint_maskige
from combo_hf.proposals.pregenerate import RECORD, pregenerate
from combo_hf.proposals.sources import find_groups, natural
from combo_hf.proposals_combo import SuperpixelProposals


class Bright:
    """One mask: what is brighter than half; notes the sizes of what it sees, and may break down."""

    def __init__(self, level: float = 0.5, breaks_at: int | None = None) -> None:
        self.level, self.breaks_at, self.sizes = level, breaks_at, []

    def __call__(self, frames):
        if self.breaks_at is not None and len(self.sizes) >= self.breaks_at:
            raise KeyboardInterrupt
        self.sizes += [frame.size for frame in frames]
        return [np.asarray(frame.convert("L"))[None] > 255 * self.level for frame in frames]

    def to_dict(self):
        return {"name": "bright", "level": self.level}


def read(path):
    with Image.open(path) as image:
        image.load()
        return image


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "bilder äö 音"
    for name in ("a_2.png", "a_10.png", "below/c.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed=len(name)).save(folder / name)
    return folder


def test_a_folder_of_pictures(pictures, tmp_path):
    report = pregenerate(pictures, SuperpixelProposals(), tmp_path / "out")
    assert (report.written, report.kept, report.failed) == (3, 0, [])
    names = ["a_10.png_mask_color.png", "a_2.png_mask_color.png", "below/c.jpg_mask_color.png"]
    assert files_below(tmp_path / "out") == sorted([*names, RECORD])
    frame = read(pictures / "a_2.png")
    found = read(tmp_path / "out" / "a_2.png_mask_color.png")
    assert found.mode == "P" and found.size == (224, 224)
    np.testing.assert_array_equal(found.convert("RGB"), paint_maskige(SuperpixelProposals()([frame])[0]))


def test_another_size(pictures, tmp_path):
    pregenerate(pictures, Bright(), tmp_path / "out", size=(32, 48))
    assert read(tmp_path / "out" / "a_2.png_mask_color.png").size == (48, 32)


def test_one_picture(pictures, tmp_path):
    pregenerate(pictures / "a_2.png", Bright(), tmp_path / "out")
    assert files_below(tmp_path / "out") == ["a_2.png_mask_color.png", RECORD]


def test_a_film(film, tmp_path):
    seen = []
    report = pregenerate(film, Bright(), tmp_path / "out", fps=2, progress=lambda *counts: seen.append(counts))
    assert report.written == 6 and seen[-1] == (6, 6) and [done for done, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert "film/film_6_mask_color.png" in files_below(tmp_path / "out")


def test_an_interrupted_run_is_taken_up(pictures, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pregenerate(pictures, Bright(breaks_at=2), tmp_path / "out")
    assert len(files_below(tmp_path / "out")) == 3  # two Maskiges and the record, nothing partial
    report = pregenerate(pictures, Bright(), tmp_path / "out")
    assert (report.written, report.kept) == (1, 2)
    again = Bright()
    assert pregenerate(pictures, again, tmp_path / "out").kept == 3 and not again.sizes
    assert pregenerate(pictures, Bright(), tmp_path / "out", resume=False).written == 3


def test_what_a_killed_process_left_is_removed(pictures, tmp_path):
    old, new = (tmp_path / "out" / "below" / f".partial-{name}" for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    pregenerate(pictures, Bright(), tmp_path / "out")
    assert not old.exists() and new.exists()  # the new one may be of another shard at work


def test_settings_are_not_mixed(pictures, tmp_path):
    pregenerate(pictures, Bright(), tmp_path / "out")
    for generator, options in ((Bright(0.7), {}), (Bright(), {"stable": True}), (Bright(), {"size": (8, 8)})):
        with pytest.raises(ValueError, match="begun with another generator"):
            pregenerate(pictures, generator, tmp_path / "out", **options)
    assert pregenerate(pictures, Bright(0.7), tmp_path / "out", resume=False).written == 3


@pytest.mark.parametrize("stable", [False, True])
def test_shards_do_everything_once(pictures, tmp_path, stable):
    whole = tmp_path / "whole"
    pregenerate(pictures, Bright(), whole, stable=stable)
    written = 0
    for index in range(4):
        part = pregenerate(pictures, Bright(), tmp_path / "out", stable=stable, num_shards=4, shard_index=index)
        written += part.written
        assert not part.kept
    assert written == 3 and files_below(tmp_path / "out") == files_below(whole)


@pytest.mark.slow
def test_several_processes(pictures, tmp_path):
    report = pregenerate(pictures, "superpixels", tmp_path / "out", num_processes=2)
    assert report.written == 3
    pregenerate(pictures, "superpixels", tmp_path / "alone")
    for name in files_below(tmp_path / "alone"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_damaged_pictures_do_not_keep_others_from_being_made(pictures, tmp_path):
    (pictures / "b.png").write_bytes(b"")
    (pictures / "c.png").write_bytes((pictures / "a_2.png").read_bytes()[:200])
    report = pregenerate(pictures, Bright(), tmp_path / "out")
    assert report.written == 3 and [name for name, _ in report.failed] == [
        "b.png_mask_color.png",
        "c.png_mask_color.png",
    ]
    assert "empty" in report.failed[0][1] and "damaged" in report.failed[1][1]


def test_stable_colours_of_a_clip(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for shift, number in enumerate((1, 2, 10)):  # in this order, not that of the alphabet
        frame = np.zeros((40, 40, 3), np.uint8)
        frame[10:30, 5 + 3 * shift : 25 + 3 * shift] = 255  # the last one overlaps the second, not so much the first
        Image.fromarray(frame).save(folder / f"clip_{number}.png")

    class Parts(Bright):
        def __call__(self, frames):
            light = super().__call__(frames)[0][0]
            late = len(self.sizes) > 1
            speck = np.zeros_like(light)
            speck[36:, :4] = True
            return [np.stack([speck, light])[0 if late else 1 :]]

    pregenerate(folder, Parts(), tmp_path / "out", size=(40, 40), stable=True)
    index = {number: np.asarray(read(tmp_path / "out" / f"clip_{number}.png_mask_color.png")) for number in (1, 2, 10)}
    assert [int(index[number][20, 20]) for number in (1, 2, 10)] == [1, 1, 1]
    assert index[2][39, 1] == 2 and index[1][39, 1] == 0
    (tmp_path / "out" / "clip_2.png_mask_color.png").unlink()  # a clip with stable colours is made as a whole
    assert pregenerate(folder, Parts(), tmp_path / "out", size=(40, 40), stable=True).written == 3


def test_a_film_with_stable_colours_is_taken_up_as_a_whole(film, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pregenerate(film, Bright(breaks_at=2), tmp_path / "out", stable=True)
    assert pregenerate(film, Bright(), tmp_path / "out", stable=True).written == 3
    assert pregenerate(film, Bright(), tmp_path / "out", stable=True).kept == 3


def test_the_official_layout(avs_sample, tmp_path):
    from combo_hf.data.avsbench import read_rows

    tree = tmp_path / "tree"
    for name in ("AVSBench_object", "AVSBench_semantic"):
        shutil.copytree(
            avs_sample / name,
            tree / name,
            copy_function=shutil.copyfile,
            ignore=shutil.ignore_patterns("pre_SAM_mask"),
        )
        for path in (tree / name, *(tree / name).rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
    report = pregenerate(tree, Bright(), tree)
    frames = [
        path for path in files_below(tree) if "visual_frames/" in path or "/frames/" in path and path[-3:] == "jpg"
    ]
    assert not report.failed and report.written == len(frames) == 120
    s4 = "AVSBench_object/Single-source/s4_data"
    wanted = {path.replace("visual_frames", "pre_SAM_mask")[:-4] for path in files_below(tree) if "visual_" in path}
    made = {path.removesuffix("_mask_color.png") for path in files_below(tree) if path.endswith("_mask_color.png")}
    assert wanted < made and any(path.startswith(f"{s4}/pre_SAM_mask/train") for path in made)
    for subset in ("s4", "ms3", "avss"):
        for row in itertools.islice(read_rows(tree, subset, "train"), 2):
            for frame, maskige in zip(row["frames"], row["maskiges"], strict=True):
                sizes = [Image.open(io.BytesIO(image["bytes"])).size for image in (frame, maskige)]
                assert sizes[0] == sizes[1]


@pytest.fixture
def built(tmp_path):
    """A data set of two files, three rows, the last one damaged."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from combo_hf.data.row_format import row_features

    def png(seed):
        buffer = io.BytesIO()
        picture(64, 48, seed).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    def row(name):
        frames = [png(seed) for seed in range(2)]
        return {
            "video_id": name, "subset": "s4", "split": "train", "category": "dog", "frames": frames, "masks": [],
            "label_frames": [True, False], "maskiges": None, "audio": {"bytes": b"x", "path": "a.wav"},
        }  # fmt: skip

    rows = [row("one"), row("two"), row("three")]
    rows[2]["frames"][1]["bytes"] = b"damaged"
    folder = tmp_path / "built"
    (folder / "data" / "s4").mkdir(parents=True)
    schema = row_features().arrow_schema
    for number, part in enumerate((rows[:2], rows[2:])):
        path = folder / "data" / "s4" / f"train-{number:05d}-of-00002.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(part, schema=schema), path, row_group_size=1)
    (folder / "README.md").write_text("card")
    (folder / "build-s4.json").write_text("{}")
    return folder


def test_a_data_set_gets_its_column(built, tmp_path):
    import datasets

    seen = []
    report = pregenerate(built, Bright(), tmp_path / "out", progress=lambda *counts: seen.append(counts))
    assert (report.written, [name for name, _ in report.failed]) == (2, ["three"])
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert files_below(tmp_path / "out") == sorted([*files_below(built), RECORD])
    rows = datasets.Dataset.from_parquet(
        sorted(str(path) for path in (tmp_path / "out").rglob("*.parquet")), cache_dir=str(tmp_path / "cache")
    )
    assert list(rows["video_id"]) == ["one", "two", "three"]
    assert list(rows.select_columns("maskiges"))[2] == {"maskiges": None}
    first = rows[0]
    wanted = paint_maskige(Bright()([first["frames"][1]])[0], (48, 64))
    np.testing.assert_array_equal(first["maskiges"][1].convert("RGB"), wanted)
    assert first["category"] == "dog" and first["label_frames"] == [True, False]
    again = pregenerate(built, Bright(), tmp_path / "out")
    assert (again.written, again.kept) == (0, 3)


def test_files_of_a_data_set_are_shards(built, tmp_path):
    report = pregenerate(built, Bright(), tmp_path / "out", num_shards=2, shard_index=1)
    assert report.failed and not report.written
    assert [name for name in files_below(tmp_path / "out") if "parquet" in name] == [
        "data/s4/train-00001-of-00002.parquet"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: {"output": folder}, "in the data set itself"),
        (lambda folder: {"output": folder / "below"}, "in the data set itself"),
        (lambda folder: {"source": folder / "nothing"}, "no such file or folder"),
        (lambda folder: {"num_shards": 2, "shard_index": 2}, "shard_index from 0 to"),
        (lambda folder: {"num_shards": 0}, "at least 1"),
        (lambda folder: {"size": (0, 4)}, "at least 1 pixel"),
        (lambda folder: {"size": (64, 64)}, "the size of its frames"),
        (lambda folder: {"output": (folder / "README.md").rename(folder.parent / "card")}, "is a file"),
        (lambda folder: (folder / "data/s4/train-00000-of-00002.parquet").write_bytes(b"") and {} or {}, "damaged"),
    ],
)
def test_bad_requests_are_refused(built, tmp_path, change, message):
    options = {"source": built, "output": tmp_path / "out", **change(built)}
    with pytest.raises(ValueError, match=message):
        pregenerate(options.pop("source"), Bright(), options.pop("output"), **options)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ValueError, match="no pictures, videos or AVSBench"):
        find_groups(tmp_path)


def test_a_generator_without_description(pictures, tmp_path):
    def dark(frames):
        return [np.zeros((0, frame.height, frame.width), bool) for frame in frames]

    assert pregenerate(pictures, dark, tmp_path / "out").written == 3
    assert json.loads((tmp_path / "out" / RECORD).read_text())["generator"] is None
    with pytest.raises(TypeError, match="no to_dict"):
        pregenerate(pictures, dark, tmp_path / "out", num_processes=2)


def test_films_of_one_name_do_not_meet(film, tmp_path):
    source = tmp_path / "films"
    source.mkdir()
    for name in ("one.mp4", "one.mkv", "two.mp4"):
        (source / name).write_bytes(film.read_bytes())
    assert [group.name for group in find_groups(source)] == ["one-mkv", "one-mp4", "two"]
    (source / "a").mkdir()
    for name in ("a/b.mp4", "a/b.mkv", "a-b.mp4"):
        (source / name).write_bytes(film.read_bytes())
    with pytest.raises(ValueError, match="same names; rename"):
        find_groups(source)


def test_natural_order():
    assert sorted(["a10", "a9", "b1", "a", "10", "9"], key=natural) == ["9", "10", "a", "a9", "a10", "b1"]
