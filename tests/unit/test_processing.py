import json

import numpy as np
import pytest
import torch
from PIL import Image

from combo_hf.feature_extraction_combo import ComboFeatureExtractor
from combo_hf.image_processing_combo import ComboImageProcessor
from combo_hf.maskige_combo import paint_maskige
from combo_hf.processing_combo import ComboProcessor
from combo_hf.proposals_combo import SuperpixelProposals


RATE = 16000


def clip(frames: int, seed: int = 0, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for _ in range(frames)]


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def processor(**fields) -> ComboProcessor:
    return ComboProcessor(ComboImageProcessor(size={"height": 32, "width": 32}), **fields)


def halves(frames: list[Image.Image]) -> list[np.ndarray]:
    """A generator: left half, right half."""
    masks = [np.zeros((2, frame.height, frame.width), bool) for frame in frames]
    for mask in masks:
        mask[0, :, : mask.shape[2] // 2] = True
        mask[1] = ~mask[0]
    return masks


def same(left, right) -> bool:
    if isinstance(left, list):
        return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    return torch.equal(left, right)


def test_a_batch_of_clips_of_different_lengths():
    batch = processor()([clip(5), clip(2, size=(20, 50))], [sound(5), sound(2)], RATE)
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "pixel_values": ((7, 3, 32, 32), torch.float32),
        "maskige_values": ((7, 3, 32, 32), torch.float32),
        "input_features": ((7, 1, 96, 64), torch.float32),
        "num_frames": ((2,), torch.int64),
    }
    assert batch["num_frames"].tolist() == [5, 2]
    assert set(batch) == set(processor().model_input_names)


def test_a_clip_is_the_same_alone_and_in_a_batch():
    first, second = clip(3), clip(2, seed=1)
    both = processor()([first, second], [sound(3), sound(2, seed=1)], RATE)
    alone = processor()([second], [sound(2, seed=1)], RATE)
    for key in ("pixel_values", "maskige_values", "input_features"):
        assert torch.equal(both[key][3:], alone[key])


