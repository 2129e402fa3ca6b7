"""Rows from built folders, saved folders and lists; the same streamed or not; clips that depend on (seed, epoch, row)
alone, whatever the workers do."""

import dataclasses
import io
import itertools
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from combo_hf.data.avsbench import build_dataset
from combo_hf.data.clips import AvsbenchClips, ComboTransform
from combo_hf.data.collate import ClipExample, ComboCollator, example_generator, plain_example
from combo_hf.data.loading import load_avsbench
from combo_hf.data.row_format import check_columns
from combo_hf.data.rows import MaskigeMaker, decode_row
from combo_hf.data.synthetic.dataset import synthesize_clip, to_row
from combo_hf.data.synthetic.official_folders import write_official
from combo_hf.data.transforms import EvalTransform, TrainTransform, build_transform


datasets = pytest.importorskip("datasets")
SIZE = 32
FIELDS = [field.name for field in dataclasses.fields(ClipExample)]
CLIPS = {"s4": {"train": 4, "val": 2}, "avss": {"train": 4, "test": 1}}


def same(one: ClipExample, other: ClipExample) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in FIELDS]
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """S4 (with Maskiges) and AVSS (without) in one folder, built from official layouts."""
    root = tmp_path_factory.mktemp("official")
    for subset, clips in CLIPS.items():
        write_official(root, subset, clips, size=48, maskiges="superpixels" if subset == "s4" else None)
        build_dataset(root, subset, root / "built", splits=tuple(clips))
    return root / "built"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def rows(built: Path, cache: Path):
    return load_avsbench(built, "train", subset="s4", cache_dir=cache)


@pytest.fixture(scope="module")
def augmented() -> TrainTransform:
    return build_transform("s4", True, SIZE)


def raw(dataset) -> list[dict]:
    """Rows with stored bytes."""
    return dataset.with_format("arrow")[:].to_pylist()


def test_a_built_folder_gives_the_bytes_that_were_built(built, cache, rows):
    import pyarrow.parquet

    stored = pyarrow.parquet.read_table(next((built / "data" / "s4").glob("train-*.parquet"))).to_pylist()
    assert len(rows) == 4 and raw(rows) == stored
    assert rows.features["audio"].decode is False and rows.features["audio"].sampling_rate == 16000
    assert len(load_avsbench(str(built), "test", subset="avss", cache_dir=cache)) == 1


@pytest.mark.parametrize(("subset", "split"), [("s4", "train"), ("s4", "val"), ("avss", "train")])
def test_streamed_rows_equal_stored_rows(built, cache, subset: str, split: str):
    stored = load_avsbench(built, split, subset=subset, cache_dir=cache)
    streamed = load_avsbench(built, split, subset=subset, streaming=True, cache_dir=cache)
    assert isinstance(streamed, datasets.IterableDataset) and streamed.features == stored.features
    count = 0
    for one, other in zip(stored, streamed, strict=True):
        assert one.keys() == other.keys()
        for name in ("video_id", "subset", "split", "category", "label_frames", "audio"):
            assert one[name] == other[name], name
        for name in ("frames", "masks", "maskiges"):
            ours, theirs = one[name] or [], other[name] or []
            assert len(ours) == len(theirs)
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)), name
        count += 1
    assert count == CLIPS[subset][split]


def test_transformed_rows_are_the_same_streamed_mapped_or_lazy(built, cache, rows, augmented):
    transform = ComboTransform(augmented, seed=5, epoch=2)
    lazy = rows.with_transform(transform)
    streamed = load_avsbench(built, "train", subset="s4", streaming=True, cache_dir=cache)
    mapped = list(streamed.map(transform, batched=True, batch_size=3, remove_columns=streamed.column_names))
    assert len(mapped) == len(lazy) == 4
    for index, row in enumerate(mapped):
        assert same(ClipExample(**lazy[index]), ClipExample(**row))
        digest_free = AvsbenchClips(rows, augmented, seed=5)[index]
        assert not torch.equal(digest_free.frames, row["frames"])  # which draws by row number
    shuffled = rows.select([2, 0, 3, 1]).with_transform(transform)
    assert same(ClipExample(**shuffled[0]), ClipExample(**lazy[2]))  # a clip keeps its draw wherever it stands
    batch = ComboCollator()([lazy[0], lazy[1]])
    assert batch["num_frames"].tolist() == [5, 5] and batch["video_ids"] == rows["video_id"][:2]
    other = rows.with_transform(ComboTransform(augmented, seed=5, epoch=3))
    assert not torch.equal(other[0]["frames"], lazy[0]["frames"])


