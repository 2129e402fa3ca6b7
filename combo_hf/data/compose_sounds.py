"""Recordings -> the sound of a composed clip, as a microphone far away in a room would hear it.

A recording from a library is close, dry and clean; the sound of a video is none of that. [`Microphone`] draws what
lies between the two: the response of microphone and codec, the echoes of a room, noise, and level. All of it is one
spectrum and one sum, so that a second of sound costs about a millisecond.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from combo_hf.data.row_format import SAMPLING_RATE
from combo_hf.data.sound import decode_sound


KEPT_RECORDINGS = 1024  # decoded recordings that a process holds, about 0.3 MB each
RAMP_S = 0.02  # a source comes and goes in so many seconds, without a click
LEVELS_DB = (-34.0, -14.0)  # RMS of a source, relative to full scale
NEAR_LEVEL_DB = -20.0  # without a microphone's distance
FLOOR_DB = (-75.0, -45.0)  # RMS of the noise of a quiet recording
SNR_DB = (3.0, 40.0)  # of the loudest source over the noise
ECHO_S = (0.08, 0.9)  # reverberation time (-60 dB)
DIRECT_DB = (-3.0, 15.0)  # direct sound over echoes
TILT_DB = 8.0  # at most, from the lowest to the highest octave, either way
LOW_PASS_HZ = (3000.0, 7800.0)
HIGH_PASS_HZ = (30.0, 300.0)
QUIET, PLACES = 0.3, 8  # an excerpt has this share of its recording's RMS, or is the last of so many
PAUSE = 0.04  # of the RMS of the loudest second: 28 dB below it
LOOP_S = 0.05  # a recording shorter than wanted is repeated, faded over into itself


@functools.lru_cache(maxsize=KEPT_RECORDINGS)
def read_recording(path: Path) -> np.ndarray:
    """Mono samples (N,) float32 at 16 kHz of a sound file, its peak at 1.

    Raises:
        ValueError: it cannot be read, is silent, or shorter than a tenth of a second; names the file.
    """
    from scipy.signal import resample_poly

    try:
        samples, rate = decode_sound(path.read_bytes())
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: this sound cannot be read ({error}).") from error
    mono = samples.mean(axis=1, dtype=np.float64)
    if rate != SAMPLING_RATE:
        divisor = int(np.gcd(rate, SAMPLING_RATE))
        mono = resample_poly(mono, SAMPLING_RATE // divisor, rate // divisor)
    peak = np.abs(mono).max(initial=0.0)
    if len(mono) < SAMPLING_RATE // 10 or not np.isfinite(peak) or peak < 1e-4:
        raise ValueError(
            f"{path}: wanted at least 0.1 s of sound, got {len(mono) / rate:.2f} s with a peak of {peak}."
        )
    return (mono / peak).astype(np.float32)


def excerpt(recording: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """`samples` of a recording from a random place on; a shorter one is repeated, each time faded into itself."""
    fade = min(int(LOOP_S * SAMPLING_RATE), len(recording) // 2)
    while len(recording) < samples:
        rise = np.linspace(0, 1, fade, dtype=np.float32)
        joint = recording[-fade:] * (1 - rise) + recording[:fade] * rise
        recording = np.concatenate([recording[:-fade], joint, recording[fade:]])
    loud = QUIET * _rms(recording)
    for _ in range(PLACES):  # not a pause, if there is anything else
        start = int(rng.integers(len(recording) - samples + 1))
        if _rms(recording[start : start + samples]) >= loud:
            break
    return recording[start : start + samples]


def audible(wave: np.ndarray) -> list[bool]:
    """For every second of (T * 16000,): is more of the source heard than its pauses?"""
    levels = [_rms(second) for second in wave.reshape(-1, SAMPLING_RATE)]
    return [level > PAUSE * max(levels) for level in levels]


@dataclass(frozen=True)
class Source:
    """A recording that sounds in some seconds of a clip.

    Attributes:
        recording: mono, 16 kHz.
        schedule: one flag per second.
        level_db: of its RMS while it sounds, relative to the other sources.
    """

    recording: np.ndarray
    schedule: tuple[bool, ...]
    level_db: float = 0.0

    def sound(self, rng: np.random.Generator) -> np.ndarray:
        """float32 (T * 16000,), RMS of the sounding seconds as wanted."""
        wave = excerpt(self.recording, len(self.schedule) * SAMPLING_RATE, rng)
        gate = np.repeat(np.asarray(self.schedule, np.float32), SAMPLING_RATE)
        if not all(self.schedule):
            ramp = max(1, int(RAMP_S * SAMPLING_RATE))
            gate = np.convolve(gate, np.full(ramp, 1 / ramp, np.float32), mode="same")
        return (wave * gate) * np.float32(_amplitude(self.level_db) / max(_rms(wave[gate > 0.5]), 1e-5))


@dataclass(frozen=True)
class Microphone:
    """What a sound goes through on its way into a video.

    Attributes:
        strength: 0: nothing but a level; 1: everything that follows, each with its own chance.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"microphone: wanted a strength in [0, 1], got {self.strength}.")

    def record(self, sources: Sequence[np.ndarray], samples: int, rng: np.random.Generator) -> np.ndarray:
        """The sum of sources, each (samples,), as it is recorded: float32 (samples,) in [-1, 1].

        Without a source: silence, which is noise or digital silence.
        """
        total = np.zeros(samples, np.float32)
        for source in sources:
            total += source
        loudness = _rms(total[total != 0]) if len(sources) else 0.0
        near = rng.random() >= self.strength
        if not loudness:
            level = 0.0 if near or rng.random() < 0.3 else _amplitude(rng.uniform(*FLOOR_DB))
            return np.clip(level * _noise(samples, rng), -1, 1).astype(np.float32)
        total *= _amplitude(NEAR_LEVEL_DB if near else rng.uniform(*LEVELS_DB)) / loudness
        if not near:
            total = self._through_room(total, rng)
            total += _noise(samples, rng) * _rms(total) * _amplitude(-rng.uniform(*SNR_DB))
        return np.clip(total, -1, 1).astype(np.float32)

    def _through_room(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Echoes, and the response of microphone and codec, by one product of spectra."""
        from scipy import fft

        length = len(wave)
        echoes = _echoes(rng) if rng.random() < 0.7 * self.strength else np.ones(1, np.float32)
        size = fft.next_fast_len(length + len(echoes) - 1, real=True)
        response = _response(np.fft.rfftfreq(size, 1 / SAMPLING_RATE).astype(np.float32), self.strength, rng)
        if len(echoes) > 1:
            response = response * fft.rfft(echoes, size)
        before = _rms(wave)
        wave = fft.irfft(fft.rfft(wave, size) * response, size)[:length]
        return (wave * (before / max(_rms(wave), 1e-9))).astype(np.float32)


def _response(frequency: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gain by frequency: a tilt, a bump, a high-pass and a low-pass."""
    octaves = np.log2(np.maximum(frequency, 30.0) / 500.0)  # -4 .. 4
    gain_db = strength * rng.uniform(-TILT_DB, TILT_DB) * octaves / 8
    gain_db = gain_db + strength * rng.uniform(-6, 6) * np.exp(-((octaves - rng.uniform(-3, 3)) ** 2))
    gain = 10 ** (gain_db / 20)
    if rng.random() < 0.6 * strength:
        gain = gain / np.sqrt(1 + (rng.uniform(*HIGH_PASS_HZ) / np.maximum(frequency, 1.0)) ** 4)
    if rng.random() < 0.5 * strength:
        gain = gain / np.sqrt(1 + (frequency / rng.uniform(*LOW_PASS_HZ)) ** 16)
    return gain


def _echoes(rng: np.random.Generator) -> np.ndarray:
    """Impulse response of a room: the direct sound, then noise that dies away."""
    seconds = np.exp(rng.uniform(*np.log(ECHO_S)))
    time = np.arange(int(seconds * SAMPLING_RATE), dtype=np.float32) / SAMPLING_RATE
    tail = rng.standard_normal(len(time), np.float32) * np.float32(10) ** (-3 * time / np.float32(seconds))
    tail[: int(rng.uniform(0.001, 0.02) * SAMPLING_RATE)] = 0  # until the first wall has answered
    tail *= _amplitude(-rng.uniform(*DIRECT_DB)) / max(np.sqrt((tail**2).sum()), 1e-9)
    tail[0] = 1.0
    return tail


def _noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of RMS 1 between white and brown, as wind, traffic and amplifiers make it."""
    from scipy import fft

    size = fft.next_fast_len(samples, real=True)
    spectrum = fft.rfft(rng.standard_normal(size, np.float32))
    exponent = rng.uniform(0, 1.0)
    hertz = np.arange(len(spectrum), dtype=np.float32) * (SAMPLING_RATE / size)
    noise = fft.irfft(spectrum * np.maximum(hertz, 50.0) ** np.float32(-exponent), size)[:samples]
    return noise / max(_rms(noise), 1e-9)


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0


def _amplitude(decibels: float) -> float:
    return 10.0 ** (decibels / 20)
