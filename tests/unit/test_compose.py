"""`combo-hf data compose`: clips made of photographs with masks, sounds and backgrounds."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures_training import SMALL, recipe
from PIL import Image, ImageDraw

from combo_hf.cli import main
from combo_hf.data.compose import ComposeRules, compose_clip, read_parts
from combo_hf.data.compose_dataset import ComposeSettings, compose_dataset
from combo_hf.data.compose_scenes import Layer, Path2D, Picture, Scene, read_picture
from combo_hf.data.compose_sounds import SAMPLING_RATE, Microphone, Source, audible, excerpt, read_recording
from combo_hf.data.row_format import class_names_of
from combo_hf.files import atomic
from combo_hf.files.folder_lock import only_run
from combo_hf.training import AvsbenchRecipe, run_recipe


COLOURS = {"cat": (220, 30, 30), "dog": (30, 200, 30), "horse": (30, 30, 220)}
NAMES = ["background", "cat", "dog"]  # horses have no sound
HERTZ = {"cat": 900, "dog": 300, "_rain": 4000}
ONLY = {"one": {"one": 1.0}, "two": {"two": 1.0}, "absent": {"absent": 1.0}, "other": {"other": 1.0}}
ONLY["silence"] = {"silence": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts: red cats, green dogs and blue horses (without a sound), tones, grey backgrounds."""
    root = tmp_path_factory.mktemp("parts")
    lines = ["id,class,split"]
    for name, colour in COLOURS.items():
        (root / "objects" / name).mkdir(parents=True)
        for number in range(3):
            picture, mask = Image.new("RGB", (90 + 20 * number, 80), (128, 128, 128)), None
            mask = Image.new("L", picture.size)
            box = (20, 15, 60 + 5 * number, 60)
            ImageDraw.Draw(picture).ellipse(box, fill=colour)
            ImageDraw.Draw(mask).ellipse(box, fill=255)
            picture.save(root / "objects" / name / f"{number}.jpg", quality=95)
            mask.save(root / "objects" / name / f"{number}.png")
            lines.append(f"{number},{name},{'val' if number == 2 else 'train'}")
    for name, hertz in HERTZ.items():
        (root / "sounds" / name).mkdir(parents=True)
        for number in range(2):
            seconds = 0.7 + number
            wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 22050)) / 22050)
            soundfile.write(root / "sounds" / name / f"s{number}.ogg", wave, 22050)
            lines.append(f"s{number},{name},{'val' if number else 'train'}")
    (root / "backgrounds").mkdir()
    for number, split in enumerate(("train", "val")):
        Image.new("RGB", (120, 90), (128, 128, 128)).save(root / "backgrounds" / f"b{number}.jpg")
        lines.append(f"b{number},,{split}")
    (root / "splits.csv").write_text("\n".join(lines) + "\n")
    return root


def parts_of(folder: Path, split: str = "train") -> object:
    return read_parts(folder / "objects", folder / "sounds", folder / "backgrounds", split, folder / "splits.csv")


def settings_of(folder: Path, **changes: object) -> ComposeSettings:
    names = ("objects", "sounds", "backgrounds", "splits.csv")
    values = {"kind": "avss", "clips": {"train": 3, "val": 1}, "size": 32, "num_frames": 2, **changes}
    return ComposeSettings(*(str(folder / name) for name in names), **values)


