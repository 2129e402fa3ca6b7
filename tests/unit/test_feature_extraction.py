import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from combo_hf.feature_extraction_combo import ComboFeatureExtractor, resample, samples_for, to_mono


SILENCE = np.log(0.01)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "num_frames", "wanted"),
    [
        (80000, None, 5),
        (160000, None, 10),
        (76800, None, 5),  # 4.8 s: the release gives 4 examples
        (1600, None, 1),
        (80000, 3, 3),
        (80000, 8, 8),
        (1, 2, 2),
    ],
)
def test_number_of_examples(samples, num_frames, wanted):
    features = ComboFeatureExtractor()(noise(samples), 16000, num_frames)["input_features"]
    assert features.shape == (wanted, 1, 96, 64)
    assert torch.isfinite(features).all()


def test_missing_sound_is_silence_not_zero():
    features = ComboFeatureExtractor()(noise(16000), 16000, num_frames=3)["input_features"]
    np.testing.assert_allclose(features[2].numpy(), SILENCE, atol=1e-6)
    assert features[0].mean() > SILENCE + 1


def test_first_examples_do_not_depend_on_what_follows():
    sound = noise(80000)
    extractor = ComboFeatureExtractor()
    short = extractor(sound[: samples_for(2)], 16000, num_frames=2)["input_features"]
    assert torch.equal(short, extractor(sound, 16000)["input_features"][:2])


def test_long_sound_in_chunks_equals_its_parts():
    extractor = ComboFeatureExtractor()
    sound = noise(70 * 16000)
    whole = extractor(sound, 16000, num_frames=70)["input_features"]
    begin = 60 * 96 * 160  # example 60
    part = extractor(sound[begin:], 16000, num_frames=8)["input_features"]
    torch.testing.assert_close(whole[60:68], part, rtol=0, atol=1e-6)


def test_a_clip_is_the_same_alone_and_in_a_batch():
    extractor = ComboFeatureExtractor()
    sounds = [noise(80000, 1), noise(40000, 2)]
    both = extractor(sounds, 16000, num_frames=[5, 3])["input_features"]
    assert both.shape[0] == 8
    assert torch.equal(both[5:], extractor(sounds[1], 16000, num_frames=3)["input_features"])


@pytest.mark.parametrize(
    "convert",
    [
        lambda pcm: pcm,
        lambda pcm: (pcm / 2**15).astype(np.float32),
        lambda pcm: pcm.astype(np.int32) << 16,
        lambda pcm: torch.from_numpy(pcm / 2**15),
        lambda pcm: (pcm / 2**15).tolist(),
        lambda pcm: np.stack([pcm, pcm], axis=1),
        lambda pcm: np.stack([pcm, pcm], axis=0),
    ],
    ids=["int16", "float32", "int32", "tensor", "list", "samples-first", "channels-first"],
)
def test_kinds_of_waveforms_agree(convert):
    pcm = (noise(16000) * 2**15).astype(np.int16)
    torch.testing.assert_close(to_mono(convert(pcm)), torch.from_numpy(pcm / 2**15), rtol=0, atol=1e-7)


def test_channels_are_averaged():
    left = noise(16000)
    assert to_mono(np.stack([left, -left], axis=1)).abs().max() == 0


def test_eight_bit_sound_is_centred():
    assert to_mono(np.full(100, 128, np.uint8)).abs().max() == 0


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 11127])
def test_a_tone_stays_where_it_is(rate):
    tone = [np.sin(2 * np.pi * 1000 * np.arange(2 * r) / r) for r in (rate, 16000)]
    extractor = ComboFeatureExtractor()
    got, wanted = (extractor(t, r, 2)["input_features"] for t, r in zip(tone, (rate, 16000), strict=True))
    peak = wanted[0].mean(dim=(0, 1)).argmax()
    assert got[0].mean(dim=(0, 1)).argmax() == peak
    assert (got[0, 0, 10:90, peak] - wanted[0, 0, 10:90, peak]).abs().max() < 0.05