@pytest.mark.parametrize(
    "single",
    [
        lambda frames: frames,
        lambda frames: tuple(frames),
        lambda frames: np.stack([np.asarray(frame) for frame in frames]),
        lambda frames: torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in frames]),
        lambda frames: np.stack([np.asarray(frame) for frame in frames])[None],
    ],
    ids=["list", "tuple", "array", "tensor", "array-of-clips"],
)
def test_a_single_clip_in_any_form(single):
    frames = clip(2)
    wanted = processor()([frames], [sound(2)], RATE)
    got = processor()(single(frames), sound(2), RATE)
    assert all(same(got[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("audio", [sound(2), [sound(2)], sound(2).tolist(), np.stack([sound(2)] * 2)])
def test_audio_of_a_single_clip(audio):
    wanted = processor(proposal_generator=None)([clip(2)], [sound(2)], RATE)["input_features"]
    got = processor(proposal_generator=None)(clip(2), audio, RATE)["input_features"]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_sound_shorter_than_the_frames_is_followed_by_silence():
    features = processor()(clip(4), sound(1), RATE)["input_features"]
    assert features[0].std() > 0.1
    np.testing.assert_allclose(features[2:].numpy(), np.log(0.01), atol=1e-6)


def test_frames_of_one_second_hear_the_same():
    frames = clip(6)
    batch = processor()(frames, sound(3), RATE, frames_per_second=2)
    seconds = ComboFeatureExtractor()(sound(3), RATE, 3)["input_features"]
    assert torch.equal(batch["input_features"], seconds.repeat_interleave(2, dim=0))
    assert batch["num_frames"].tolist() == [6]
    odd = processor()(frames[:5], sound(3), RATE, frames_per_second=2)["input_features"]
    assert torch.equal(odd, batch["input_features"][:5])


def test_sources_of_maskiges_agree():
    frames = clip(2)
    masks = halves(frames)
    painted = [Image.fromarray(paint_maskige(entry, (32, 32))) for entry in masks]
    batches = [
        processor(proposal_generator=halves)(frames, sound(2), RATE),
        processor()(frames, sound(2), RATE, masks=masks),
        processor()(frames, sound(2), RATE, maskiges=painted),
        processor()([frames], [sound(2)], RATE, masks=[[torch.from_numpy(entry) for entry in masks]]),
    ]
    for other in batches[1:]:
        assert torch.equal(batches[0]["maskige_values"], other["maskige_values"])


def test_the_generator_sees_upright_rgb_frames_and_only_if_needed():
    seen = []

    def watch(frames):
        seen.extend((frame.mode, frame.size) for frame in frames)
        return halves(frames)

    built = processor(proposal_generator=watch)
    grey = [frame.convert("L") for frame in clip(2)]
    built(grey, sound(2), RATE, masks=halves(grey))
    assert seen == []
    built(grey, sound(2), RATE)
    assert seen == [("RGB", (40, 30))] * 2


def test_without_a_generator_there_are_no_maskiges():
    assert "maskige_values" not in processor(proposal_generator=None)(clip(1), sound(1), RATE)


def test_the_generator_can_be_exchanged():
    built = processor()
    built.proposal_generator = halves
    assert built.proposal_generator is halves
    built.proposal_generator = {"name": "superpixels", "scale": 9.0}
    assert built.proposal_generator.scale == 9.0


@pytest.mark.parametrize("nested", [True, False])
def test_targets(nested):
    first, last = np.zeros((30, 40), np.uint8), np.ones((30, 40), np.uint8)
    ways = [
        {"segmentation_maps": [first, None, last]},
        {"segmentation_maps": [first, last], "label_frames": [True, False, True]},
        {"segmentation_maps": [first, last, last], "label_frames": np.array([True, False, True])},
    ]
    for way in ways:
        if nested:
            batch = processor()([clip(3)], [sound(3)], RATE, **{key: [value] for key, value in way.items()})
        else:
            batch = processor()(clip(3), sound(3), RATE, **way)
        assert batch["label_frames"].tolist() == [True, False, True]
        assert [entry.tolist() for entry in batch["class_labels"]] == [[0], [1]]
        assert [tuple(entry.shape) for entry in batch["mask_labels"]] == [(1, 32, 32)] * 2


def test_targets_of_several_clips_are_packed():
    maps = [[np.full((8, 8), 3), None], [np.full((8, 8), 4)]]
    batch = processor()([clip(2), clip(1)], [sound(2), sound(1)], RATE, segmentation_maps=maps)
    assert batch["label_frames"].tolist() == [True, False, True]
    assert [entry.tolist() for entry in batch["class_labels"]] == [[3], [4]]


TWO = {"frames": [clip(2), clip(2)], "audio": [sound(2), sound(2)], "sampling_rate": RATE}
ONE = {"frames": clip(2), "audio": sound(2), "sampling_rate": RATE}
BAD_CALLS = [
    (ONE, {"frames": []}, ValueError, "no clips"),
    (ONE, {"frames": [[]]}, ValueError, r"frames\[0\].*no frames"),
    (ONE, {"frames": "clip.mp4"}, TypeError, "list of clips"),
    (ONE, {"frames": clip(1)[0]}, TypeError, "list of clips"),
    (ONE, {"frames": np.zeros((30, 40, 3), np.uint8)}, ValueError, r"\(T, H, W, 3\)"),
    (ONE, {"frames": [clip(2)[0], "x.png"]}, TypeError, r"images\[1\].*got str"),
    (ONE, {"frames": [clip(2), "x.png"]}, TypeError, r"frames\[1\]"),
    (ONE, {"audio": None}, ValueError, "pass zeros"),
    (ONE, {"audio": []}, ValueError, "1 waveforms.*got 0"),
    (ONE, {"audio": np.array([np.nan] * 100)}, ValueError, "NaN"),
    (ONE, {"audio": np.zeros(0)}, ValueError, "no samples"),
    (ONE, {"sampling_rate": None}, ValueError, "sampling_rate is missing"),
    (TWO, {"audio": [sound(2)]}, ValueError, "2 waveforms.*got 1"),
    (TWO, {"audio": sound(2)}, ValueError, "list of 2 waveforms"),
    (TWO, {"audio": [sound(2), None]}, ValueError, r"clips \[1\] have none.*pass zeros"),
    (ONE, {"frames_per_second": 0}, ValueError, "frames_per_second"),
    (ONE, {"frames_per_second": 1.5}, ValueError, "frames_per_second"),
    (ONE, {"maskiges": clip(1)}, ValueError, r"maskiges\[0\].*2 frames, got 1"),
    (TWO, {"maskiges": [clip(2)]}, ValueError, "each of 2 clips, got 1"),
    (TWO, {"maskiges": clip(2)}, TypeError, r"maskiges\[0\]"),
    (ONE, {"masks": [np.zeros((8, 8), bool)] * 2}, ValueError, r"masks\[0\]\[0\].*\(K, H, W\)"),
    (ONE, {"masks": halves(clip(2)), "maskiges": clip(2)}, ValueError, "not both"),
    (ONE, {"segmentation_maps": [np.zeros((8, 8), int)]}, ValueError, "2 frames, got 1"),
    (ONE, {"label_frames": [True, False]}, ValueError, "without segmentation_maps"),
    (
        ONE,
        {"segmentation_maps": [np.zeros((8, 8), int)], "label_frames": [False, False]},
        ValueError,
        "marks 0 of 2 frames.*got 1",
    ),
    (
        ONE,
        {"segmentation_maps": [None, np.zeros((8, 8), int)], "label_frames": [True, False]},
        ValueError,
        "marks 1 of 2 frames.*got 0",
    ),
    (ONE, {"return_tensors": "tf"}, ValueError, "'pt' or 'np'"),
]


@pytest.mark.parametrize(("call", "change", "error", "message"), BAD_CALLS)
def test_bad_calls_are_refused(call, change, error, message):
    with pytest.raises(error, match=message):
        processor(proposal_generator=None)(**{**call, **change})


@pytest.mark.parametrize(
    ("generator", "error", "message"),
    [
        (lambda frames: [], ValueError, "masks for 1 frame, got a list of 0"),
        (lambda frames: [np.zeros((8, 8), bool)], ValueError, r"proposal_generator.*\(K, H, W\)"),
        ("nonsense", ValueError, "not known"),
        (5, TypeError, "wanted a name"),
    ],
)
def test_bad_generators_are_refused(generator, error, message):
    with pytest.raises(error, match=message):
        processor(proposal_generator=generator)(**ONE)


@pytest.mark.parametrize("num_frames", [0, 2.5, "5"])
def test_bad_num_frames_is_refused(num_frames):
    with pytest.raises(ValueError, match="num_frames"):
        ComboProcessor(num_frames=num_frames)


@pytest.mark.parametrize(
    ("generator", "saved"),
    [
        ("superpixels", "superpixels"),
        ({"name": "superpixels", "scale": 60.0}, {"name": "superpixels", "scale": 60.0}),
        (SuperpixelProposals(scale=60.0), SuperpixelProposals(scale=60.0).to_dict()),
        (None, None),
        (halves, None),
    ],
)
def test_round_trip(tmp_path, generator, saved):
    built = ComboProcessor(
        ComboImageProcessor(size={"height": 32, "width": 64}, num_labels=71),
        ComboFeatureExtractor(padding_value=0.125),
        proposal_generator=generator,
        num_frames=10,
    )
    built.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] == ["processor_config.json"]
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert set(config.pop("auto_map")) == {"AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"}
    assert config["proposal_generator"] == saved and config["num_frames"] == 10
    again = ComboProcessor(
        ComboImageProcessor.from_pretrained(tmp_path),
        ComboFeatureExtractor.from_pretrained(tmp_path),
        config["proposal_generator"],
        config["num_frames"],
    )
    assert json.loads(again.to_json_string()) == config
    assert built.proposal_generator is None or callable(built.proposal_generator)  # saving left it alone
    if saved is not None:
        call = {"frames": clip(1), "audio": sound(0.5), "sampling_rate": RATE}
        assert all(torch.equal(again(**call)[key], value) for key, value in built(**call).items())


def test_numpy_output():
    batch = processor()(**ONE, segmentation_maps=[np.zeros((8, 8), int), None], return_tensors="np")
    assert all(isinstance(batch[key], np.ndarray) for key in ("pixel_values", "input_features", "num_frames"))


def test_post_processing_is_the_image_processors():
    outputs = {"class_queries_logits": torch.randn(3, 4, 3), "masks_queries_logits": torch.randn(3, 4, 8, 8)}
    built = processor()
    maps, scores = built.post_process_semantic_segmentation(outputs, [3], [(9, 7)], return_scores=True)
    assert maps[0].shape == (3, 9, 7) and scores[0].shape == (3, 2, 9, 7)
    plain = built.post_process_semantic_segmentation(outputs, num_frames=torch.tensor([3]), target_sizes=[(9, 7)])
    assert torch.equal(plain[0], maps[0])
