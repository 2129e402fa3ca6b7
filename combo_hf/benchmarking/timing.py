"""Times of several ways to do the same thing, taken in alternation, and the peak of memory of one of them.

On a machine that others use too, wall time says little and CPU time more; both are kept. A ratio is the median of the
ratios within a round, so that a while in which the machine is busy hits both sides.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


LEAST_SECONDS = 0.02  # of one sample; shorter work is repeated
MAX_REPEATS = 1000


@dataclass
class Variant:
    """One way to do the work of a case.

    Attributes:
        name: as shown.
        run: does the work once; what it returns is compared with the first variant's.
        dtype: of most of its arithmetic, `"float32"` or `"bfloat16"`: which product rate is its limit.
        bytes: least traffic in bytes where torch does not do the work (numpy, files).
        memory: also measure the peak of memory.
        held: bytes that are held already before the run and belong to it (weights, state of the optimizer).
        remark: more to say about its output, added to the note of the case.
    """

    name: str
    run: Callable[[], Any]
    dtype: str = "float32"
    bytes: float | None = None
    memory: bool = False
    held: float = 0.0
    remark: Callable[[], str] | None = None


@dataclass
class Samples:
    """Seconds of one run, wall and CPU (all threads), one entry per round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def median(self, clock: str) -> float:
        """Median over the rounds. clock: `"wall"` or `"cpu"`."""
        return statistics.median(getattr(self, clock))


def compare(variants: Sequence[Variant], rounds: int, device: str = "cpu", repeat: bool = True) -> dict[str, Samples]:
    """Time every variant in every round, one after the other.

    Args:
        variants: their names differ. Each should have run once before, so that nothing is built while it is timed.
        rounds (`int`): at least 1.
        device (`str`): whose work is waited for.
        repeat (`bool`): short work is repeated within a round; off: for a look whether all runs.

    Raises:
        ValueError: no round, or two variants of one name.
    """
    names = [variant.name for variant in variants]
    if rounds < 1 or len(set(names)) != len(names):
        raise ValueError(f"wanted at least one round and variants of different names, got {rounds} and {names}.")
    repeats = {variant.name: _repeats(variant.run, device) if repeat else 1 for variant in variants}
    samples = {name: Samples() for name in names}
    for _ in range(rounds):
        for variant in variants:
            wall, cpu = _sample(variant.run, repeats[variant.name], device)
            samples[variant.name].wall.append(wall)
            samples[variant.name].cpu.append(cpu)
    return samples


def ratio(plain: Samples, other: Samples, clock: str) -> float:
    """How many times faster `other` is: the median over the rounds."""
    pairs = zip(getattr(plain, clock), getattr(other, clock), strict=True)
    return statistics.median(a / max(b, 1e-12) for a, b in pairs)


def _repeats(run: Callable[[], Any], device: str) -> int:
    wall, _ = _sample(run, 1, device)
    return max(1, min(MAX_REPEATS, round(LEAST_SECONDS / max(wall, 1e-9))))


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given; nothing to wait for on a processor."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], Any], device: str = "cpu") -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    return _sample(run, 1, device)


def _sample(run: Callable[[], Any], repeats: int, device: str) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def peak_bytes(run: Callable[[], Any], device: str = "cpu") -> int | None:
    """Bytes by which the process (on a GPU: its tensors there) grows at its largest while `run` runs; `None` where
    the system does not tell."""
    gc.collect()
    if torch.device(device).type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):  # give freed memory back, or its reuse would not be seen
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    start = resident_bytes()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    except OSError:
        return None
    run()
    peak = _status("VmHWM")
    return None if peak is None or start is None else max(0, peak - start)


def resident_bytes() -> int | None:
    """Memory of this process, bytes."""
    return _status("VmRSS")


def _status(key: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None