@pytest.mark.parametrize(
    ("waveform", "arguments", "error", "message"),
    [
        (noise(100), {"sampling_rate": None}, ValueError, "sampling_rate is missing"),
        (noise(100), {"sampling_rate": 0}, ValueError, "1000 to"),
        (noise(100), {"sampling_rate": 44100.5}, ValueError, "whole number"),
        (np.zeros(0, np.float32), {}, ValueError, "no samples"),
        ([], {}, ValueError, "empty list"),
        (np.array([0.0, np.nan]), {}, ValueError, "NaN"),
        (np.array([0.0, np.inf]), {}, ValueError, "infinite"),
        (np.zeros((2, 2, 2)), {}, ValueError, "shape"),
        (np.zeros((2, 2)), {}, ValueError, "channels"),
        (noise(100) * 2**15, {}, ValueError, "32768"),
        (np.array(["a"]), {}, TypeError, "float"),
        ([noise(100)], {"num_frames": [1, 2]}, ValueError, "2 entries for 1"),
        ([noise(100)], {"num_frames": [0]}, ValueError, "at least 1"),
    ],
)
def test_bad_sound_is_refused(waveform, arguments, error, message):
    with pytest.raises(error, match=message):
        ComboFeatureExtractor()(waveform, **{"sampling_rate": 16000, **arguments})


def test_torchaudio_is_not_needed():
    code = (
        "import sys, numpy; sys.modules['torchaudio'] = None;"
        "import combo_hf; print(combo_hf.ComboFeatureExtractor()(numpy.zeros(8000), 8000)['input_features'].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("torch.Size([1, 1, 96, 64])", "")


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000, 16025, 768000])
@pytest.mark.parametrize("length", [1, 999, 20011])
def test_resampling_is_torchaudio_s_with_the_same_filter(rate, length):
    transforms = pytest.importorskip("torchaudio.transforms", exc_type=(ImportError, OSError, RuntimeError))
    options = {"lowpass_filter_width": 46, "rolloff": 0.9173, "resampling_method": "sinc_interp_kaiser", "beta": 13.03}
    sound = torch.from_numpy(noise(length)).double()
    wanted = transforms.Resample(rate, 16000, dtype=torch.float64, **options)(sound)
    torch.testing.assert_close(resample(sound, rate), wanted, rtol=0, atol=1e-6)  # it rounds beta to float32


def test_padding_value_is_used():
    loud = ComboFeatureExtractor(padding_value=0.5)(noise(100), 16000, 2)["input_features"]
    assert loud[1].max() > ComboFeatureExtractor()(noise(100), 16000, 2)["input_features"][1].max() + 1


@pytest.mark.parametrize("field", [{"feature_size": 80}, {"sampling_rate": 44100}])
def test_other_front_ends_are_refused(field):
    with pytest.raises(ValueError, match="VGGish"):
        ComboFeatureExtractor(**field)


def test_round_trip(tmp_path):
    ComboFeatureExtractor(padding_value=0.25).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["padding_value"] == 0.25
    again = ComboFeatureExtractor.from_pretrained(tmp_path)
    assert again.padding_value == 0.25 and again.to_dict() == ComboFeatureExtractor(padding_value=0.25).to_dict()


def test_numpy_output():
    features = ComboFeatureExtractor()(noise(16000), 16000, return_tensors="np")["input_features"]
    assert isinstance(features, np.ndarray) and features.shape == (1, 1, 96, 64)


@pytest.mark.parametrize("rate", [torch.tensor(44100), np.array(44100), np.int64(44100), 44100.0])
def test_rates_of_formatted_data_sets(rate):
    extractor, sound = ComboFeatureExtractor(), np.zeros(44100, np.float32)
    assert extractor(sound, sampling_rate=rate)["input_features"] is not None
