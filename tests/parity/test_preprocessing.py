"""Our preprocessing against numbers recorded from the official release.

| stage | tolerance | why |
|---|---|---|
| log-mel, 16 kHz sound | 1e-4 absolute | both compute in float64; measured 0.0 after rounding to float32 |
| log-mel, 44.1 kHz sound | 2e-3 absolute | another implementation of the same low-pass; measured 7.6e-4 |
| resampled waveform | 1e-4 absolute | likewise; measured 4.5e-5 at a peak of 0.3 |
| Maskige | equal to the pixel | integers |
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from combo_hf.feature_extraction_combo import ComboFeatureExtractor, _resample, to_mono
from combo_hf.maskige_combo import paint_maskige


OURS = Path(__file__).resolve().parents[1] / "fixtures" / "preprocessing.npz"
SOUNDS = ["sweep_5s", "noise_5s", "silence_5s", "clicks_5s", "chord_10s", "noise_4p8s", "chord_9p7s"]


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def assert_log_mel(arrays: dict[str, np.ndarray], name: str, sampling_rate: int, atol: float) -> None:
    wanted = arrays[f"{name}/examples"]
    got = ComboFeatureExtractor()(arrays[f"{name}/pcm16"], sampling_rate, num_frames=len(wanted))["input_features"]
    assert got.shape == wanted.shape and got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=atol)


def assert_maskige(arrays: dict[str, np.ndarray], count: int) -> None:
    masks = np.unpackbits(arrays[f"K{count}/masks_packed"], axis=-1).astype(bool)
    assert masks.shape == (count, 360, 640)
    np.testing.assert_array_equal(paint_maskige(masks), arrays[f"K{count}/rgb224"])


def test_log_mel_of_the_shipped_sound():
    assert_log_mel(load(OURS), "sweep_5s", 16000, atol=1e-4)


def test_maskige_of_the_shipped_masks():
    assert_maskige(load(OURS), 5)


@pytest.mark.parametrize("name", SOUNDS)
def test_log_mel_at_16_khz(shared: Path, name: str):
    assert_log_mel(load(shared / "goldens/combo/logmel.npz"), name, 16000, atol=1e-4)


def test_log_mel_at_44_khz_stereo(shared: Path):
    assert_log_mel(load(shared / "goldens/combo/logmel.npz"), "stereo44k_5s", 44100, atol=2e-3)


def test_resampled_waveform(shared: Path):
    arrays = load(shared / "goldens/combo/logmel.npz")
    got = _resample(to_mono(arrays["stereo44k_5s/pcm16"]), 44100).numpy()
    np.testing.assert_allclose(got, arrays["stereo44k_5s/resampled16k"], rtol=0, atol=1e-4)


def test_mel_matrix(shared: Path):
    from combo_hf.feature_extraction_combo import _mel_filters

    np.testing.assert_allclose(
        _mel_filters(), load(shared / "goldens/combo/logmel.npz")["mel_matrix"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("count", [0, 1, 5, 30, 120, 200])
def test_maskige(shared: Path, count: int):
    assert_maskige(load(shared / "goldens/combo/maskige.npz"), count)
