"""Runs the cases one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from combo_hf.benchmarking.cases import Case, Settings
from combo_hf.benchmarking.machine import Machine, count_work, measure_machine
from combo_hf.benchmarking.report import Result
from combo_hf.benchmarking.timing import Variant, compare, peak_bytes, ratio


QUICK_MATRIX, QUICK_COPY = 256, 1 << 22


@dataclass
class BenchmarkOptions:
    """What to measure.

    Attributes:
        only: parts of names of cases; empty: all.
        rounds: of every case; medians are taken.
        quick: tiny networks and videos, one round: a test that everything runs.
        compile: also `torch.compile`.
        threads: of torch; `None`: as it is.
        device: `"cpu"`, or a GPU such as `"cuda"`, for the network, its training and whole videos.
    """

    only: Sequence[str] = ()
    rounds: int = 5
    quick: bool = False
    compile: bool = False
    threads: int | None = None
    device: str = "cpu"


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    from combo_hf.benchmarking.network import network_cases
    from combo_hf.benchmarking.parts import part_cases
    from combo_hf.benchmarking.videos import video_cases

    return [*network_cases(), *part_cases(), *video_cases()]


def case_names() -> list[str]:
    """What `only` may name."""
    return [case.name for case in all_cases()]


def run_benchmark(
    options: BenchmarkOptions, progress: Callable[[Result], None] | None = None
) -> tuple[list[Result], Machine]:
    """Measure.

    Args:
        options ([`BenchmarkOptions`])
        progress: called with every line as it is known.

    Raises:
        ValueError: nothing of this name, or no round.
        ImportError: a case needs an extra that is not installed.
    """
    cases = [case for case in all_cases() if not options.only or any(part in case.name for part in options.only)]
    if not cases:
        raise ValueError(f"no case has {' or '.join(options.only)} in its name; known: {', '.join(case_names())}.")
    if options.rounds < 1:
        raise ValueError(f"rounds: wanted at least 1, got {options.rounds}.")
    if torch.device(options.device).type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {options.device}: torch finds no CUDA device here; leave it out for the CPU.")
        cases = [case for case in cases if case.gpu]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(options.threads or before)
        quick = {"rounds": 1, "size": QUICK_MATRIX, "copied": QUICK_COPY} if options.quick else {}
        machine = measure_machine(options.device, **quick)
        results: list[Result] = []
        for case in cases:
            for result in run_case(case, options, machine):
                results.append(result)
                if progress is not None:
                    progress(result)
            gc.collect()
    finally:
        torch.set_num_threads(before)
    return results, machine


def run_case(case: Case, options: BenchmarkOptions, machine: Machine) -> list[Result]:
    """Lines of one case."""
    settings = Settings(quick=options.quick, compile=options.compile, device=options.device)
    if case.measure is not None:
        return case.measure(settings, machine, case.name)
    variants = case.build(settings)
    rounds = 1 if options.quick else min(options.rounds, case.rounds or options.rounds)
    work, outputs = [], []
    for variant in variants:
        flops, moved, out = _work(variant, case.counted)
        work.append((flops, moved))
        outputs.append(out)
    notes = ["", *(_note(case, *pair, outputs[0]) for pair in zip(variants[1:], outputs[1:], strict=True))]
    del outputs
    samples = compare(variants, rounds, options.device, repeat=not options.quick)
    plain = samples[variants[0].name]
    results = []
    for variant, (flops, moved), note in zip(variants, work, notes, strict=True):
        own = samples[variant.name]
        wall, cpu = own.median("wall"), own.median("cpu")
        result = Result(case.name, variant.name, wall, cpu, ratio(plain, own, "wall"), ratio(plain, own, "cpu"))
        result.flops, result.bytes, result.note = flops, moved, note
        spent = cpu / machine.threads if machine.device == "cpu" else wall
        shares = machine.share(max(spent, 1e-9), flops or 0.0, moved or 0.0, variant.dtype)
        result.flop_share = None if flops is None else shares[0]
        result.byte_share = None if moved is None else shares[1]
        peak = peak_bytes(variant.run, options.device) if variant.memory else None
        result.peak = None if peak is None else peak + variant.held
        results.append(result)
    return results


def _note(case: Case, variant: Variant, got: Any, wanted: Any) -> str:
    parts = ["" if case.agree is None else case.agree(wanted, got), variant.remark() if variant.remark else ""]
    return "; ".join(part for part in parts if part)


def _work(variant: Variant, counted: bool) -> tuple[float | None, float | None, Any]:
    if not counted:
        return None, variant.bytes, variant.run()
    return count_work(variant.run)
