"""What holds for any input: processor, Maskiges, log-mel, metrics and collator against definitions written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from combo_hf.data.collate import ClipExample, ComboCollator
from combo_hf.feature_extraction_combo import ComboFeatureExtractor, to_mono
from combo_hf.image_processing_combo import ComboImageProcessor
from combo_hf.maskige_combo import PALETTE, maskige_index, paint_maskige
from combo_hf.metrics import SemanticScores, f_measure, jaccard
from combo_hf.processing_combo import ComboProcessor


RATE = 16000
SIDES = st.integers(1, 40)
COUNTS = st.integers(1, 4)
SEEDS = st.integers(0, 2**32 - 1)
FORMS = ("pil", "grey", "palette", "alpha", "uint8", "float", "channels-first", "tensor")
SOUNDS = ("silence", "noise", "int16", "stereo", "list", "tensor", "clipped")


def picture(form: str, height: int, width: int, rng: np.random.Generator) -> Any:
    array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    made = {"pil": image, "grey": image.convert("L"), "palette": image.convert("P"), "alpha": image.convert("RGBA"),
            "uint8": array, "float": (array / 255).astype(np.float32)}  # fmt: skip
    if form in made:
        return made[form]
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    return torch.from_numpy(first) if form == "tensor" or width == 3 else first


def sound(form: str, samples: int, rng: np.random.Generator) -> Any:
    noise = rng.uniform(-1, 1, samples).astype(np.float32)
    return {
        "silence": np.zeros(samples, np.float32), "noise": noise, "int16": (noise * 32767).astype(np.int16),
        "stereo": np.stack([noise, noise[::-1], -noise]) if samples > 3 else noise, "list": noise.tolist(),
        "tensor": torch.from_numpy(noise), "clipped": np.sign(noise) * 1.5,
    }[form]  # fmt: skip


@st.composite
def clips(draw: Any) -> dict[str, Any]:
    """Arguments of the processor: clips of any lengths, each with pictures of one kind and sound of another."""
    rng = np.random.default_rng(draw(SEEDS))
    frames, audio, sizes = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        height, width, form = draw(SIDES), draw(SIDES), draw(st.sampled_from(FORMS))
        frames.append([picture(form, height, width, rng) for _ in range(draw(COUNTS))])
        audio.append(sound(draw(st.sampled_from(SOUNDS)), draw(st.sampled_from([1, 2, 399, 16000, 70001])), rng))
        sizes.append((height, width))
    return {"frames": frames, "audio": audio, "sizes": sizes}


@settings(max_examples=40)
@given(clips(), st.integers(1, 40), st.integers(1, 40), SEEDS)
def test_processor(batch: dict[str, Any], height: int, width: int, seed: int) -> None:
    processor = ComboProcessor(ComboImageProcessor(size={"height": height, "width": width}), proposal_generator=None)
    rng = np.random.default_rng(seed)
    masks = [[rng.random((rng.integers(0, 4), *size)) < 0.5 for _ in clip]
             for clip, size in zip(batch["frames"], batch["sizes"], strict=True)]  # fmt: skip
    out = processor(batch["frames"], batch["audio"], RATE, masks=masks)
    counts = [len(clip) for clip in batch["frames"]]
    total = sum(counts)
    assert out["num_frames"].tolist() == counts
    shapes = {name: tuple(out[name].shape) for name in ("pixel_values", "maskige_values", "input_features")}
    pictures = (total, 3, height, width)
    assert shapes == {"pixel_values": pictures, "maskige_values": pictures, "input_features": (total, 1, 96, 64)}
    assert all(out[name].dtype == torch.float32 and torch.isfinite(out[name]).all() for name in shapes)
    colours = processor.image_processor.denormalize(out["maskige_values"]).reshape(-1, 3)
    assert {tuple(colour) for colour in colours.tolist()} <= {tuple(colour) for colour in PALETTE.tolist()}
    first = 0
    for index, count in enumerate(counts):  # a clip is the same alone
        alone = processor([batch["frames"][index]], [batch["audio"][index]], RATE, masks=[masks[index]])
        assert all(torch.equal(out[name][first : first + count], alone[name]) for name in shapes)
        first += count
    logits = {
        "class_queries_logits": torch.from_numpy(rng.normal(size=(total, 3, 4))).float(),
        "masks_queries_logits": torch.from_numpy(rng.normal(size=(total, 3, 2, 3))).float(),
    }
    maps = processor.post_process_semantic_segmentation(logits, out["num_frames"], target_sizes=batch["sizes"])
    assert [tuple(part.shape) for part in maps] == [
        (count, *size) for count, size in zip(counts, batch["sizes"], strict=True)
    ]
    assert all(part.dtype == torch.int64 and 0 <= part.min() and part.max() < 3 for part in maps)


def slow_index(masks: np.ndarray) -> np.ndarray:
    """A pixel has the rank of the smallest mask over it; of equal masks the earlier one's."""
    ranked = sorted(range(len(masks)), key=lambda number: (int(masks[number].sum()), number))
    index = np.zeros(masks.shape[1:], np.uint8)
    for y, x in np.ndindex(*index.shape):
        over = [rank for rank, number in enumerate(ranked, 1) if masks[number, y, x]]
        index[y, x] = over[0] if over else 0
    return index