def test_splits_share_no_part_and_a_class_without_sound_is_no_class(folder: Path) -> None:
    train, val = parts_of(folder), parts_of(folder, "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert [part.picture.stem for part in train.objects["horse"]] == ["0", "1"]
    assert [part.picture.stem for part in val.objects["horse"]] == ["2"]
    assert set(train.sounds) == {"", "cat", "dog"}
    everything = [read_parts(folder / "objects", folder / "sounds", None, split) for split in ("train",)][0]
    assert everything.objects and not everything.backgrounds  # by the hash of the names


@pytest.mark.parametrize("stage", ["photograph", "side_by_side", "cut_outs"])
@pytest.mark.parametrize("case", list(ONLY))
def test_masks_are_the_visible_pixels_of_what_is_heard(folder: Path, stage: str, case: str) -> None:
    parts, rules = parts_of(folder), ComposeRules({stage: 1.0}, ONLY[case], grading=0.0)
    for index in range(4):
        clip = compose_clip(parts, "avss", 3, index, size=48, num_frames=2, rules=rules)
        for frame, mask, numbers, sounding in zip(clip.frames, clip.masks, clip.objects, clip.sounding, strict=True):
            seen = {name: numbers == number + 1 for number, name in enumerate(clip.visible)}
            expected = np.zeros_like(mask)
            for name in sounding:
                expected[seen[name]] = parts.classes.index(name) + 1
            assert np.array_equal(mask, expected)
            for name, region in seen.items():  # the picture shows there what the map says
                if region.sum() > 20:
                    assert np.asarray(frame)[region].mean(0).argmax() == int(np.argmax(COLOURS[name]))
        if clip.case in ("absent", "other", "silence"):
            assert not any(mask.any() for mask in clip.masks)
            assert not set(clip.heard) & set(clip.visible)
        else:
            assert set(clip.heard) <= set(clip.visible) & set(parts.classes)
            assert len(clip.heard) == (2 if clip.case == "two" else 1)


def test_what_sounds_changes_no_pixel(folder: Path) -> None:
    """A network without sound must not be able to guess."""
    parts = parts_of(folder)
    clips = [compose_clip(parts, "avss", 0, 7, size=32, rules=ComposeRules(cases=ONLY[case])) for case in ONLY]
    frames = [np.stack([np.asarray(frame) for frame in clip.frames]) for clip in clips]
    assert all(np.array_equal(frames[0], other) for other in frames[1:])
    made = {clip.case for clip in clips}
    assert len({clip.waveform.tobytes() for clip in clips}) == len(made) >= 4


@pytest.mark.parametrize("kind", ["s4", "ms3", "avss"])
def test_a_clip_follows_from_kind_seed_split_and_index(folder: Path, kind: str) -> None:
    parts = parts_of(folder)
    first, again = (compose_clip(parts, kind, 5, 2, size=32, num_frames=3) for _ in range(2))
    other = compose_clip(parts, kind, 6, 2, size=32, num_frames=3)
    assert np.array_equal(first.waveform, again.waveform) and not np.array_equal(first.waveform, other.waveform)
    assert all(np.array_equal(one, two) for one, two in zip(first.masks, again.masks, strict=True))
    assert first.waveform.shape == (3 * SAMPLING_RATE,) and np.abs(first.waveform).max() <= 1
    assert first.label_frames == ([True, False, False] if kind == "s4" else [True] * 3)


def test_pictures_move_and_stand_still_on_request(folder: Path) -> None:
    parts = parts_of(folder)
    for motion in (0.0, 1.0):
        rules = ComposeRules({"photograph": 1.0}, motion=motion)
        clip = compose_clip(parts, "avss", 1, 1, size=64, num_frames=5, rules=rules)
        first, last = (np.asarray(clip.frames[index], int) for index in (0, -1))
        assert (np.abs(first - last).max() > 20) == bool(motion)


def test_a_scene_shows_a_photograph_where_its_path_says(folder: Path) -> None:
    picture = read_picture(folder / "objects/cat/0.jpg", folder / "objects/cat/0.png")
    width, height = picture.image.size
    still = (width / height / 2, 0.5, float(np.log(1 / height)), 0.0)
    scene = Scene(width / height, [Layer(picture, Path2D(still, still, 1.0), (0, 0, width / height, 1), False, 1)])
    image, owner = scene.render(0.5, height, width)
    assert np.abs(np.asarray(image, int) - np.asarray(picture.image, int)).max() <= 1
    assert np.array_equal(owner > 0, np.asarray(picture.mask) > 0)
    half, _ = scene.render(0.5, height // 2, width // 2)  # half the size shows the same
    reduced = np.asarray(picture.image.resize(half.size, Image.Resampling.BOX), int)
    assert np.abs(np.asarray(half, int) - reduced).mean() < 4


def test_rows_are_those_of_avsbench(folder: Path, tmp_path: Path) -> None:
    from combo_hf.data.loading import AvsbenchClips, load_avsbench
    from combo_hf.data.transforms import build_transform

    for kind, values in (("avss", {0, 1, 2}), ("ms3", {0, 255})):
        out = compose_dataset(settings_of(folder, kind=kind), tmp_path / kind, progress=False)
        rows = load_avsbench(out, "train", subset=kind, cache_dir=tmp_path / "cache")
        found = {int(value) for row in rows for mask in row["masks"] for value in np.unique(np.asarray(mask))}
        assert len(rows) == 3 and found <= values
        assert class_names_of(rows.features) == (NAMES if kind == "avss" else None)
        for row in rows if kind == "avss" else ():
            assert [NAMES[index] for index in row["classes"]] == list(filter(None, row["category"].split(",")))
        assert f"| train | 3 | {3 * 2} |\n| val | 1 | 2 |\n" in (out / "README.md").read_text()
        clips = AvsbenchClips(rows, build_transform(kind, True, 32), num_labels=len(values), use_maskige=False)
        assert clips[0].frames.shape == (2, 3, 32, 32)
        assert soundfile.read(io.BytesIO(rows[0]["audio"]["bytes"]))[1] == SAMPLING_RATE
    assert (out / "classes.txt").read_text().split() == ["background", "cat", "dog"]
    notes = [json.loads(line) for line in (out / "clips.jsonl").read_text().splitlines()]
    assert [note["split"] for note in notes] == ["train"] * 3 + ["val"]


def test_training_takes_the_classes_from_composed_rows(folder: Path, tmp_path: Path) -> None:
    """Wherever the rows go, without the files beside them; into configuration, processor and card."""
    from combo_hf import ComboForAudioVisualSegmentation, ComboProcessor
    from combo_hf.publishing.card import build_card, find_origin

    out = compose_dataset(settings_of(folder, clips={"train": 2, "val": 1}), tmp_path / "rows", progress=False)
    (out / "classes.txt").unlink()
    data = AvsbenchRecipe(path=str(out), subset="own")
    overrides = {**SMALL, "use_maskige": False}
    run_recipe(recipe(overrides, data=data, max_steps=1, best_metric="miou"), tmp_path / "run", cpu=True)
    best = tmp_path / "run" / "best"
    config = ComboForAudioVisualSegmentation.from_pretrained(best).config
    assert list(config.id2label.values()) == NAMES
    assert config.label2id == {name: index for index, name in enumerate(NAMES)}
    assert ComboProcessor.from_pretrained(best).image_processor.num_labels == len(NAMES)
    assert "cat, dog" in build_card(config, "me/mine", find_origin(best), [])


@pytest.mark.skipif(sys.platform == "win32", reason="there only age tells")
def test_one_call_at_a_time_and_nothing_left_of_a_killed_one(folder: Path, tmp_path: Path) -> None:
    settings, out = settings_of(folder, clips={"train": 1}), tmp_path / "out"
    compose_dataset(settings, out, progress=False)
    before = sorted(path for path in out.rglob("*") if path.is_file())
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def hold() -> None:
        with only_run(out):
            ready.set()
            done.wait(60)

    other = context.Process(target=hold)
    other.start()
    assert ready.wait(60)
    try:
        with pytest.raises(FileExistsError, match="in use by another run"):
            compose_dataset(settings_of(folder, clips={"train": 1}, seed=9), out, progress=False)
    finally:
        done.set()
        other.join()
    (out / "data" / f".partial-{atomic._place()}-{other.pid}-12ab34cd.parquet").write_bytes(b"half")
    compose_dataset(settings, out, progress=False)
    assert sorted(path for path in out.rglob("*") if path.is_file()) == before


def test_a_second_call_keeps_whole_shards_and_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(folder)
    out = compose_dataset(settings, tmp_path / "one", progress=False)
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "data/train-00000-of-00001.parquet").unlink()
    val = (out / "data/val-00000-of-00001.parquet").stat().st_mtime_ns
    compose_dataset(settings, out, num_processes=2, progress=False)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert (out / "data/val-00000-of-00001.parquet").stat().st_mtime_ns == val
    compose_dataset(settings_of(folder, seed=9), out, progress=False)
    assert (out / "data/train-00000-of-00001.parquet").read_bytes() not in before.values()


def test_the_command_writes_rows_and_videos(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [f"--{name}={folder / name}" for name in ("objects", "sounds", "backgrounds")]
    options = ["--clips", "2", "--split", "train", "--frames", "1", "--size", "32", "--video-height", "48"]
    shares = ["--stage", "side_by_side=1", "--case", "one=1", "--splits-from", str(folder / "splits.csv")]
    assert main(["data", "compose", *paths, "--output", str(tmp_path / "out"), *options, *shares]) == 0
    assert "2 clip(s)" in capsys.readouterr().out
    assert len(list((tmp_path / "out/videos/train").glob("*.mp4"))) == 2


BAD_RULES = [
    ({"stages": {"stage": 1.0}}, "stages: unknown 'stage'"),
    ({"cases": {"one": -1.0}}, "cases: wanted shares"),
    ({"cases": {"one": 0.0}}, "cases: wanted shares"),
    ({"motion": 2.0}, "motion: wanted 0 to 1"),
    ({"microphone": -0.1}, "microphone: wanted 0 to 1"),
]


@pytest.mark.parametrize(("values", "message"), BAD_RULES)
def test_rules_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComposeRules(**values)


def remove_sounds(root: Path) -> None:
    shutil.rmtree(root / "sounds")
    (root / "sounds").mkdir()


CAT, BARK = "objects/cat/0", "sounds/cat/s0.ogg"
SPOIL = {
    "mask missing": lambda root: (root / f"{CAT}.png").unlink(),
    "mask empty": lambda root: Image.new("L", (90, 80)).save(root / f"{CAT}.png"),
    "mask of another size": lambda root: Image.new("L", (45, 40), 255).save(root / f"{CAT}.png"),
    "picture damaged": lambda root: (root / f"{CAT}.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing"),
    "sound damaged": lambda root: (root / BARK).write_bytes(b"OggS nothing"),
    "sound silent": lambda root: soundfile.write(root / BARK, np.zeros(22050), 22050),
    "csv without columns": lambda root: (root / "splits.csv").write_text("name,part\n1,train\n"),
    "no sounds": remove_sounds,
}
BAD_PARTS = [
    ("mask missing", "its mask 0.png is missing"),
    ("mask empty", "the mask is empty"),
    ("mask of another size", "45 x 40 pixels"),
    ("picture damaged", "is damaged"),
    ("sound damaged", "cannot be read"),
    ("sound silent", "wanted at least 0.1 s of sound"),
    ("csv without columns", "columns id and split"),
    ("no sounds", "holds no folders"),
]


@pytest.mark.parametrize(("what", "message"), BAD_PARTS)
def test_parts_that_cannot_be_used_are_named(folder: Path, tmp_path: Path, what: str, message: str) -> None:
    root = tmp_path / "parts"
    shutil.copytree(folder, root)
    for name in ("dog", "horse"):  # so that every clip meets the cat
        shutil.rmtree(root / "objects" / name)
    (root / "objects/cat/1.jpg").unlink()
    SPOIL[what](root)
    read_recording.cache_clear()
    rules = ComposeRules({"photograph": 1.0}, {"one": 1.0})
    with pytest.raises(ValueError, match=message):
        compose_dataset(settings_of(root, clips={"train": 1}, rules=rules), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_folders_of_others_and_folders_that_are_missing_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no composed data set"):
        compose_dataset(settings_of(folder), tmp_path, progress=False)
    with pytest.raises(FileNotFoundError, match="objects: no folder"):
        read_parts(tmp_path / "none", folder / "sounds")
    with pytest.raises(ValueError, match="unknown split"):
        read_parts(folder / "objects", folder / "sounds", split="dev")
    for values in ({"kind": "s5"}, {"size": 8}, {"num_frames": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="wanted"):
            compose_dataset(settings_of(folder, **values), tmp_path / "new", progress=False)


def test_sound_reaches_the_microphone() -> None:
    rng = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 440 * np.arange(SAMPLING_RATE) / SAMPLING_RATE).astype(np.float32)
    source = Source(tone, (False, True, True)).sound(rng)
    assert audible(source) == [False, True, True]
    dry = Microphone(0.0).record([source], len(source), rng)
    assert np.abs(dry[: SAMPLING_RATE // 2]).max() == 0
    assert abs(20 * np.log10(np.sqrt(np.mean(dry[SAMPLING_RATE:] ** 2))) + 20) < 0.5
    levels = []
    for _ in range(20):
        wet = Microphone(1.0).record([source], len(source), rng)
        assert wet.shape == source.shape and np.isfinite(wet).all() and np.abs(wet).max() <= 1
        levels.append(np.sqrt(np.mean(wet**2)))
    assert max(levels) / min(levels) > 3
    silence = Microphone(1.0).record([], 16000, rng)
    assert np.sqrt(np.mean(silence**2)) < 0.01
    with pytest.raises(ValueError, match="strength"):
        Microphone(1.5)


def test_an_excerpt_is_no_pause_and_a_short_recording_is_repeated() -> None:
    rng = np.random.default_rng(0)
    bark = np.concatenate([np.zeros(60000), np.sin(np.arange(8000) * 0.3)]).astype(np.float32)
    loud = [np.abs(excerpt(bark, 16000, rng)).max() > 0.5 for _ in range(20)]
    assert np.mean(loud) > 0.4  # of all places one in seven
    short = np.ones(5000, np.float32)
    assert np.allclose(excerpt(short, 16000, rng), 1.0)


def test_pictures_are_flipped_with_their_masks() -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    turned = Picture(image, Image.fromarray(np.array([[255, 0], [0, 0]], np.uint8))).flipped()
    assert np.asarray(turned.mask).tolist() == [[0, 255], [0, 0]]
    assert np.array_equal(np.asarray(turned.image), np.asarray(image)[:, ::-1])
