"""Waveform -> VGGish log-mel examples, one per second of a clip.

Implements the VGGish front end (Hershey et al., ICASSP 2017): 16 kHz mono, 25 ms periodic Hann window, 10 ms hop,
512-point magnitude spectrum, 64 HTK mel bands from 125 to 7500 Hz with triangles linear in mel, log(x + 0.01),
examples of 96 frames (0.96 s) without overlap. So example i begins at 0.96 * i seconds, not at i: in a clip of 5 or
10 s it lies within its second or up to 0.4 s before it. That is what AVSBench and the published weights use. Cut
longer films into such clips.

Departure: a clip too short for its number of examples is continued with silence before the spectrum is taken (as
silence sounds: log 0.01), where the release gives fewer examples (S4, MS3) or appends zeros to the log-mel (AVSS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from .remote_code_combo import check_kind


SAMPLING_RATE = 16000  # Hz
WINDOW_LENGTH = SAMPLING_RATE * 25 // 1000  # samples
HOP_LENGTH = SAMPLING_RATE * 10 // 1000  # samples
FFT_LENGTH = 512
NUM_MEL_BINS = 64
MEL_RANGE = (125.0, 7500.0)  # Hz
LOG_OFFSET = 0.01
EXAMPLE_FRAMES = 96  # spectrum frames of one example: 0.96 s

# The filter of resampy's "kaiser_best" (50 zero crossings at a roll-off of 0.917), with which AVSBench's sounds were
# brought to 16 kHz; crossings are counted after the roll-off, 50 * 0.917 = 46, and beta is in proportion.
ZERO_CROSSINGS = 46
ROLLOFF = 0.9173
KAISER_BETA = 13.03
OUTPUTS_AT_ONCE = 64  # samples: a product of so many columns runs at full speed
RATE_STEP = 25  # Hz
MAX_SAMPLING_RATE = 768000  # Hz
MAX_FLOAT_PEAK = 1000.0
MAX_EXAMPLES = 24 * 3600  # seconds of one sound
CHUNK_EXAMPLES = 64  # bounds the memory of an hour of sound

PCM_SCALE = {"int16": (0.0, 2.0**15), "int32": (0.0, 2.0**31), "uint8": (128.0, 2.0**7)}


def samples_for(num_examples: int) -> int:
    """Samples at 16 kHz that `num_examples` log-mel examples need (5 examples: 77,040 samples = 4.815 s)."""
    return (num_examples * EXAMPLE_FRAMES - 1) * HOP_LENGTH + WINDOW_LENGTH


class ComboFeatureExtractor(SequenceFeatureExtractor):
    r"""Turns mono or multi-channel sound of any sampling rate into VGGish log-mel examples.

    Args:
        feature_size (`int`, *optional*, defaults to 64): mel bands; VGGish has 64 and no other value is accepted.
        sampling_rate (`int`, *optional*, defaults to 16000): rate in Hz of the spectrum; VGGish has 16000, likewise.
        padding_value (`float`, *optional*, defaults to 0.0): sample value that continues a sound that is too short.

    Raises:
        ValueError: `feature_size` or `sampling_rate` is not VGGish's, or `padding_value` is no sample value.

    Examples:
        >>> import numpy as np
        >>> from combo_hf import ComboFeatureExtractor
        >>> examples = ComboFeatureExtractor()(np.zeros(5 * 44100), sampling_rate=44100)["input_features"]
        >>> examples.shape, f"{examples.max():.4f}"  # silence is log(0.01)
        (torch.Size([5, 1, 96, 64]), '-4.6052')
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = NUM_MEL_BINS,
        sampling_rate: int = SAMPLING_RATE,
        padding_value: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if feature_size != NUM_MEL_BINS or sampling_rate != SAMPLING_RATE:
            raise ValueError(
                f"VGGish wants {NUM_MEL_BINS} mel bands at {SAMPLING_RATE} Hz, got feature_size={feature_size}, "
                f"sampling_rate={sampling_rate}; leave both out. The rate of a sound is an argument of the call."
            )
        if type(padding_value) not in (int, float) or not abs(padding_value) <= MAX_FLOAT_PEAK:
            raise ValueError(f"padding_value: wanted a sample value, 0 for silence, got {padding_value!r}.")
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class; settings of another class are a `ValueError`."""
        found = feature_extractor_dict.get("feature_extractor_type")
        check_kind("processor: feature_extractor_type", cls.__name__, found)
        return super().from_dict(feature_extractor_dict, **kwargs)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        num_frames: int | Sequence[int] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Compute the log-mel examples of one sound or of several.

        Args:
            raw_speech: one waveform or a list of them: numpy array, torch tensor or list of floats, (N,) or with
                channels (N, C) or (C, N) (the shorter axis is the channels, which are averaged); floats in [-1, 1] or
                PCM integers (int16, int32, uint8).
            sampling_rate (`int`): rate of every waveform in Hz. No default: a wrong rate goes unnoticed otherwise.
            num_frames (`int` or list of `int`, *optional*): examples per waveform, = frames of the clip at one a
                second. Sound beyond them is not used, missing sound is silence. Default: the duration in seconds,
                rounded, at least 1.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`] with `input_features` (F, 1, 96, 64) float32, F = sum of `num_frames`.

        Raises:
            ValueError: rate missing or impossible; a waveform is empty, not finite, of wrong rank, or looks unscaled;
                `num_frames` does not fit the waveforms.
            TypeError: a waveform is not numeric.
        """
        rate = _check_rate(sampling_rate)
        waveforms = list(raw_speech) if _is_batch(raw_speech) else [raw_speech]
        if not waveforms:
            raise ValueError("No sound: wanted a waveform or a list of waveforms, got an empty list.")
        counts = _example_counts(num_frames, len(waveforms))
        features = []
        for index, (waveform, count) in enumerate(zip(waveforms, counts, strict=True)):
            mono = resample(to_mono(waveform, name=f"audio[{index}]"), rate)
            features.append(self.log_mel(mono, count or max(1, round(len(mono) / SAMPLING_RATE))))
        return BatchFeature({"input_features": torch.cat(features)}, tensor_type=return_tensors)

    def log_mel(self, waveform: torch.Tensor, num_examples: int) -> torch.Tensor:
        """Log-mel examples of one 16 kHz waveform.

        Args:
            waveform (`torch.Tensor` of shape `(N,)`): mono, 16 kHz, any length.
            num_examples (`int`): T.

        Returns:
            `torch.Tensor` (T, 1, 96, 64) float32: natural logarithm of mel magnitude + 0.01.
        """
        missing = samples_for(num_examples) - len(waveform)
        if missing > 0:
            waveform = torch.nn.functional.pad(waveform, (0, missing), value=self.padding_value)
        window, filters = _window_and_filters()
        chunks = []
        for first in range(0, num_examples, CHUNK_EXAMPLES):
            count = min(CHUNK_EXAMPLES, num_examples - first)
            begin = first * EXAMPLE_FRAMES * HOP_LENGTH
            piece = waveform[begin : begin + samples_for(count)].to(torch.float64)
            spectrum = torch.fft.rfft(piece.unfold(0, WINDOW_LENGTH, HOP_LENGTH) * window, FFT_LENGTH)
            squares = torch.view_as_real(spectrum).square_()  # (96 * count, 257, 2); abs() takes longer
            magnitude = (squares[..., 0] + squares[..., 1]).sqrt_()
            chunks.append(torch.log(magnitude @ filters + LOG_OFFSET).float())  # (96 * count, 64)
        return torch.cat(chunks).view(num_examples, 1, EXAMPLE_FRAMES, NUM_MEL_BINS)


