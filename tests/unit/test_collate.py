"""Clips in memory: the same tensors as the processor's, packing without padding, augmentation, cache."""

import dataclasses
import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from combo_hf.data import rows
from combo_hf.data.collate import (
    Augmentation,
    ClipExample,
    ComboCollator,
    example_generator,
    plain_example,
)
from combo_hf.data.rows import MaskigeMaker, decode_row
from combo_hf.data.synthetic.dataset import synthesize_clip, to_row
from combo_hf.feature_extraction_combo import ComboFeatureExtractor
from combo_hf.image_processing_combo import ComboImageProcessor, frame_targets
from combo_hf.processing_combo import ComboProcessor
from combo_hf.training.clips_in_memory import ClipTensors, load_examples, prepare_synthetic, save_examples


SIZE = 32
FIELDS = [field.name for field in dataclasses.fields(ClipExample)]


def clip(
    name: str = "a", frames: int = 5, labelled: int | None = None, size: int = SIZE, seed: int = 0
) -> ClipExample:
    generator = torch.Generator().manual_seed(seed)

    def pixels(*shape: int, stop: int = 256) -> torch.Tensor:
        return torch.randint(stop, shape, generator=generator, dtype=torch.uint8)

    count = frames if labelled is None else labelled
    return ClipExample(
        name,
        pixels(frames, 3, size, size),
        pixels(frames, 3, size, size),
        torch.randn(frames, 1, 96, 64, generator=generator),
        pixels(count, size, size, stop=2),
        torch.arange(frames) < count,
    )


def assert_same(one: ClipExample, other: ClipExample) -> None:
    for name in FIELDS:
        ours, theirs = getattr(one, name), getattr(other, name)
        assert torch.equal(ours, theirs) if torch.is_tensor(ours) else ours == theirs, name


@pytest.fixture(scope="module")
def synthetic():
    return synthesize_clip("s4", 3, 0, size=64)


def test_batch_of_rows_equals_the_processor(synthetic):
    row = to_row(synthetic, MaskigeMaker("superpixels"))
    batch = ComboCollator()([plain_example(decode_row(row, 2), SIZE)])
    processor = ComboProcessor(ComboImageProcessor(size=SIZE, num_labels=2), ComboFeatureExtractor())
    wanted = processor(
        frames=[synthetic.frames],
        audio=[soundfile.read(io.BytesIO(row["audio"]["bytes"]))[0]],
        sampling_rate=16000,
        maskiges=[MaskigeMaker("superpixels")(synthetic.frames)],
        segmentation_maps=[[np.minimum(synthetic.masks[0], 1), None, None, None, None]],
    )
    assert set(batch) == set(wanted) | {"video_ids"} and batch["video_ids"] == [synthetic.video_id]
    for name in ("pixel_values", "maskige_values", "input_features", "num_frames", "label_frames"):
        assert batch[name].dtype == wanted[name].dtype and torch.equal(batch[name], wanted[name]), name
    for name in ("mask_labels", "class_labels"):
        assert [entry.dtype for entry in batch[name]] == [entry.dtype for entry in wanted[name]]
        assert all(torch.equal(a, b) for a, b in zip(batch[name], wanted[name], strict=True))


def test_clips_of_5_and_10_frames_are_packed_without_padding():
    clips = [clip("a", 5, 1, seed=1), clip("b", 10, seed=2)]
    batch = ComboCollator()(clips)
    assert batch["num_frames"].tolist() == [5, 10] and batch["video_ids"] == ["a", "b"]
    assert batch["pixel_values"].shape == batch["maskige_values"].shape == (15, 3, SIZE, SIZE)
    assert batch["input_features"].shape == (15, 1, 96, 64)
    assert batch["label_frames"].tolist() == [True] + 4 * [False] + 10 * [True]
    assert len(batch["mask_labels"]) == len(batch["class_labels"]) == 11
    for index, example in enumerate(clips):
        alone = ComboCollator()([example])
        rows = slice(0, 5) if index == 0 else slice(5, 15)
        for name in ("pixel_values", "maskige_values", "input_features"):
            assert torch.equal(batch[name][rows], alone[name])
    assert "maskige_values" not in ComboCollator(use_maskige=False)(clips)


def test_targets_leave_out_ignored_pixels():
    masks, classes = frame_targets(torch.tensor([[0, 7], [255, 7]], dtype=torch.uint8))
    assert classes.tolist() == [0, 7] and masks.tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 1]]]


def test_flip_turns_frames_maskiges_and_masks_and_nothing_else():
    example = clip()
    turned = Augmentation(flip=1.0, jitter=0.0)(example, example_generator(0, 0, 0))
    for name in ("frames", "maskiges", "masks"):
        assert torch.equal(getattr(turned, name), getattr(example, name).flip(-1)), name
    for name in ("input_features", "label_frames"):
        assert torch.equal(getattr(turned, name), getattr(example, name)), name


def test_jitter_changes_colours_of_frames_only():
    example = clip()
    changed = Augmentation(flip=0.0, jitter=0.3)(example, example_generator(0, 0, 0))
    assert not torch.equal(changed.frames, example.frames) and changed.frames.dtype == torch.uint8
    assert_same(dataclasses.replace(changed, frames=example.frames), example)
    assert_same(Augmentation(flip=0.0, jitter=0.0)(example, example_generator(0, 0, 0)), example)


