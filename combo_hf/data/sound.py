"""Sound files that may be damaged, or made by somebody else -> samples."""

from __future__ import annotations

import io

import numpy as np


MAX_SAMPLES = 64_000_000  # 256 MB; eleven minutes of stereo at 48 kHz
SOUND_BLOCK = 1 << 18


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
