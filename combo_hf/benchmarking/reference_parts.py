"""Baselines of the parts around the network: the definitions written down directly, in numpy and torch."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from combo_hf.maskige_combo import PALETTE


RATE, WINDOW, HOP, FFT, BANDS = 16000, 400, 160, 512, 64
CROSSINGS, ROLL_OFF, BETA, TABLE = 50, 0.9173, 12.9846, 512  # "kaiser_best" of resampy
FRAMES = 96


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """(N,) to 16 kHz by a windowed sinc: every output sample is a sum over its neighbours."""
    scale = min(1.0, RATE / rate)
    count = int(len(waveform) * RATE / rate)
    width = int(CROSSINGS / scale)
    time = np.arange(count) * (rate / RATE)
    near = np.floor(time).astype(int)
    padded = np.pad(waveform, (width, width + 1))
    taps = np.arange(-width + 1, width + 1)
    table = np.arange(CROSSINGS * TABLE + 1) / TABLE
    shape = ROLL_OFF * np.sinc(ROLL_OFF * table) * np.kaiser(2 * len(table) - 1, BETA)[len(table) - 1 :]
    out = np.empty(count)
    for first in range(0, count, 8192):
        part = slice(first, first + 8192)
        index = near[part, None] + taps
        distance = np.abs(time[part, None] - index) * scale
        out[part] = (padded[index + width] * np.interp(distance, table, shape, right=0.0)).sum(1) * scale
    return out


def mel_matrix() -> np.ndarray:
    """(257, 64): HTK triangles from 125 to 7500 Hz."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins = mel(np.linspace(0, RATE / 2, FFT // 2 + 1))
    edges = np.linspace(mel(125.0), mel(7500.0), BANDS + 2)
    matrix = np.empty((FFT // 2 + 1, BANDS))
    for band in range(BANDS):
        lower, centre, upper = edges[band : band + 3]
        matrix[:, band] = np.maximum(
            0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre))
        )
    matrix[0] = 0
    return matrix


def log_mel(waveform: np.ndarray, rate: int, examples: int) -> np.ndarray:
    """(N, channels) -> VGGish log-mel (examples, 96, 64), frame by frame."""
    mono = waveform.mean(axis=1) if waveform.ndim == 2 else waveform
    if rate != RATE:
        mono = resample(mono, rate)
    window = 0.5 - 0.5 * np.cos(2 * np.pi / WINDOW * np.arange(WINDOW))
    rows = []
    for frame in range(1 + (len(mono) - WINDOW) // HOP):
        rows.append(np.abs(np.fft.rfft(mono[frame * HOP : frame * HOP + WINDOW] * window, FFT)))
    mel = np.log(np.stack(rows) @ mel_matrix() + 0.01)
    return mel[: examples * FRAMES].reshape(examples, FRAMES, BANDS).astype(np.float32)


def paint(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maskige of boolean masks (K, H, W): ascending by area, a pixel is painted once, then resized."""
    masks = masks.astype(np.uint8)  # as the release: with float64 it would take 1.6 times as long
    picture = np.zeros(masks.shape[1:], dtype=np.uint8)
    for rank, index in enumerate(np.argsort(masks.sum(axis=(1, 2))), 1):
        picture = np.where(picture == 0, masks[index] * np.uint8(rank), picture)
    image = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.NEAREST)
    image.putpalette(PALETTE.tobytes())
    return np.array(image.convert("RGB"))


def f_measure(scores: torch.Tensor, target: torch.Tensor) -> float:
    """M_F of one video (T, H, W): 255 comparisons of every pixel of every frame."""
    thresholds = torch.linspace(0, 1 - 1e-10, 255)
    total, frames = torch.zeros(255), 0
    for frame, truth in zip(scores, target.float(), strict=True):
        if truth.mean() == 0:
            continue
        curve = torch.zeros(255)
        for index in range(255):
            found = (frame >= thresholds[index]).float()
            hits = (found * truth).sum()
            precision, recall = hits / (found.sum() + 1e-20), hits / (truth.sum() + 1e-20)
            curve[index] = 1.3 * precision * recall / (0.3 * precision + recall)
        total += torch.nan_to_num(curve)
        frames += 1
    return float((total / frames).max()) if frames else 0.0


def semantic_scores(prediction: torch.Tensor, target: torch.Tensor, labels: int) -> float:
    """Mean IoU over all classes; areas of a frame by three histograms (means over frames where a class is met)."""
    found, wanted = prediction.float() + 1, target.float() + 1
    shared = found * (found == wanted).float()
    sums, seen = torch.zeros(labels), torch.zeros(labels)
    for maps in zip(shared, found, wanted, strict=True):
        overlap, predicted, true = (torch.histc(part.cpu(), bins=labels, min=1, max=labels) for part in maps)
        union = predicted + true - overlap
        sums += overlap / (union + 1e-16)
        seen += union > 0
    return float((sums / seen.clamp(min=1)).mean())