@pytest.mark.parametrize("several", [False, True])
def test_saved_folders(tmp_path, rows, several: bool):
    dataset = datasets.DatasetDict({"train": rows}) if several else rows
    dataset.save_to_disk(tmp_path / "säved")
    loaded = load_avsbench(tmp_path / "säved", "train", subset="s4")
    assert raw(loaded) == raw(rows)
    streamed = load_avsbench(tmp_path / "säved", "train", streaming=True)
    assert [row["video_id"] for row in streamed] == rows["video_id"][:]
    with pytest.raises(ValueError, match=r"split: wanted one of \['train'\], got 'val'"):
        load_avsbench(tmp_path / "säved", "val")
    with pytest.raises(ValueError, match=r"subset: wanted one of \['s4'\], got 'ms3'"):
        load_avsbench(tmp_path / "säved", "train", subset="ms3")


def test_saved_folder_of_several_splits_is_picked_apart(tmp_path, built, cache, rows):
    val = load_avsbench(built, "val", subset="s4", cache_dir=cache)
    datasets.concatenate_datasets([val, rows]).save_to_disk(tmp_path / "all")
    assert raw(load_avsbench(tmp_path / "all", "train")) == raw(rows)
    assert raw(load_avsbench(tmp_path / "all", "val", subset="s4")) == raw(val)


def test_sound_column_of_plain_bytes_is_taken_as_sound(tmp_path, built, cache):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(next((built / "data" / "s4").glob("val-*.parquet")))
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(table.replace_schema_metadata(None), tmp_path / "data" / "val-00000.parquet")
    with pytest.raises(ValueError, match=r"split: wanted one of \['validation'\], got 'val'"):
        load_avsbench(tmp_path, "val", cache_dir=cache)  # without a card, `datasets` knows the split by its own name
    for streaming in (False, True):
        loaded = load_avsbench(tmp_path, "validation", cache_dir=cache, streaming=streaming)
        assert isinstance(loaded.features["audio"], datasets.Audio)
        row = next(iter(loaded))
        assert plain_example(decode_row(row, 2), SIZE).frames.shape == (5, 3, SIZE, SIZE)


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def downloaded(folder: Path) -> Path:
    (folder / "AVSBench-object" / "Single-source").mkdir(parents=True)
    return folder


def without(folder: Path, built: Path, column: str) -> Path:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(next((built / "data" / "s4").glob("val-*.parquet")))
    (folder / "data").mkdir(parents=True)
    kept = table.drop_columns([column]).replace_schema_metadata(None)
    pyarrow.parquet.write_table(kept, folder / "data" / "train-00000.parquet")
    return folder


