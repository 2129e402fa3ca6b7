"""Our preprocessing against numbers recorded from the official release."""

from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import Goldens
from tolerances import allowed

from combo_hf.feature_extraction_combo import ComboFeatureExtractor, resample, to_mono
from combo_hf.maskige_combo import paint_maskige


OURS = Path(__file__).resolve().parents[1] / "fixtures" / "preprocessing.npz"
SOUNDS = ["sweep_5s", "noise_5s", "silence_5s", "clicks_5s", "chord_10s", "noise_4p8s", "chord_9p7s"]


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def assert_log_mel(arrays: dict[str, np.ndarray], name: str, sampling_rate: int, stage: str) -> None:
    wanted = arrays[f"{name}/examples"]
    got = ComboFeatureExtractor()(arrays[f"{name}/pcm16"], sampling_rate, num_frames=len(wanted))["input_features"]
    assert got.shape == wanted.shape and got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=allowed(stage))


def assert_maskige(arrays: dict[str, np.ndarray], count: int) -> None:
    masks = np.unpackbits(arrays[f"K{count}/masks_packed"], axis=-1).astype(bool)
    assert masks.shape == (count, 360, 640)
    np.testing.assert_array_equal(paint_maskige(masks), arrays[f"K{count}/rgb224"])


def test_log_mel_of_the_shipped_sound():
    assert_log_mel(load(OURS), "sweep_5s", 16000, stage="log_mel")


def test_maskige_of_the_shipped_masks():
    assert_maskige(load(OURS), 5)


@pytest.mark.parametrize("name", SOUNDS)
def test_log_mel_at_16_khz(goldens: Goldens, name: str):
    assert_log_mel(goldens.arrays("combo/logmel.npz"), name, 16000, stage="log_mel")


def test_log_mel_at_44_khz_stereo(goldens: Goldens):
    assert_log_mel(goldens.arrays("combo/logmel.npz"), "stereo44k_5s", 44100, stage="log_mel_resampled")


def test_resampled_waveform(goldens: Goldens):
    arrays = goldens.arrays("combo/logmel.npz")
    got = resample(to_mono(arrays["stereo44k_5s/pcm16"]), 44100).numpy()
    np.testing.assert_allclose(got, arrays["stereo44k_5s/resampled16k"], rtol=0, atol=allowed("resampled_waveform"))


def test_mel_matrix(goldens: Goldens):
    from combo_hf.feature_extraction_combo import _window_and_filters

    matrix = goldens.arrays("combo/logmel.npz")["mel_matrix"]
    np.testing.assert_allclose(_window_and_filters()[1], matrix, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 5, 30, 120, 200])
def test_maskige(goldens: Goldens, count: int):
    assert_maskige(goldens.arrays("combo/maskige.npz"), count)
