"""Eight synthesised timbres, one for each category of the synthetic clips.

Everything is plain numpy and a function of the random generator only. A timbre is a texture without silences longer
than about half a second, so that every 0.96 s example of the VGGish front end hears the source; starting and stopping
is the business of [`mix_sources`].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from combo_hf.data.row_format import SAMPLING_RATE


FADE_SECONDS = 0.04
SOURCE_RMS = 0.08  # level of a continuous source
SOURCE_PEAK = 0.5  # sparse sources (clock, drum) reach this before they reach the RMS
ROOM_NOISE_RMS = 0.0008  # a recording is never digitally silent; about 40 dB below a source


def _times(seconds: float) -> np.ndarray:
    return np.arange(int(round(seconds * SAMPLING_RATE))) / SAMPLING_RATE  # (N,)


def _onsets(rng: np.random.Generator, seconds: float, rate: float, jitter: float) -> np.ndarray:
    """Event times in s: a steady `rate` per second, each event shifted by up to `jitter` of a period."""
    steady = np.arange(0.02, seconds, 1.0 / rate)
    return steady + rng.uniform(0, jitter / rate, steady.shape)


def _place(events: Sequence[tuple[float, np.ndarray]], seconds: float) -> np.ndarray:
    """Add events ((start in s, samples)) onto an empty waveform of `seconds`."""
    out = np.zeros(int(round(seconds * SAMPLING_RATE)))
    for start, samples in events:
        first = int(start * SAMPLING_RATE)
        part = samples[: max(0, len(out) - first)]
        out[first : first + len(part)] += part
    return out


def _coloured_noise(rng: np.random.Generator, num_samples: int, low: float, high: float) -> np.ndarray:
    """White noise band-limited to `low`..`high` Hz with soft edges, RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    hertz = np.fft.rfftfreq(num_samples, 1 / SAMPLING_RATE)
    weight = 1 / (1 + (low / np.maximum(hertz, 1.0)) ** 4) / (1 + (hertz / high) ** 4)
    noise = np.fft.irfft(spectrum * weight, num_samples)
    return noise / (np.sqrt(np.mean(noise**2)) + 1e-12)


def bell(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Struck bell: inharmonic partials (hum, prime, tierce, quint, ...) that decay, struck again and again."""
    prime = rng.uniform(850, 1300)
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.74, 3.76, 5.1])
    levels = np.array([0.35, 1.0, 0.7, 0.4, 0.8, 0.45, 0.3, 0.2]) * rng.uniform(0.7, 1.3, 8)
    decays = np.array([1.2, 0.9, 0.8, 0.6, 0.5, 0.3, 0.2, 0.12])
    t = _times(1.6)[:, None]
    strike = (levels * np.exp(-t / decays) * np.sin(2 * np.pi * prime * ratios * t)).sum(1)
    starts = _onsets(rng, seconds, rng.uniform(1.6, 2.4), 0.1)
    return _place([(start, strike * rng.uniform(0.7, 1.0)) for start in starts], seconds)


def drum(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Low thumps: a sine that falls in pitch, with a burst of dull noise."""
    top, bottom = rng.uniform(110, 150), rng.uniform(55, 75)
    t = _times(0.35)
    pitch = bottom + (top - bottom) * np.exp(-t / 0.04)
    thump = np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE) * np.exp(-t / 0.11)
    events = []
    for start in _onsets(rng, seconds, rng.uniform(2.6, 4.2), 0.15):
        skin = _coloured_noise(rng, len(t), 80, 500) * np.exp(-t / 0.035)
        events.append((start, (thump + 0.25 * skin) * rng.uniform(0.6, 1.0)))
    return _place(events, seconds)