def broken(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train-00000.parquet").write_bytes(b"PAR1 no more")
    return folder


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (
            lambda tmp, built: built,
            {"split": "dev", "subset": "s4"},
            ValueError,
            r"split: wanted one of \['train'",
        ),
        (lambda tmp, built: built, {"subset": "ms3"}, ValueError, r"wanted one of \['avss', 's4'\], got 'ms3'"),
        (lambda tmp, built: built, {}, ValueError, r"wanted one of \['avss', 's4'\], none was chosen"),
        (lambda tmp, built: tmp / "nowhere", {}, FileNotFoundError, "nowhere is no folder; wanted one that `combo-hf"),
        (lambda tmp, built: "nowhere", {}, FileNotFoundError, "or the id owner/name"),
        (lambda tmp, built: "./no/where", {}, FileNotFoundError, "is no folder"),
        (lambda tmp, built: built / "README.md", {}, FileNotFoundError, "is no folder"),
        (lambda tmp, built: empty(tmp / "a"), {}, ValueError, "holds no parquet file.*combo-hf data build"),
        (lambda tmp, built: downloaded(tmp / "b"), {}, ValueError, "AVSBench as it was downloaded.*data build"),
        (lambda tmp, built: without(tmp / "c", built, "audio"), {}, ValueError, r"columns \['audio'\] are missing"),
        (lambda tmp, built: without(tmp / "d", built, "masks"), {}, ValueError, r"columns \['masks'\] are missing"),
        (lambda tmp, built: broken(tmp / "e"), {}, ValueError, "damaged or no parquet file"),
        (
            lambda tmp, built: "org/private",
            {},
            ConnectionError,
            "org/private: no such folder.* Hub cannot be reached",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_loaded_is_explained(
    tmp_path, built, cache, monkeypatch, make, arguments: dict, error: type, message: str, streaming: bool
):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = {"split": "train", "streaming": streaming, "cache_dir": cache} | arguments
    with pytest.raises(error, match=message):
        load_avsbench(make(tmp_path, built), **arguments)


def test_wrong_column_types_are_named():
    features = {"video_id": 0, "frames": datasets.Image(), "masks": 0, "label_frames": 0, "audio": 0}
    with pytest.raises(ValueError, match="column 'frames' must hold a list of images, got Image"):
        check_columns(features)
    check_columns(None)


def test_masks_of_0_and_255_become_classes_and_only_the_annotated_frame_counts(rows):
    stored = np.asarray(Image.open(io.BytesIO(raw(rows)[0]["masks"][0]["bytes"])))
    assert set(np.unique(stored)) == {0, 255}
    example = AvsbenchClips(rows, image_size=48)[0]
    assert example.label_frames.tolist() == [True, False, False, False, False]
    assert torch.equal(example.masks, torch.from_numpy((stored > 0).astype(np.uint8))[None])
    assert example.video_id == rows["video_id"][0]


def test_clips_follow_from_seed_epoch_and_row_alone(rows, augmented):
    clips = AvsbenchClips(rows, augmented, seed=1)
    clips.set_epoch(3)
    first = [clips[index] for index in range(4)]
    torch.rand(9)
    again = pickle.loads(pickle.dumps(clips))
    assert again.epoch == 3 and all(same(first[index], again[index]) for index in (3, 0, 2, 1, -1))
    for index, row in enumerate(raw(rows)):
        assert same(first[index], augmented(decode_row(row, 2), example_generator(1, 3, index)))
    clips.set_epoch(4)
    assert not torch.equal(clips[0].frames, first[0].frames)
    other = AvsbenchClips(rows, augmented, seed=2)
    assert not torch.equal(other[0].frames, clips[0].frames)
    assert same(AvsbenchClips(rows, seed=1)[1], plain_example(decode_row(rows[1], 2), 224))


def test_rows_of_a_list_are_clips_too():
    plain = [to_row(synthesize_clip("ms3", 0, index, size=48)) for index in range(2)]
    clips = AvsbenchClips(plain, image_size=SIZE, use_maskige=False)
    assert (
        len(clips) == 2 and clips.image_size == SIZE and same(clips[1], plain_example(decode_row(plain[1], 2), SIZE))
    )


def loader_of(clips: AvsbenchClips, workers: int, start: str | None = None, **options):
    return torch.utils.data.DataLoader(
        clips, 2, num_workers=workers, collate_fn=ComboCollator(), multiprocessing_context=start, **options
    )


def assert_equal_batches(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            pairs = zip(value, theirs[name], strict=True)
            assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs), name


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_batches_do_not_depend_on_workers_and_epochs_reach_those_that_live_on(rows, augmented, start: str):
    clips = AvsbenchClips(rows, augmented, seed=7, proposal_generator="superpixels")
    alone = {}
    for epoch in (0, 1):
        clips.set_epoch(epoch)
        alone[epoch] = list(loader_of(clips, 0))
    assert not torch.equal(alone[0][0]["pixel_values"], alone[1][0]["pixel_values"])
    loader = loader_of(clips, 2, start, persistent_workers=True)
    for epoch in (0, 1, 0):
        clips.set_epoch(epoch)
        assert_equal_batches(alone[epoch], list(loader))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_lazily_transformed_rows_go_through_workers(rows, augmented):
    lazy = rows.with_transform(ComboTransform(augmented, seed=7))
    assert_equal_batches(list(loader_of(lazy, 0)), list(loader_of(lazy, 2, "fork")))


def test_clips_of_5_and_10_frames_with_71_classes_share_a_batch(built, cache):
    rows = load_avsbench(built, "train", subset="avss", cache_dir=cache)
    clips = AvsbenchClips(rows, build_transform("avss", True, SIZE), num_labels=71, use_maskige=False)
    batch = ComboCollator(use_maskige=False)([clips[index] for index in range(4)])
    assert set(batch["num_frames"].tolist()) <= {5, 10}
    total = int(batch["num_frames"].sum())
    assert batch["pixel_values"].shape == (total, 3, SIZE, SIZE) and batch["input_features"].shape[0] == total
    assert len(batch["mask_labels"]) == int(batch["label_frames"].sum())
    assert max(int(classes.max()) for classes in batch["class_labels"]) > 1
    with pytest.raises(ValueError, match=r"class ids \[.*\] do not exist, there are 2"):
        list(itertools.islice(AvsbenchClips(rows, image_size=SIZE, use_maskige=False), 4))


def test_rows_without_maskiges(built, cache, augmented):
    rows = load_avsbench(built, "test", subset="avss", cache_dir=cache)
    with pytest.raises(ValueError, match=r"clip .*: the row has no Maskiges. .* proposal_generator='superpixels'"):
        AvsbenchClips(rows, augmented, num_labels=71)[0]
    with pytest.raises(ValueError, match="the row has no Maskiges"):
        rows.with_transform(ComboTransform(augmented, num_labels=71))[0]
    assert AvsbenchClips(rows, augmented, num_labels=71, use_maskige=False)[0].maskiges is None
    made = AvsbenchClips(rows, EvalTransform(SIZE), num_labels=71, proposal_generator={"name": "superpixels"})[0]
    frames = [frame.convert("RGB") for frame in rows[0]["frames"]]
    maker = pickle.loads(pickle.dumps(MaskigeMaker("superpixels")))
    wanted = [np.asarray(image.resize((SIZE, SIZE), Image.Resampling.NEAREST)) for image in maker(frames)]
    assert np.array_equal(made.maskiges.permute(0, 2, 3, 1).numpy(), np.stack(wanted))
    with pytest.raises(ValueError, match="'segment-it' is not known"):
        AvsbenchClips(rows, augmented, proposal_generator="segment-it")


def test_maskiges_in_rows_are_used_rather_than_made(rows):
    def refuse(frames):
        raise AssertionError("not needed")

    clips = AvsbenchClips(rows, image_size=48, proposal_generator=refuse)
    stored = Image.open(io.BytesIO(raw(rows)[0]["maskiges"][0]["bytes"])).convert("RGB")
    wanted = np.asarray(stored.resize((48, 48), Image.Resampling.NEAREST))
    assert np.array_equal(clips[0].maskiges[0].permute(1, 2, 0).numpy(), wanted)


def test_silence_and_names(rows):
    clips = AvsbenchClips(rows, image_size=SIZE)
    silent = AvsbenchClips(rows, image_size=SIZE, silence_audio=True)[0]
    assert silent.input_features.unique().numel() == 1
    assert same(dataclasses.replace(silent, input_features=clips[0].input_features), clips[0])
    assert [clip.video_id for clip in clips] == rows["video_id"][:] and len(clips) == 4
    picked = AvsbenchClips(rows.select([2, 0]), image_size=SIZE)
    assert len(picked) == 2 and same(picked[1], clips[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda rows: AvsbenchClips(rows.to_iterable_dataset()), TypeError, r"IterableDataset; .*map\(ComboTransform"),
        (lambda rows: AvsbenchClips([]), ValueError, "at least one clip, got none"),
        (lambda rows: AvsbenchClips(rows.select([])), ValueError, "at least one clip, got none"),
        (
            lambda rows: AvsbenchClips(rows, EvalTransform(64), image_size=32),
            ValueError,
            "image_size 32 differs .* 64",
        ),
        (lambda rows: AvsbenchClips(rows.remove_columns("audio")), ValueError, r"columns \['audio'\] are missing"),
        (lambda rows: AvsbenchClips(rows)[4], IndexError, "row 4 of 4"),
        (lambda rows: AvsbenchClips(rows)[-5], IndexError, "row -5 of 4"),
        (lambda rows: ComboTransform(EvalTransform())({"frames": []}), ValueError, r"lack the columns \['video_id'"),
        (lambda rows: ComboCollator()([rows[0]]), ValueError, r"missing: \['input_features'\]"),
        (lambda rows: ComboCollator()([3]), TypeError, "wanted clips .ClipExample. or rows .* got int"),
    ],
)
def test_impossible_use_is_explained(rows, make, error: type, message: str):
    with pytest.raises(error, match=message):
        make(rows)


def test_a_damaged_picture_names_its_clip(rows):
    row = raw(rows)[1]
    row["frames"][2]["bytes"] = row["frames"][2]["bytes"][:60]
    with pytest.raises(ValueError, match=f"clip {row['video_id']}: .*cannot be"):
        AvsbenchClips([row], image_size=SIZE)[0]


def test_a_folder_that_moved_is_read_anew(tmp_path, built, cache):
    moved = tmp_path / "Daten mit Ümlaut 音"
    shutil.copytree(built, moved)
    assert len(load_avsbench(moved, "val", subset="s4", cache_dir=cache)) == 2