@settings(max_examples=40)
@given(hnp.arrays(bool, st.tuples(st.integers(0, 7), st.integers(1, 6), st.integers(1, 6))), SIDES, SIDES)
@example(np.ones((3, 2, 2), bool), 4, 2)
@example(np.zeros((2, 2, 2), bool), 1, 1)
def test_maskiges(masks: np.ndarray, height: int, width: int) -> None:
    index = maskige_index(masks)
    np.testing.assert_array_equal(index, slow_index(masks))
    assert ((index > 0) == masks.any(0)).all()
    painted = paint_maskige(masks, (height, width))
    centres = [(np.arange(new) + 0.5) * old / new for new, old in zip((height, width), masks.shape[1:], strict=True)]
    sure = [centre != np.floor(centre) for centre in centres]  # on the edge of two pixels either is the nearest
    rows, columns = (centre[keep].astype(int) for centre, keep in zip(centres, sure, strict=True))
    np.testing.assert_array_equal(painted[np.ix_(*sure)], PALETTE[index[np.ix_(rows, columns)]])


def slow_log_mel(waveform: np.ndarray, count: int) -> np.ndarray:
    """The formula, one window after the other."""
    waveform = np.pad(waveform.astype(np.float64), (0, 16000 * (count + 1)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    mel = 1127 * np.log1p(np.arange(257) * RATE / 512 / 700)
    edges = np.linspace(1127 * np.log1p(125 / 700), 1127 * np.log1p(7500 / 700), 66)
    rows = []
    for number in range(96 * count):
        spectrum = np.abs(np.fft.rfft(waveform[160 * number : 160 * number + 400] * window, 512))
        up = (mel[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
        down = (edges[None, 2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
        rows.append(np.log(spectrum @ np.clip(np.minimum(up, down), 0, None) + 0.01))
    return np.stack(rows).reshape(count, 1, 96, 64)


@settings(max_examples=12)
@given(st.sampled_from([1, 159, 400, 15600, 16001, 40000]), st.integers(1, 3), SEEDS, st.floats(0, 1))
def test_log_mel_is_the_formula(samples: int, count: int, seed: int, volume: float) -> None:
    waveform = (np.random.default_rng(seed).uniform(-1, 1, samples) * volume).astype(np.float32)
    got = ComboFeatureExtractor()(waveform, RATE, count)["input_features"]
    np.testing.assert_allclose(got.numpy(), slow_log_mel(waveform, count), atol=2e-5)


@settings(max_examples=25)
@given(st.sampled_from([1000, 8000, 11025, 16000, 22050, 44100, 48001, 96000]), st.integers(1, 9000), SEEDS)
def test_log_mel_of_any_length_and_rate(rate: int, samples: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)
    features = ComboFeatureExtractor()(waveform, rate)["input_features"]
    assert features.shape == (max(1, round(samples / rate)), 1, 96, 64) and torch.isfinite(features).all()
    assert features.min() >= np.log(0.01) - 1e-5


@settings(max_examples=15)
@given(st.integers(0, 90), st.integers(1, 12000), SEEDS)
def test_log_mel_moves_with_the_sound(hops: int, samples: int, seed: int) -> None:
    """Silence of n hops in front shifts the spectrum by n rows; before it there is silence."""
    waveform = np.random.default_rng(seed).uniform(-1, 1, samples)
    plain, late = (
        ComboFeatureExtractor()(np.concatenate([np.zeros(160 * shift), waveform]), RATE, 2)["input_features"]
        for shift in (0, hops)
    )
    plain, late = plain.view(-1, 64), late.view(-1, 64)
    torch.testing.assert_close(late[hops:], plain[: len(plain) - hops], rtol=0, atol=1e-6)
    silent = max(0, hops - 2)  # windows that end before the sound begins
    torch.testing.assert_close(late[:silent], torch.full((silent, 64), float(np.log(0.01))), rtol=0, atol=1e-6)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(6, 400), SEEDS)
def test_channels_of_either_order_are_averaged(channels: int, samples: int, seed: int) -> None:
    array = np.random.default_rng(seed).uniform(-1, 1, (channels, samples))
    for given_array in (array, array.T, torch.from_numpy(array)):
        np.testing.assert_allclose(to_mono(given_array).numpy(), array.mean(0), atol=1e-12)


SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)


@settings(max_examples=40)
@given(SHAPES, SEEDS, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_scores_of_masks(shape: tuple[int, ...], seed: int, share: float, other_share: float) -> None:
    """Empty and full masks included: within 0..1, 1 for itself, the same either way round, of no order of pixels."""
    rng = np.random.default_rng(seed)
    one, other = rng.random(shape) < share, rng.random(shape) < other_share
    values = [jaccard(one.astype(np.float32), other), f_measure(one.astype(np.float32), other)]
    assert all(0 <= value <= 1 for value in values)
    assert jaccard(one.astype(np.float32), one) == pytest.approx(1, abs=1e-6)  # the release adds 1e-7 to the areas
    assert f_measure(one.astype(np.float32), one) == pytest.approx(float(one.any()), abs=1e-6)
    if one.any((1, 2)).all() and other.any((1, 2)).all():
        assert values[0] == jaccard(other.astype(np.float32), one)
    order = rng.permutation(shape[1] * shape[2])
    turned = [mask.reshape(len(mask), -1)[:, order].reshape(shape) for mask in (one, other)]
    assert values == [score(turned[0].astype(np.float32), turned[1]) for score in (jaccard, f_measure)]
    labels = [mask.astype(np.int64) for mask in (one, other)]
    for protocol in ("avsbench", "dataset"):
        ways = [SemanticScores(2, protocol).update(*pair).compute() for pair in (labels, labels[::-1])]
        assert ways[0]["per_class_iou"] == ways[1]["per_class_iou"]
        same = SemanticScores(2, protocol).update(labels[0], labels[0]).compute()
        found = [value for value in same["per_class_iou"] + same["per_class_fscore"] if value is not None]
        assert found and found == pytest.approx([1.0] * len(found), abs=1e-9)
        assert all(value is None or 0 <= value <= 1 + 1e-9 for value in ways[0]["per_class_fscore"])


@st.composite
def examples(draw: Any) -> list[ClipExample]:
    generator = torch.Generator().manual_seed(draw(SEEDS))
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    made = []
    for number in range(draw(st.integers(1, 4))):
        flags = torch.tensor(draw(st.lists(st.booleans(), min_size=1, max_size=5)))
        masks = torch.randint(0, 5, (int(flags.sum()), height, width), generator=generator, dtype=torch.uint8)
        masks[masks == 4] = 255
        frames = torch.randint(0, 256, (2, len(flags), 3, height, width), generator=generator, dtype=torch.uint8)
        sound = torch.randn(len(flags), 1, 96, 64, generator=generator)
        made.append(ClipExample(f"clip {number}", frames[0], frames[1], sound, masks, flags))
    return made


@settings(max_examples=40)
@given(examples())
def test_collator(batch: list[ClipExample]) -> None:
    packed = ComboCollator()(batch)
    assert packed["num_frames"].tolist() == [len(clip.frames) for clip in batch]
    assert packed["video_ids"] == [clip.video_id for clip in batch]
    first = labelled = 0
    for clip in batch:  # what the loss sees of a clip is what it sees of it alone
        alone, last, end = ComboCollator()([clip]), first + len(clip.frames), labelled + len(clip.masks)
        for name in ("pixel_values", "maskige_values", "input_features", "label_frames"):
            assert torch.equal(packed[name][first:last], alone[name])
        for name in ("mask_labels", "class_labels"):
            assert all(torch.equal(a, b) for a, b in zip(packed[name][labelled:end], alone[name], strict=True))
        for mask, shapes, classes in zip(clip.masks, alone["mask_labels"], alone["class_labels"], strict=True):
            assert classes.tolist() == sorted({*mask.flatten().tolist()} - {255})
            assert shapes.shape == (len(classes), *mask.shape) and torch.equal(shapes.sum(0), (mask != 255).float())
        first, labelled = last, end
    assert (first, labelled) == (len(packed["pixel_values"]), len(packed["mask_labels"]))
