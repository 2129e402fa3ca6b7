"""The synthetic clips: deterministic, well formed, decided by the sound, and readable by `datasets`."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from combo_hf.data.rows import MaskigeMaker
from combo_hf.data.synthetic import dataset as synthetic
from combo_hf.data.synthetic.dataset import (
    CATEGORIES,
    ID2LABEL,
    KINDS,
    SPLITS,
    plan_clip,
    synthesize_clip,
    to_row,
    write_dataset,
)
from combo_hf.data.synthetic.scenes import DRAWINGS, render_sprite
from combo_hf.data.synthetic.sounds import SAMPLING_RATE, SOUNDS, mix_sources, second_gate, synthesize_sound


AVSS_NAMES = {"bell", "bird", "car", "clock", "drum", "emergency-car", "flute", "guitar"}  # part of the 71 of AVSS


def decode(image: dict[str, bytes]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


def clips_equal(one: synthetic.SyntheticClip, other: synthetic.SyntheticClip) -> bool:
    frames = all(np.array_equal(a, b) for a, b in zip(one.frames, other.frames, strict=True))
    masks = all(np.array_equal(a, b) for a, b in zip(one.masks, other.masks, strict=True))
    return frames and masks and np.array_equal(one.waveform, other.waveform)


def test_categories_are_names_of_avss_and_have_look_and_sound():
    assert set(CATEGORIES) == AVSS_NAMES == set(SOUNDS) == set(DRAWINGS) - {"clutter"}
    assert ID2LABEL[0] == "background" and [ID2LABEL[k + 1] for k in range(8)] == list(CATEGORIES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_clip_is_well_formed(kind: str, split: str):
    for index in range(4):
        clip = synthesize_clip(kind, 7, index, split=split, size=48)
        seconds = len(clip.frames)
        assert seconds in KINDS[kind].num_frames
        assert all(frame.mode == "RGB" and frame.size == (48, 48) for frame in clip.frames)
        assert [mask.shape for mask in clip.masks] == [(48, 48)] * seconds and clip.masks[0].dtype == np.uint8
        assert clip.waveform.shape == (seconds * SAMPLING_RATE,) and clip.waveform.dtype == np.float32
        assert 0.01 < np.abs(clip.waveform).max() <= 0.95
        first_only = kind == "s4" and split == "train"
        assert clip.label_frames == [k == 0 or not first_only for k in range(seconds)]
        for mask, sounding in zip(clip.masks, clip.sounding, strict=True):
            assert {ID2LABEL[k] for k in np.unique(mask).tolist()} - {"background"} == set(sounding)


@pytest.mark.parametrize("kind", KINDS)
def test_plans_follow_the_rules_of_their_kind(kind: str):
    plans = [plan_clip(kind, 0, index) for index in range(300)]
    counts = [len(names) for plan in plans for names in plan.sounding]
    assert max(counts) == KINDS[kind].sources[1]
    assert (min(counts) == 0) == (kind != "s4")
    for plan in plans:
        heard = {name for names in plan.sounding for name in names}
        assert heard and plan.silent and not heard & set(plan.silent)
    assert {plan.num_frames for plan in plans} == set(KINDS[kind].num_frames)
    heard = [name for plan in plans for names in plan.sounding for name in names]
    silent = [name for plan in plans for name in plan.silent]
    for name in CATEGORIES:  # a category says nothing about sounding or not
        assert 0.06 < heard.count(name) / len(heard) < 0.2 and 0.06 < silent.count(name) / len(silent) < 0.2


def test_same_numbers_same_clip_others_another():
    clip = synthesize_clip("ms3", 3, 5, split="val", size=40)
    assert clips_equal(clip, synthesize_clip("ms3", 3, 5, split="val", size=40))
    others = [("s4", 3, 5, "val"), ("ms3", 4, 5, "val"), ("ms3", 3, 6, "val"), ("ms3", 3, 5, "train")]
    for kind, seed, index, split in others:
        assert not clips_equal(clip, synthesize_clip(kind, seed, index, split=split, size=40))


def test_size_changes_neither_sound_nor_layout():
    small, large = (synthesize_clip("s4", 2, 1, split="test", size=size) for size in (96, 192))
    assert np.array_equal(small.waveform, large.waveform) and small.sounding == large.sounding
    for coarse, fine in zip(small.masks, large.masks, strict=True):
        a, b = coarse > 0, fine[::2, ::2] > 0
        assert (a & b).sum() / (a | b).sum() > 0.85


def test_objects_look_the_same_whether_they_sound_or_not(monkeypatch: pytest.MonkeyPatch):
    clip = synthesize_clip("ms3", 1, 2, size=64)
    plan = plan_clip("ms3", 1, 2)
    hushed = {name: tuple(not on for on in flags) for name, flags in plan.schedules.items()}
    swapped = type(plan)(plan.video_id, plan.num_frames, hushed)
    monkeypatch.setattr("combo_hf.data.synthetic.clip.plan_clip", lambda *_: swapped)
    other = synthesize_clip("ms3", 1, 2, size=64)
    assert all(np.array_equal(a, b) for a, b in zip(clip.frames, other.frames, strict=True))
    assert not any(np.any((a > 0) & (b > 0)) for a, b in zip(clip.masks, other.masks, strict=True))


def test_masks_hold_only_the_visible_part():
    clip = synthesize_clip("s4", 0, 0, split="val", size=64)
    source = CATEGORIES.index(clip.sounding[0][0]) + 1
    scene = clip.scene
    number = next(k for k, item in enumerate(scene.items) if item.category == clip.sounding[0][0])
    cover = scene.items[number]
    lid = type(cover)("clutter", cover.sprite, cover.motion, cover.flip)
    scene.items.append(lid)
    _, owner = scene.render(15 / 16)
    assert np.any(clip.masks[0] == source) and not np.any(owner == number + 1)


def test_video_agrees_with_the_frames():
    clip = synthesize_clip("s4", 0, 3, size=48)
    video = list(clip.render_video(16))
    assert len(video) == 16 * 5
    assert all(np.array_equal(video[16 * k + 15], frame) for k, frame in enumerate(clip.frames))
    assert not np.array_equal(video[0], video[40])
    with pytest.raises(ValueError, match="fps must be positive"):
        next(clip.render_video(0))


@pytest.mark.parametrize("category", sorted(DRAWINGS))
def test_sprite_fills_its_square_and_varies(category: str):
    sprites = [np.asarray(render_sprite(category, np.random.default_rng(seed), 64)) for seed in (0, 1)]
    for sprite in sprites:
        assert sprite.shape == (64, 64, 4) and 0.08 < (sprite[..., 3] > 127).mean() < 0.95
        assert 0 < ((sprite[..., 3] > 0) & (sprite[..., 3] < 255)).mean() < 0.3  # soft edges
    assert not np.array_equal(*sprites)


def band_energies(waveform: np.ndarray) -> np.ndarray:
    """Mean log energy of 40 log-spaced bands, and how much each varies, for every 0.96 s. Returns (E, 80)."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160] * np.hanning(400)
    spectra = np.abs(np.fft.rfft(frames, 512))
    edges = np.round(np.geomspace(3, 256, 41)).astype(int)
    bands = np.stack([spectra[:, a : max(b, a + 1)].mean(1) for a, b in zip(edges, edges[1:], strict=False)], 1)
    logs = np.log(bands[: len(bands) // 96 * 96] + 0.01).reshape(-1, 96, 40)
    return np.concatenate([logs.mean(1), logs.std(1)], 1)


def test_timbres_are_told_apart_on_unseen_seeds():
    def examples(seeds: range) -> dict[str, np.ndarray]:
        sounds = {name: [synthesize_sound(name, np.random.default_rng(s), 3) for s in seeds] for name in CATEGORIES}
        return {name: np.concatenate([band_energies(wave) for wave in waves]) for name, waves in sounds.items()}

    known, unseen = examples(range(8)), examples(range(100, 105))
    spread = np.concatenate(list(known.values())).std(0)
    centroids = np.stack([known[name].mean(0) for name in CATEGORIES])
    hits = []
    for k, name in enumerate(CATEGORIES):
        distances = (((unseen[name][:, None] - centroids) / spread) ** 2).sum(-1)
        hits += (distances.argmin(1) == k).tolist()
    assert np.mean(hits) > 0.95


def test_sounds_start_and_stop_at_second_boundaries():
    gate = second_gate([False, True, True, False, True])
    assert gate.shape == (5 * SAMPLING_RATE,)
    assert not gate[:SAMPLING_RATE].any() and not gate[3 * SAMPLING_RATE : 4 * SAMPLING_RATE].any()
    assert gate[2 * SAMPLING_RATE] == 1 and gate[int(1.5 * SAMPLING_RATE)] == 1
    assert gate[SAMPLING_RATE] == 0 and 0 < gate[SAMPLING_RATE + 300] < 1
    mix = mix_sources([("car", [True, False], np.random.default_rng(0))], 2, np.random.default_rng(1))
    loud, quiet = (np.sqrt(np.mean(part**2)) for part in np.split(mix, 2))
    assert loud > 20 * quiet > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "s5"}, "unknown kind 's5'"),
        ({"split": "validation"}, "unknown split 'validation'"),
        ({"seed": -1}, "must not be negative"),
        ({"index": -1}, "must not be negative"),
        ({"size": 8}, "at least 32"),
        ({"num_frames": 0}, "at least 1"),
    ],
)
def test_clip_refuses_bad_arguments(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        synthesize_clip(**{"kind": "s4", "seed": 0, "index": 0, **arguments})


@pytest.mark.parametrize(
    ("category", "seconds", "message"), [("harp", 1, "unknown category 'harp'"), ("bell", 0, "must be positive")]
)
def test_sound_refuses_bad_arguments(category: str, seconds: float, message: str):
    with pytest.raises(ValueError, match=message):
        synthesize_sound(category, np.random.default_rng(0), seconds)


@pytest.mark.parametrize(
    ("kind", "labels", "semantic"),
    [("s4", "auto", False), ("ms3", "auto", False), ("avss", "auto", True), ("ms3", "semantic", True),
     ("avss", "binary", False)],
)  # fmt: skip
def test_row_holds_bytes_and_the_wanted_labels(kind: str, labels: str, semantic: bool):
    soundfile = pytest.importorskip("soundfile")
    clip = synthesize_clip(kind, 0, 1, split="val", size=40)
    row = to_row(clip, labels=labels)
    assert row["maskiges"] is None and row["subset"] == kind and row["split"] == "val"
    assert set(row["category"].split(",")) == {name for names in clip.sounding for name in names}
    for image, frame in zip(row["frames"], clip.frames, strict=True):
        assert image["path"] is None and np.array_equal(decode(image), frame)
    for image, mask in zip(row["masks"], clip.masks, strict=True):
        assert np.array_equal(decode(image), mask if semantic else mask > 0)
    wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
    assert rate == SAMPLING_RATE and np.abs(wave - clip.waveform).max() < 1e-4


def test_row_hides_the_masks_without_labels():
    row = to_row(synthesize_clip("s4", 0, 0, size=40))
    assert row["label_frames"] == [True, False, False, False, False]
    assert decode(row["masks"][0]).max() == 1 and all((decode(image) == 255).all() for image in row["masks"][1:])


def test_row_takes_maskiges():
    clip = synthesize_clip("s4", 0, 0, size=40)
    row = to_row(clip, lambda frames: [np.full((40, 40, 3), 9 + k, np.uint8) for k, _ in enumerate(frames)])
    assert [int(decode(image).max()) for image in row["maskiges"]] == [9, 10, 11, 12, 13]
    with pytest.raises(ValueError, match="masks for 0 of 5 frames"):
        to_row(clip, MaskigeMaker(lambda frames: []))
    with pytest.raises(ValueError, match="unknown labels"):
        to_row(clip, labels="rgb")


def write_rows(folder: Path, **changes) -> Path:
    arguments = {"num_clips": {"train": 3, "val": 1}, "seed": 1, "formats": ("rows",), "size": 40, "progress": False}
    return write_dataset("ms3", folder / "set", **(arguments | changes))


def test_data_set_loads_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(synthetic, "SHARD_CLIPS", 2)
    folder = write_rows(tmp_path)
    shards = {path: path.read_bytes() for path in sorted(folder.glob("data/*.parquet"))}
    assert [path.name for path in shards] == [
        "train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "val-00000-of-00001.parquet",
    ]  # fmt: skip
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == {"train": 3, "val": 1}
    clip = synthesize_clip("ms3", 1, 2, size=40)
    row = loaded["train"][2]
    assert row["video_id"] == clip.video_id and np.array_equal(row["frames"][4], clip.frames[4])
    assert np.array_equal(row["masks"][4], clip.masks[4] > 0) and isinstance(row["audio"]["bytes"], bytes)
    records = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
    assert [record["split"] for record in records] == ["train"] * 3 + ["val"]
    assert records[2]["sounding"] == clip.sounding and records[2]["silent"] == clip.silent

    first, second, _ = shards
    first.write_bytes(b"kept")
    second.unlink()
    write_rows(tmp_path)
    assert first.read_bytes() == b"kept" and second.read_bytes() == shards[second]
    write_rows(tmp_path, seed=2)
    assert first.read_bytes() not in (b"kept", shards[first])
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


def test_data_set_writes_videos_with_sound(tmp_path: Path):
    from combo_hf.media_combo import probe_media

    folder = write_rows(tmp_path, num_clips={"test": 1}, formats=("mp4",), size=64, num_frames=2, fps=10)
    record = json.loads((folder / "clips.jsonl").read_text())
    assert record["video"] == "videos/test/synthetic_ms3_test_1_000000.mp4" and not (folder / "data").exists()
    info = probe_media(folder / record["video"])
    assert (info.width, info.height, info.has_audio) == (64, 64, True) and info.duration == pytest.approx(2, abs=0.2)


def test_data_set_leaves_a_folder_of_others_alone(tmp_path: Path):
    mine = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        write_rows(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ("avi",)}, "formats must be chosen"),
        ({"formats": ()}, "formats must be chosen"),
        ({"num_clips": {}}, "at least one split"),
        ({"num_clips": {"train": 0}}, "one clip for each"),
        ({"num_clips": {"dev": 1}}, "unknown split 'dev'"),
        ({"num_processes": 0}, "num_processes >= 1"),
        ({"labels": "rgb"}, "unknown labels 'rgb'"),
    ],
)
def test_data_set_refuses_bad_arguments_before_it_writes(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write_rows(tmp_path, **changes)
    assert not any(tmp_path.iterdir())


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    """Videos, too; and they are encoded on one thread, since several give other bytes once in a while."""
    from combo_hf.results.video import X264_OPTIONS

    options = {"formats": ("rows", "mp4"), "num_clips": {"test": 1}, "num_frames": 2, "fps": 5}
    first, second = (write_rows(tmp_path / name, **options) for name in "ab")
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (first, second)]
    assert files[0] == files[1] and any(path.suffix == ".mp4" for path in files[0])
    assert X264_OPTIONS["threads"] == "1" and X264_OPTIONS["x264-params"] == "weightp=0:mbtree=0"