def flute(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Breathy sine melody between 700 and 1200 Hz with vibrato."""
    scale = 700 * 2 ** (np.array([0, 2, 4, 5, 7, 9]) / 12) * rng.uniform(0.98, 1.02)
    events, start = [], 0.0
    while start < seconds:
        length = rng.uniform(0.25, 0.6)
        t = _times(length)
        vibrato = 1 + 0.006 * np.sin(2 * np.pi * 5.2 * t)
        phase = 2 * np.pi * np.cumsum(rng.choice(scale) * vibrato) / SAMPLING_RATE
        tone = np.sin(phase) + 0.12 * np.sin(2 * phase) + 0.04 * np.sin(3 * phase)
        events.append((start, tone * np.minimum(1, np.minimum(t, length - t) / 0.03)))
        start += length
    breath = _coloured_noise(rng, int(round(seconds * SAMPLING_RATE)), 900, 4000)
    return _place(events, seconds) + 0.06 * breath


def car(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Engine: a low rumbling sawtooth, modulated in amplitude, over low road noise."""
    t = _times(seconds)
    revs = rng.uniform(42, 70) * (1 + 0.08 * np.sin(2 * np.pi * rng.uniform(0.1, 0.3) * t + rng.uniform(0, 6)))
    turns = np.cumsum(revs) / SAMPLING_RATE
    saw = sum(np.sin(2 * np.pi * k * turns + 0.3 * k) / k for k in range(1, 13))
    beat = 1 + 0.45 * np.sin(2 * np.pi * rng.uniform(9, 14) * t)
    return saw * beat + 0.5 * _coloured_noise(rng, len(t), 60, 900)


def bird(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Fast chirps that sweep between 3 and 6 kHz."""
    centre, events = rng.uniform(3800, 5000), []
    for start in _onsets(rng, seconds, rng.uniform(5, 8), 0.3):
        t = _times(rng.uniform(0.06, 0.11))
        sweep = rng.uniform(-900, 900) * (t / t[-1] - 0.5) * 2
        phase = 2 * np.pi * np.cumsum(np.clip(centre + rng.uniform(-300, 300) + sweep, 3000, 6000)) / SAMPLING_RATE
        events.append((start, np.sin(phase) * np.hanning(len(t)) * rng.uniform(0.6, 1.0)))
    return _place(events, seconds)


def emergency_car(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Two-tone siren: two nasal tones a fourth apart that take turns."""
    t = _times(seconds)
    low = rng.uniform(420, 480)
    hold = rng.uniform(0.38, 0.5)
    high_now = np.floor((t + rng.uniform(0, 1)) / hold) % 2
    phase = 2 * np.pi * np.cumsum(low * np.where(high_now > 0, 4 / 3, 1.0)) / SAMPLING_RATE
    return np.sum([np.sin(k * phase) / k**0.6 for k in (1, 3, 5, 7)], axis=0)


def guitar(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Plucked strings: a noise burst in a delay line that averages neighbours (Karplus and Strong, 1983)."""
    scale = 131 * 2 ** (np.array([0, 3, 5, 7, 10, 12]) / 12) * rng.uniform(0.97, 1.03)
    events = []
    for start in _onsets(rng, seconds, rng.uniform(3, 4.5), 0.2):
        period = int(SAMPLING_RATE / rng.choice(scale))
        line, periods = rng.uniform(-1, 1, period), []
        for _ in range(int(0.9 * SAMPLING_RATE / period)):
            periods.append(line)
            line = 0.497 * (line + np.concatenate([line[-1:], line[:-1]]))
        events.append((start, np.concatenate(periods) * rng.uniform(0.7, 1.0)))
    return _place(events, seconds)


def clock(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Sharp ticks of a few milliseconds, tick and tock in turn."""
    resonance, events = rng.uniform(2200, 2700), []
    t = _times(0.03)
    for number, start in enumerate(_onsets(rng, seconds, rng.uniform(3.6, 4.4), 0.02)):
        hertz = resonance * (1.0 if number % 2 else 0.85)
        ring = np.sin(2 * np.pi * hertz * t) + 0.7 * np.sin(2 * np.pi * 2.3 * hertz * t)
        events.append((start, ring * np.exp(-t / 0.007) + rng.standard_normal(len(t)) * np.exp(-t / 0.0012)))
    return _place(events, seconds)


SOUNDS: Mapping[str, Callable[[np.random.Generator, float], np.ndarray]] = {
    "bell": bell,
    "bird": bird,
    "car": car,
    "clock": clock,
    "drum": drum,
    "emergency-car": emergency_car,
    "flute": flute,
    "guitar": guitar,
}


def synthesize_sound(category: str, rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Synthesise one source that sounds all the time.

    Args:
        category (`str`): a key of `SOUNDS`.
        rng (`np.random.Generator`): decides pitch, rhythm and level (up to 3 dB around the nominal level).
        seconds (`float`): length.

    Returns:
        `np.ndarray`: float32 (N,), 16 kHz.

    Raises:
        ValueError: if the category is unknown or the length is not positive.
    """
    if category not in SOUNDS:
        raise ValueError(f"unknown category {category!r}; use one of {sorted(SOUNDS)}")
    if seconds <= 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    wave = SOUNDS[category](rng, seconds)
    gain = min(SOURCE_RMS / (np.sqrt(np.mean(wave**2)) + 1e-9), SOURCE_PEAK / (np.abs(wave).max() + 1e-9))
    return (wave * gain * 10 ** (rng.uniform(-3, 3) / 20)).astype(np.float32)


def second_gate(schedule: Sequence[bool]) -> np.ndarray:
    """Turn one flag per second into a gain (N,) with raised-cosine fades inside the sounding seconds."""
    gate = np.repeat(np.asarray(schedule, dtype=np.float32), SAMPLING_RATE)
    fade = int(FADE_SECONDS * SAMPLING_RATE)
    ramp = (0.5 - 0.5 * np.cos(np.pi * np.arange(fade) / fade)).astype(np.float32)
    edges = np.diff(np.concatenate([[0], np.asarray(schedule, dtype=np.int8), [0]]))
    for second in np.flatnonzero(edges == 1):
        gate[second * SAMPLING_RATE : second * SAMPLING_RATE + fade] *= ramp
    for second in np.flatnonzero(edges == -1):
        gate[second * SAMPLING_RATE - fade : second * SAMPLING_RATE] *= ramp[::-1]
    return gate


def mix_sources(
    sources: Sequence[tuple[str, Sequence[bool], np.random.Generator]], seconds: int, rng: np.random.Generator
) -> np.ndarray:
    """Mix gated sources over faint room noise.

    Args:
        sources: (category, sounding flag per second, generator of its own) for each source; silent ones may stay in.
        seconds (`int`): length of the clip.
        rng (`np.random.Generator`): for the room noise.

    Returns:
        `np.ndarray`: float32 (seconds * 16000,), within -0.95..0.95.
    """
    mix = ROOM_NOISE_RMS * _coloured_noise(rng, seconds * SAMPLING_RATE, 50, 2000).astype(np.float32)
    for category, schedule, own_rng in sources:
        if any(schedule):
            mix += synthesize_sound(category, own_rng, seconds) * second_gate(schedule)
    return (mix * min(1.0, 0.95 / np.abs(mix).max())).astype(np.float32)