def to_mono(waveform: Any, name: str = "audio") -> torch.Tensor:
    """Check one waveform and average its channels.

    Args:
        waveform: array, tensor or list, (N,), (N, C) or (C, N); float in [-1, 1] or PCM integers.
        name (`str`): how to call it in an error.

    Returns:
        `torch.Tensor` (N,) float64.

    Raises:
        ValueError: empty, wrong rank, not finite, or floats far outside [-1, 1].
        TypeError: not numeric.
    """
    array = waveform.detach().cpu().numpy() if isinstance(waveform, torch.Tensor) else np.asarray(waveform)
    if array.ndim == 2:
        if array.shape[0] == array.shape[1]:
            raise ValueError(f"{name}: cannot tell channels from samples in shape {array.shape}; pass it as (N,).")
        channels = 0 if array.shape[0] < array.shape[1] else 1
    elif array.ndim != 1:
        raise ValueError(f"{name}: wanted samples of shape (N,) or (N, channels), got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(
            f"{name}: no samples (shape {array.shape}). For a silent clip pass zeros, e.g. np.zeros(80000)."
        )
    offset, scale = (0.0, 1.0) if array.dtype.kind == "f" else PCM_SCALE.get(array.dtype.name, (0.0, 0.0))
    if not scale:
        raise TypeError(
            f"{name}: wanted floats in [-1, 1] or PCM of type {', '.join(PCM_SCALE)}, got {array.dtype}; convert it."
        )
    peak = (max(float(array.max()), -float(array.min())) - offset) / scale
    if not np.isfinite(peak):
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"{name}: {bad} of {array.size} samples are NaN or infinite; replace them, e.g. np.nan_to_num."
        )
    if peak > MAX_FLOAT_PEAK:
        raise ValueError(f"{name}: floats up to {peak:.0f}, wanted [-1, 1]; divide PCM values by 32768.")
    parts = [array] if array.ndim == 1 else list(array if channels == 0 else array.T)
    return torch.from_numpy(_mean_of_channels(parts, offset, scale))


