"""The pipeline on arrays in memory: windows, batches, rates, segments, errors. Films are in tests/integration."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image

import combo_hf
from combo_hf.pipeline_combo_inputs import iter_windows
from combo_hf.results.video import write_video


RATE = 16000
SIZE = (80, 60)  # W, H


def make_input(seconds, fps=1, seed=0, **extra):
    rng = np.random.default_rng(seed)
    frames = [
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.NEAREST)
        for _ in range(seconds * fps)
    ]
    return {"frames": frames, "audio": rng.normal(0, 0.1, seconds * RATE), "sampling_rate": RATE, **extra}


def scores(result):
    return np.stack([frame["scores"] for frame in result["frames"]])


def times(result):
    return [frame["timestamp"] for frame in result["frames"]]


@pytest.fixture
def reds(tiny_pipe, monkeypatch):
    """A pipeline whose network is sure that whatever is red sounds."""

    def forward(pixel_values, **kwargs):
        masks = torch.nn.functional.avg_pool2d(pixel_values, 4)[:, :1].sign() * 20  # (F, 1, h, w)
        masks = torch.cat([masks, -masks], dim=1)  # query 0 sounds, query 1 is background
        classes = torch.tensor([[0.0, 20.0, 0.0], [20.0, 0.0, 0.0]]).expand(len(masks), 2, 3)
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)

    monkeypatch.setattr(tiny_pipe.model, "forward", forward)
    return tiny_pipe


def red_half(size=SIZE):
    """Left half red, right half black."""
    picture = Image.new("RGB", size)
    picture.paste((255, 0, 0), (0, 0, size[0] // 2, size[1]))
    return picture


def test_segments_and_label_map_at_source_size(reds):
    result = reds({"frames": [red_half()] * 2, "audio": None})
    assert result["size"] == SIZE and result["has_audio"] is False
    assert result["labels"] == {0: "background", 1: "sounding object"}
    for frame in result["frames"]:
        assert frame["label_map"].shape == (60, 80) and frame["label_map"].dtype == np.uint8
        (segment,) = frame["segments"]
        assert segment["label"] == "sounding object"
        assert segment["mask"].mode == "L" and segment["mask"].size == SIZE
        mask = np.asarray(segment["mask"])
        np.testing.assert_array_equal(mask, frame["label_map"] * 255)
        assert mask[:, :39].min() == 255 and mask[:, 41:].max() == 0
        assert 0.95 < segment["score"] <= 1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"classes": ["sounding object"]}, True),
        ({"classes": []}, False),
        ({"classes": ["background"]}, False),
        ({"min_area": 2000}, True),
        ({"min_area": 3000}, False),
    ],
)
def test_filters_act_on_segments_and_label_map_alike(reds, options, kept):
    (frame,) = reds({"frames": [red_half()]}, **options)["frames"]
    assert len(frame["segments"]) == kept and frame["label_map"].any() == kept


def test_heat_map_follows_the_red(reds):
    (frame,) = reds({"frames": [red_half()]}, return_maps=True)["frames"]
    assert frame["heat_map"].shape == (60, 80)
    assert frame["heat_map"][:, :38].min() > 0.9 and frame["heat_map"][:, 42:].max() < 0.1
    np.testing.assert_allclose(frame["scores"].sum(0), 1, atol=1e-5)
    assert frame["image"].size == SIZE and frame["maskige"].size == (128, 128)


def test_results_do_not_depend_on_the_batch(tiny_pipe):
    inputs = [make_input(seconds, seed=seconds) for seconds in (5, 12, 3)]
    alone = tiny_pipe(inputs, return_maps=True)
    assert [len(result["frames"]) for result in alone] == [5, 12, 3]
    for batch_size in (2, 3, 8):
        for one, other in zip(alone, tiny_pipe(inputs, batch_size=batch_size, return_maps=True), strict=True):
            np.testing.assert_allclose(scores(one), scores(other), atol=1e-5)
            assert times(one) == times(other)


def test_inputs_are_told_apart(tiny_pipe):
    first, second = tiny_pipe([make_input(2, seed=1), make_input(2, seed=2)], return_maps=True)
    assert np.abs(scores(first) - scores(second)).max() > 1e-4


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("fps", [2, 3])
def test_more_frames_per_second_are_phases_of_one_per_second(tiny_pipe, fps, batch_size):
    source = make_input(7, fps)
    result = tiny_pipe(source, fps=fps, batch_size=batch_size, return_maps=True)
    np.testing.assert_allclose(times(result), (np.arange(7 * fps) + 15 / 16) / fps)
    for phase in range(fps):
        one = tiny_pipe({**source, "frames": source["frames"][phase::fps]}, return_maps=True)
        np.testing.assert_allclose(scores(one), scores(result)[phase::fps], atol=1e-5)


@pytest.fixture
def lively(tmp_path):
    """Seven seconds in which everything changes all the time."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(10, 0).repeat(10, 1) for _ in range(56)]
    return write_video(tmp_path / "lively.mp4", pictures, 8, rng.normal(0, 0.1, 7 * RATE).astype(np.float32))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_auto_adds_frames_to_those_of_one_per_second(tiny_pipe, lively, batch_size):
    seconds = []
    hook = tiny_pipe.model.model.audio_encoder.register_forward_hook(lambda _, inputs, out: seconds.append(len(out)))
    result = tiny_pipe(str(lively), fps="auto", batch_size=batch_size, return_maps=True)
    hook.remove()
    assert sum(seconds) == 7, "a second of sound was encoded more than once"
    plain = tiny_pipe(str(lively), return_maps=True)
    assert result["fps"] == plain["fps"] == 1 and times(result) == times(plain)
    np.testing.assert_allclose(scores(result), scores(plain), atol=1e-5)
    np.testing.assert_array_equal(result["waveform"], plain["waveform"])
    assert [frame["timestamp"] for frame in result["frames_between"]] == [k + 7 / 16 for k in range(7)]
    four = tiny_pipe(str(lively), fps=16)  # has the pictures at k + 7/16 - 1/256, which are the same ones
    for frame in result["frames_between"]:
        assert set(frame) == {"timestamp", "segments", "label_map"}
        same = min(four["frames"], key=lambda entry: abs(entry["timestamp"] - frame["timestamp"]))
        np.testing.assert_array_equal(frame["label_map"], same["label_map"])
    assert "frames_between" not in plain


