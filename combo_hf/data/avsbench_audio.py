"""Sound of an AVSBench clip: the wav file, the raw film, and the pickled log-mel examples of the official scripts."""

from __future__ import annotations

import collections
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from combo_hf.conversion.pickles import check_pickle
from combo_hf.data.avsbench_layout import ClipEntry, SubsetRule


SAMPLING_RATE = 16000
MAX_PICKLE = 16_000_000  # bytes; ten seconds are 246 kB
MAX_SAMPLES = 64_000_000  # 256 MB; eleven minutes of stereo at 48 kHz
SOUND_BLOCK = 1 << 18
LOG_MEL_SHAPE = (1, 96, 64)
PADDED_EXAMPLES = 10  # the official script fills up every clip of AVSS to as many


def read_log_mel(path: Path, num_frames: int, padded: bool = False) -> np.ndarray:
    """The official log-mel examples of a clip, without running anything that a pickle may bring along.

    Files of `torch.save` are read by `torch.load(weights_only=True)`. The official ones are plain pickles of a tensor,
    which that refuses; for them nothing but the two functions that rebuild a tensor may be called, and the numbers
    inside again go through `weights_only=True`.

    Args:
        path (`Path`): file.
        num_frames (`int`): T.
        padded (`bool`): of ten examples the first T count (AVSS).

    Returns:
        `np.ndarray` (T, 1, 96, 64) float32.

    Raises:
        ValueError: missing, too large, anything but a tensor of that shape, or with NaN or infinite numbers.
    """
    import torch

    data = read_bytes(path, MAX_PICKLE)
    try:
        tensor = _unpickle_tensor(data)
    except Exception as error:  # a pickle can fail in any way
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise ValueError(f"{path.name} is no pickled tensor that is safe to load ({reason}).") from error
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.ndim:
        raise ValueError(f"{path.name} holds a {type(tensor).__name__}; wanted a tensor.")
    if padded and len(tensor) == PADDED_EXAMPLES:
        tensor = tensor[:num_frames]
    if tuple(tensor.shape) != (num_frames, *LOG_MEL_SHAPE):
        wanted = (num_frames, *LOG_MEL_SHAPE)
        raise ValueError(f"{path.name} has shape {tuple(tensor.shape)}; wanted {wanted}, one example a second.")
    array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{path.name} holds NaN or infinite numbers.")
    return array


def _unpickle_tensor(data: bytes) -> Any:
    import torch

    if data[:2] == b"PK":
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    check_pickle(data)

    def storage_from(inner: bytes) -> Any:
        return torch.load(io.BytesIO(inner), map_location="cpu", weights_only=True)

    def rebuild(storage: Any, offset: int, size: Any, stride: Any, *others: Any) -> Any:
        held = storage._size()  # the public way warns of the class' age
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if offset < 0 or min((*size, *stride), default=1) < 0 or (0 not in size and last >= held):
            raise pickle.UnpicklingError("a tensor larger than its numbers")  # torch would let the storage grow
        return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, *others)

    allowed = {
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch.storage", "_load_from_bytes"): storage_from,
        ("collections", "OrderedDict"): collections.OrderedDict,
    }

    class TensorUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise pickle.UnpicklingError(f"it asks for {module}.{name}")
            return allowed[module, name]

    return TensorUnpickler(io.BytesIO(data)).load()


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """A whole file.

    Raises:
        ValueError: missing, unreadable, or larger than `limit` bytes.
    """
    try:
        if limit is not None and os.path.getsize(path) > limit:
            raise ValueError(f"{path.name} has {os.path.getsize(path)} bytes; at most {limit} are read.")
        return path.read_bytes()
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise ValueError(f"{'/'.join(path.parts[-3:])} {what}.") from error


def read_sound(data: bytes, name: str) -> tuple[np.ndarray, int, int]:
    """Decode a sound file.

    Returns:
        float32 samples (N, channels), the rate in Hz, and the number of samples that are NaN or infinite.

    Raises:
        ValueError: damaged, no sound file, or without samples.
    """
    try:
        samples, rate = decode_sound(data)
    except (RuntimeError, TypeError) as error:
        what = "is empty" if not data else f"is damaged or no sound file ({str(error).splitlines()[0][:80]})"
        raise ValueError(f"{name} {what}.") from error
    if not len(samples):
        raise ValueError(f"{name} holds no samples.")
    return samples, rate, int((~np.isfinite(samples)).sum())


def decode_sound(data: bytes) -> tuple[np.ndarray, int]:
    """Samples (N, channels) float32 and rate of a sound file, in blocks: its header may promise, and a few kB of flac
    may really hold, more silence than fits into memory.

    Raises:
        RuntimeError: soundfile's, damaged or no sound file.
        ValueError: more than `MAX_SAMPLES` numbers.
    """
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as file:
        blocks, count = [], 0
        while len(block := file.read(SOUND_BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block)
            count += block.size
            if count > MAX_SAMPLES:
                raise ValueError(f"a sound of more than {MAX_SAMPLES} samples; a clip has seconds.")
        return np.concatenate(blocks) if blocks else np.zeros((0, file.channels), np.float32), file.samplerate


def read_audio(entry: ClipEntry, home: Path, rule: SubsetRule) -> dict[str, Any]:
    """Bytes of a 16 kHz mono file: the wav as it is if it is that, else resampled; else the sound of the raw film.

    Returns:
        `dict`: bytes, and a `path` that is only a name with the right ending.

    Raises:
        ValueError: missing, damaged, without samples, or with NaN.
    """
    path = entry.path(home, rule, rule.wav)
    film = None if path.exists() else entry.video(home, rule)
    if film is not None:
        from combo_hf.media_combo import load_audio

        waveform, _ = load_audio(film)
        return _flac(waveform[: entry.num_frames * SAMPLING_RATE], entry.name)
    data = read_bytes(path)
    samples, rate, bad = read_sound(data, path.name)
    if bad:
        raise ValueError(f"{path.name} has {bad} samples that are NaN or infinite.")
    if rate == SAMPLING_RATE and samples.shape[1] == 1:
        return {"bytes": data, "path": f"{entry.name}.wav"}
    import torch
    import torchaudio

    mono = torch.from_numpy(samples.mean(axis=1))
    resampled = torchaudio.functional.resample(mono, rate, SAMPLING_RATE).numpy()
    return _flac(resampled, entry.name)


def _flac(waveform: np.ndarray, name: str) -> dict[str, Any]:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return {"bytes": buffer.getvalue(), "path": f"{name}.flac"}