def _mean_of_channels(parts: list[np.ndarray], offset: float, scale: float) -> np.ndarray:
    """Mean of (sample - offset) / scale over channels, float64: one array, since new memory costs more than sums."""
    total = parts[0].astype(np.float64)
    for part in parts[1:]:
        total += part
    if offset:
        total -= offset * len(parts)
    if len(parts) * scale != 1:
        total /= len(parts) * scale
    return total


@lru_cache(maxsize=1)
def _window_and_filters() -> tuple[torch.Tensor, torch.Tensor]:
    """Hann window (400,) and VGGish's mel matrix (257, 64), float64. Not attributes: nothing to save or to lose."""
    filters = mel_filter_bank(
        num_frequency_bins=FFT_LENGTH // 2 + 1,
        num_mel_filters=NUM_MEL_BINS,
        min_frequency=MEL_RANGE[0],
        max_frequency=MEL_RANGE[1],
        sampling_rate=SAMPLING_RATE,
        norm=None,
        mel_scale="htk",
        triangularize_in_mel_space=True,
    )
    with torch.inference_mode(False):  # or it would serve nowhere else
        window = torch.hann_window(WINDOW_LENGTH, periodic=True, dtype=torch.float64, device="cpu")
    return window, torch.from_numpy(filters)


def _is_batch(raw_speech: Any) -> bool:
    return isinstance(raw_speech, (list, tuple)) and not (len(raw_speech) > 0 and np.isscalar(raw_speech[0]))


def _is_whole(value: Any) -> bool:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value <= MAX_EXAMPLES)


def _check_rate(sampling_rate: int | None) -> int:
    if sampling_rate is None:
        raise ValueError(
            "sampling_rate is missing: say at how many Hz the audio was sampled, e.g. sampling_rate=16000."
        )
    if isinstance(sampling_rate, (torch.Tensor, np.ndarray)) and sampling_rate.ndim == 0:  # a formatted data set's
        sampling_rate = sampling_rate.item()
    number = isinstance(sampling_rate, (int, float, np.number)) and not isinstance(sampling_rate, bool)
    if not number or sampling_rate % 1 != 0:
        raise ValueError(f"sampling_rate: wanted a whole number of Hz, got {sampling_rate!r}.")
    if not 1000 <= sampling_rate <= MAX_SAMPLING_RATE:
        raise ValueError(f"sampling_rate: wanted 1000 to {MAX_SAMPLING_RATE} Hz, got {sampling_rate}.")
    return int(sampling_rate)