def test_a_clip_read_at_auto(tiny_pipe):
    """Its times say which frames are those of one per second, and which sound each hears."""
    source, places = make_input(6, 4), [3, 5, 7, 8, 9, 10, 11, 15, 19, 23]
    clip = combo_hf.Clip(
        frames=[source["frames"][place] for place in places], waveform=source["audio"].astype(np.float32),
        sampling_rate=RATE, times=np.array([place // 4 + (place % 4 + 0.75) / 4 for place in places]), start=0.0,
        index=0, is_last=True, has_audio=True)  # fmt: skip
    result = tiny_pipe(clip, return_maps=True)
    plain = tiny_pipe({**source, "frames": source["frames"][3::4]}, return_maps=True)
    np.testing.assert_allclose(scores(result), scores(plain), atol=1e-5)
    assert [frame["timestamp"] for frame in result["frames_between"]] == [1.4375, 2.1875, 2.4375, 2.6875]


def test_less_than_one_frame_per_second(tiny_pipe, lively):
    """Each frame is segmented as a clip of its own, with the sound of its second."""
    result, plain = (tiny_pipe(str(lively), fps=fps, return_maps=True) for fps in (0.5, 1))
    assert result["fps"] == 0.5 and times(result) == times(plain)[::2]
    np.testing.assert_array_equal(result["waveform"], plain["waveform"])
    source = make_input(14)
    every = tiny_pipe({**source, "frames": source["frames"][::2]}, fps=0.5, return_maps=True)
    assert times(every) == [2 * k + 15 / 16 for k in range(7)]
    for second in (0, 2, 12):
        part = source["audio"][second * RATE : (second + 1) * RATE]
        alone = tiny_pipe({**source, "frames": [source["frames"][second]], "audio": part}, return_maps=True)
        np.testing.assert_allclose(scores(every)[second // 2], scores(alone)[0], atol=1e-5)
    clip = tiny_pipe(combo_hf.read_clip(lively, fps=0.5), return_maps=True)
    np.testing.assert_allclose(scores(clip), scores(result), atol=1e-5)


def test_a_last_second_with_too_few_frames(tiny_pipe):
    source = make_input(6, 2)
    source["frames"] = source["frames"][:-1]
    result = tiny_pipe(source, fps=2)
    assert len(result["frames"]) == 11


def test_windows_are_aligned_anew(tiny_pipe):
    """Seconds 5 and 6 of a long input give what they give alone."""
    source = make_input(7)
    tail = {"frames": source["frames"][5:], "audio": source["audio"][5 * RATE :], "sampling_rate": RATE}
    whole, alone = tiny_pipe(source, return_maps=True), tiny_pipe(tail, return_maps=True)
    np.testing.assert_allclose(scores(whole)[5:], scores(alone), atol=1e-5)


def test_missing_sound_is_silence(tiny_pipe):
    source = make_input(7)
    short = {**source, "audio": source["audio"][: 2 * RATE]}
    padded = {**source, "audio": np.pad(source["audio"][: 2 * RATE], (0, 5 * RATE))}
    np.testing.assert_allclose(
        scores(tiny_pipe(short, return_maps=True)), scores(tiny_pipe(padded, return_maps=True)), atol=1e-5
    )
    result = tiny_pipe({"frames": source["frames"]}, return_maps=True)
    silence = tiny_pipe({**source, "audio": np.zeros(RATE)}, return_maps=True)
    np.testing.assert_allclose(scores(result), scores(silence), atol=1e-5)
    assert not result["has_audio"] and silence["has_audio"]


def test_given_masks_and_maskiges_replace_the_generator(tiny_pipe):
    source = make_input(6)
    masks = [np.ones((1, 60, 80), dtype=bool)] * 6
    painted = [combo_hf.paint_maskige(mask, (128, 128)) for mask in masks]
    by_masks = tiny_pipe({**source, "masks": masks}, return_maps=True)
    by_maskiges = tiny_pipe({**source, "maskiges": painted}, return_maps=True)
    np.testing.assert_allclose(scores(by_masks), scores(by_maskiges), atol=1e-6)
    assert np.abs(scores(by_masks) - scores(tiny_pipe(source, return_maps=True))).max() > 1e-5
    np.testing.assert_array_equal(np.asarray(by_masks["frames"][5]["maskige"]), painted[5])


def test_proposal_generator_of_the_caller(tiny_folder, tiny_pipe):
    source = make_input(2)

    def everything(frames):
        return [np.ones((1, frame.height, frame.width), dtype=bool) for frame in frames]

    pipe = combo_hf.load_pipeline(tiny_folder, proposal_generator=everything)
    expected = tiny_pipe({**source, "masks": [np.ones((1, 60, 80), dtype=bool)] * 2}, return_maps=True)
    np.testing.assert_allclose(scores(pipe(source, return_maps=True)), scores(expected), atol=1e-6)
    with pytest.raises(ValueError, match="nosuch"):
        combo_hf.load_pipeline(tiny_folder, proposal_generator="nosuch")


def test_model_without_maskiges():
    torch.manual_seed(0)
    model = combo_hf.ComboForAudioVisualSegmentation(combo_hf.ComboConfig.from_preset("tiny", use_maskige=False))
    processor = combo_hf.ComboProcessor(combo_hf.ComboImageProcessor(size={"height": 128, "width": 128}))
    pipe = combo_hf.AudioVisualSegmentationPipeline(model, processor=processor, device="cpu")
    (frame,) = pipe(make_input(1), return_maps=True)["frames"]
    assert frame["maskige"] is None
    assert processor.proposal_generator is not None, "the caller's processor was changed"


def test_stream_gives_the_windows_of_call(tiny_pipe):
    source, calls = make_input(12), []
    stream = tiny_pipe.stream(source, return_maps=True, progress=lambda *call: calls.append(call))
    first = next(stream)
    assert first["window"] == 0 and not first["is_last"] and len(first["frames"]) == 5
    rest = list(stream)
    assert [(window["window"], window["is_last"]) for window in rest] == [(1, False), (2, True)]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    whole = tiny_pipe(source, return_maps=True)
    parts = np.concatenate([scores(window) for window in (first, *rest)])
    np.testing.assert_allclose(parts, scores(whole), atol=1e-6)
    np.testing.assert_allclose(whole["waveform"], source["audio"].astype(np.float32), atol=1e-6)


@pytest.mark.parametrize("make", [lambda inputs: (entry for entry in inputs), iter], ids=["generator", "iterator"])
def test_generators_are_lazy(tiny_pipe, make):
    results = tiny_pipe(make([make_input(1), make_input(2), "no such film.mp4"]))
    assert len(next(results)["frames"]) == 1 and len(next(results)["frames"]) == 2
    with pytest.raises((ValueError, OSError)):
        next(results)


def test_tuples_are_lists(tiny_pipe):
    assert len(tiny_pipe((make_input(1), make_input(1)))) == 2


def test_clip_objects(tiny_pipe):
    source = make_input(6, 2)
    clip = combo_hf.Clip(
        frames=source["frames"], waveform=source["audio"].astype(np.float32), sampling_rate=RATE,
        times=(np.arange(12) + 15 / 16) / 2, start=0.0, index=0, is_last=True, has_audio=True)  # fmt: skip
    result = tiny_pipe(clip, return_maps=True)  # its own rate is known from its times
    assert result["fps"] == 2
    np.testing.assert_allclose(scores(result), scores(tiny_pipe(source, fps=2, return_maps=True)), atol=1e-6)


def test_sound_as_datasets_give_it(tiny_pipe):
    source = make_input(2)
    nested = {"frames": source["frames"], "audio": {"array": source["audio"], "sampling_rate": RATE, "path": None}}
    np.testing.assert_array_equal(
        scores(tiny_pipe(nested, return_maps=True)), scores(tiny_pipe(source, return_maps=True))
    )


def test_rows_of_our_data_sets(tiny_pipe):
    source, sound = make_input(2), io.BytesIO()
    soundfile.write(sound, source["audio"], RATE, "FLOAT", format="WAV")
    row = {
        "video_id": "a", "subset": "ms3", "split": "test", "category": "bell", "frames": source["frames"],
        "masks": [Image.new("L", SIZE)] * 2, "label_frames": [True, True], "maskiges": None,
        "audio": {"bytes": sound.getvalue(), "path": None}}  # fmt: skip
    given = scores(tiny_pipe(source, return_maps=True))
    np.testing.assert_allclose(scores(tiny_pipe(row, return_maps=True)), given, atol=1e-6)
    maskiges = [Image.new("RGB", (128, 128), (9, 90, 200))] * 2
    painted = tiny_pipe({**row, "maskiges": maskiges}, return_maps=True)
    np.testing.assert_allclose(
        scores(painted), scores(tiny_pipe({**source, "maskiges": maskiges}, return_maps=True)), atol=1e-6
    )


def test_open_files_are_read_as_bytes():
    film = combo_hf.ASSETS / "demo_clip.mp4"
    with open(film, "rb") as file:
        opened = list(iter_windows(file, 5, 1, count=False))
    for window, wanted in zip(opened, iter_windows(film, 5, 1, count=False), strict=True):
        np.testing.assert_array_equal(window.waveform, wanted.waveform)
        assert window.frames == wanted.frames


def test_the_random_state_of_the_caller_stays(tiny_pipe):
    state = torch.get_rng_state()
    tiny_pipe(make_input(1), batch_size=2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], ValueError, "empty list"),
        ((), ValueError, "empty list"),
        (None, TypeError, "NoneType"),
        (5, TypeError, "int"),
        (Image.new("RGB", (8, 8)), TypeError, "pass a path"),
        ({}, ValueError, "pass a path"),
        ({"audio": np.zeros(5)}, ValueError, "pass a path"),
        ({"frames": [], "audio": None}, ValueError, "empty"),
        (io.BytesIO(b"no\nmedia"), ValueError, "."),
        (io.StringIO("text"), TypeError, "opened as text"),
        ({"frames": [red_half()], "audio": {"bytes": b"RIFF", "path": None}}, ValueError, "cannot be read"),
        ({"frames": [red_half()], "audio": {"path": "a.wav"}}, ValueError, "wanted an array"),
        ({"video_id": "a", "masks": []}, ValueError, "got a dict with"),
        ({"frames": [red_half()], "video": 1}, ValueError, "video"),
        ({"frames": [red_half()], "audio": np.zeros(9)}, ValueError, "sampling_rate"),
        ({"frames": [red_half()], "audio": np.zeros(0), "sampling_rate": RATE}, ValueError, "no samples"),
        ({"frames": [red_half()], "audio": np.full(9, np.nan), "sampling_rate": RATE}, ValueError, "NaN"),
        ({"frames": [red_half(), red_half((40, 40))]}, ValueError, "one size"),
        ({"frames": [red_half()], "masks": []}, ValueError, "'masks' has 0 entries for 1"),
        ({"frames": ["a.png"]}, TypeError, r"frames\[0\]"),
    ],
)
def test_bad_inputs(tiny_pipe, source, error, message):
    with pytest.raises(error, match=message):
        tiny_pipe(source)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frames_per_second": 2}, TypeError, "frames_per_second"),
        ({"fps": 0}, ValueError, "fps"),
        ({"fps": 1.5}, ValueError, "fps"),
        ({"fps": True}, ValueError, "fps"),
        ({"fps": "often"}, ValueError, "fps"),
        ({"min_area": -1}, ValueError, "min_area"),
        ({"classes": ["dog"]}, ValueError, "dog"),
        ({"progress": 3}, TypeError, "progress"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_bad_options(tiny_pipe, options, error, message):
    with pytest.raises(error, match=message):
        tiny_pipe(make_input(1), **options)


def test_save_pretrained_round_trip(tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert names == {"config.json", "model.safetensors", "processor_config.json"}
    assert str(combo_hf.ASSETS) not in (tmp_path / "config.json").read_text()
    again = transformers.pipeline("audio-visual-segmentation", model=str(tmp_path), device="cpu", fps=2)
    source = make_input(2, 2)
    np.testing.assert_array_equal(
        scores(again(source, return_maps=True)), scores(tiny_pipe(source, fps=2, return_maps=True))
    )


def test_a_processor_is_needed(tiny_pipe):
    with pytest.raises(ValueError, match="processor"):
        combo_hf.AudioVisualSegmentationPipeline(tiny_pipe.model, device="cpu")


def test_half_precision_weights(tiny_folder):
    pipe = combo_hf.load_pipeline(tiny_folder, dtype="bfloat16", device="cpu")
    (frame,) = pipe(make_input(1), return_maps=True)["frames"]
    assert frame["scores"].dtype == np.float32 and np.isfinite(frame["scores"]).all()


@pytest.mark.parametrize("name", ["no/such/folder", "nosuch", "./nosuch", "/no/such"])
def test_load_pipeline_names_a_missing_folder(name):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        combo_hf.load_pipeline(name)