def test_augmentation_follows_from_seed_epoch_and_index_alone():
    def first_frames(seed: int, epoch: int, order: list[int]) -> dict[int, torch.Tensor]:
        dataset = ClipTensors([clip(seed=0)] * 3, Augmentation(), seed)
        dataset.set_epoch(epoch)
        torch.rand(7)  # the global generator plays no part
        return {index: dataset[index].frames for index in order}

    once, again = first_frames(1, 2, [0, 1, 2]), first_frames(1, 2, [2, 0, 1])
    assert all(torch.equal(once[index], again[index]) for index in range(3))
    others = [once[1], first_frames(1, 3, [0])[0], first_frames(2, 2, [0])[0]]
    assert not any(torch.equal(once[0], other) for other in others)


def test_silence_is_what_the_feature_extractor_makes_of_zeros():
    dataset = ClipTensors([clip()])
    silent = dataset.variant(silence_audio=True)[0]
    wanted = ComboFeatureExtractor()(np.zeros(80000), sampling_rate=16000, num_frames=5)["input_features"]
    torch.testing.assert_close(silent.input_features, wanted, rtol=0, atol=1e-6)
    assert_same(dataclasses.replace(silent, input_features=dataset[0].input_features), dataset[0])


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_prepared_clips_are_cached_and_made_anew_for_other_arguments(tmp_path, monkeypatch, processes: int):
    monkeypatch.setattr("combo_hf.training.clips_in_memory.SOURCE_SIZE", 48)
    path = tmp_path / "cache" / "clips.npz"
    arguments = {"kind": "avss", "seed": 5, "image_size": SIZE, "labels": "semantic", "progress": False}
    if processes == 1:
        made = prepare_synthetic(num_clips=3, cache=path, **arguments)
    else:  # the children do not see the monkeypatch
        monkeypatch.undo()
        monkeypatch.setattr("combo_hf.training.clips_in_memory.CLIPS_OF_A_PROCESS", 1)
        made = prepare_synthetic(num_clips=3, num_processes=processes, cache=path, **arguments)
    assert {len(example.frames) for example in made.examples} <= {5, 10}
    assert max(int(example.masks.max()) for example in made.examples) > 1
    monkeypatch.setattr("combo_hf.training.clips_in_memory._run", None)  # from here on nothing may be made
    for ours, read in zip(
        made.examples, prepare_synthetic(num_clips=3, cache=path, **arguments).examples, strict=True
    ):
        assert_same(ours, read)
    with pytest.raises(TypeError):
        prepare_synthetic(num_clips=2, cache=path, **arguments)


def test_cache_without_maskiges_and_damaged_cache(tmp_path):
    path = tmp_path / "clips.npz"
    examples = [dataclasses.replace(clip("a", 5, 1), maskiges=None), dataclasses.replace(clip("b", 10), maskiges=None)]
    save_examples(examples, path, {"n": 1})
    assert load_examples(path, {"n": 2}) is None
    for ours, read in zip(examples, load_examples(path, {"n": 1}), strict=True):
        assert_same(ours, read)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load_examples(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clips.npz"]


def broken_row(row: dict, **changes) -> dict:
    return {name: value for name, value in {**row, **changes}.items() if value != "missing"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": "missing"}, r"\['audio'\] missing"),
        ({"audio": {"bytes": None, "path": "a.wav"}}, "no bytes"),
        ({"audio": {"bytes": b"RIFF"}}, "sound cannot be read"),
        ({"frames": [{"bytes": b"x"}] * 5}, "picture cannot be read"),
        ({"frames": [{"bytes": None, "path": "a.png"}] * 5}, "picture has no bytes"),
        ({"label_frames": [True]}, "differ in number: {'frames': 5, 'masks': 5, 'label_frames': 1}"),
        ({"masks": [np.full((64, 64), 9, np.uint8)] * 5}, r"\[9\] do not exist"),
    ],
)
def test_impossible_rows_name_the_clip(synthetic, changes: dict, message: str):
    with pytest.raises(ValueError, match=f"synthetic_s4_train_3_000000.*{message}"):
        plain_example(decode_row(broken_row(to_row(synthetic), **changes), 2), SIZE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ComboCollator()([]), "no clips"),
        (lambda: ComboCollator()([clip(), clip(size=64)]), "one image size"),
        (lambda: ComboCollator()([dataclasses.replace(clip("x"), maskiges=None)]), r"\['x'\]"),
        (lambda: dataclasses.replace(clip("x"), masks=torch.zeros(1, SIZE, SIZE)), "clip x: masks must be"),
        (lambda: ClipTensors([]), "at least one clip"),
        (lambda: Augmentation(flip=2.0), "flip in"),
        (lambda: prepare_synthetic("ms3", 0, 0), "num_clips >= 1"),
        (lambda: prepare_synthetic("ms4", 0, 1), "unknown kind"),
        (lambda: prepare_synthetic("ms3", 0, 1, labels="colour"), "labels: wanted"),
    ],
)
def test_impossible_data(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_row_of_more_pixels_than_memory(synthetic, monkeypatch):
    """A picture of one colour has a few kB, and the row names it as often as it likes."""
    row = to_row(synthetic)
    pixels = {name: sum(map(picture_pixels, row[name] or ())) for name in ("frames", "masks", "maskiges")}
    monkeypatch.setattr(rows, "MAX_ROW_PIXELS", sum(pixels.values()))
    decode_row(row, 2)
    monkeypatch.setattr(rows, "MAX_ROW_PIXELS", pixels["frames"] - 1)
    with pytest.raises(ValueError, match="the row has more than .* pixels"):
        decode_row(row, 2)


def picture_pixels(entry):
    with Image.open(io.BytesIO(entry["bytes"])) as picture:
        return picture.width * picture.height