def _example_counts(num_frames: Any, num_waveforms: int) -> Sequence[int | None]:
    if num_frames is None:
        return [None] * num_waveforms
    several = isinstance(num_frames, Sequence) or np.ndim(num_frames) > 0  # an array or a tensor, say
    entries = list(num_frames) if several else [num_frames] * num_waveforms
    if not all(_is_whole(count) for count in entries):
        raise ValueError(f"num_frames: wanted whole numbers of examples up to {MAX_EXAMPLES}, got {num_frames!r}.")
    counts = [int(count) for count in entries]
    if len(counts) != num_waveforms:
        raise ValueError(f"num_frames has {len(counts)} entries for {num_waveforms} waveforms; give one for each.")
    if min(counts) < 1:
        raise ValueError(f"num_frames: wanted at least 1 for every clip, got {counts}.")
    return counts


def resample(waveform: torch.Tensor, rate: int) -> torch.Tensor:
    """Bring a sound to 16 kHz by a Kaiser-windowed sinc.

    A rate that is no multiple of 25 Hz is rounded to one: it would take filters of gigabytes else.

    Args:
        waveform (`torch.Tensor` of shape `(N,)`): mono, float64.
        rate (`int`): Hz.

    Returns:
        `torch.Tensor` (ceil(16000 * N / rate),) float64.
    """
    if rate == SAMPLING_RATE:
        return waveform
    filters = _resampling_filters(RATE_STEP * round(rate / RATE_STEP))
    wanted = -(-len(waveform) * filters.rate_out // filters.rate_in)
    blocks = -(-wanted // filters.step_out)
    reach = max(first + len(taps) for first, taps in filters.groups)
    padded = torch.nn.functional.pad(waveform, (filters.width, blocks * filters.step_in + reach))
    output = waveform.new_empty(blocks, filters.step_out)
    column = 0
    for first, taps in filters.groups:
        count = taps.shape[1]
        part = output[:, column : column + count]
        # rows no longer than their distance do not overlap: the product reads them where they are, without a copy
        for start in range(0, len(taps), filters.step_in):
            piece = taps[start : start + filters.step_in]
            rows = padded[first + start :].unfold(0, len(piece), filters.step_in)[:blocks]  # (blocks, length), a view
            part.addmm_(rows, piece, beta=1 if start else 0)
        column += count
    return output.flatten()[:wanted]


class _ResamplingFilters(NamedTuple):
    """How blocks of `step_in` samples become blocks of `step_out`.

    Attributes:
        rate_in, rate_out: of the sound and of the result, without their common divisor.
        step_in, step_out: a multiple of them.
        width: input samples on either side that have a part in an output sample.
        groups: for some output samples of a block at a time, where in the block (preceded by `width` samples) their
            input begins, and its weights (input samples, output samples).
    """

    rate_in: int
    rate_out: int
    step_in: int
    step_out: int
    width: int
    groups: list[tuple[int, torch.Tensor]]


@lru_cache(maxsize=8)  # to compute them takes longer than to use them on a clip
def _resampling_filters(rate: int) -> _ResamplingFilters:
    common = math.gcd(rate, SAMPLING_RATE)
    rate_in, rate_out = rate // common, SAMPLING_RATE // common
    repeats = -(-OUTPUTS_AT_ONCE // rate_out)
    cutoff = min(rate_in, rate_out) * ROLLOFF / rate_in  # of the input's own limit
    width = math.ceil(ZERO_CROSSINGS / cutoff)
    groups = []
    for start in range(0, rate_out * repeats, OUTPUTS_AT_ONCE):
        output = torch.arange(start, min(start + OUTPUTS_AT_ONCE, rate_out * repeats), dtype=torch.float64)
        place = output * rate_in / rate_out  # of the output samples among those of the input
        first = int(place[0])
        taps = torch.arange(first - width, int(place[-1]) + width + 2, dtype=torch.float64)
        time = ((taps[:, None] - place) * cutoff).clamp_(-ZERO_CROSSINGS, ZERO_CROSSINGS)  # in zero crossings
        inside = (1 - (time / ZERO_CROSSINGS) ** 2).clamp_(min=0)
        window = torch.special.i0(KAISER_BETA * inside.sqrt()) / torch.special.i0(torch.tensor(KAISER_BETA).double())
        groups.append((first, torch.sinc(time) * window * cutoff))
    return _ResamplingFilters(rate_in, rate_out, rate_in * repeats, rate_out * repeats, width, groups)
