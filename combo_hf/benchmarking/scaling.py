"""Cases in which the batch grows: clips a second and memory of evaluation, and AVSS training at a batch of eight."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from combo_hf.benchmarking.cases import Case, Settings, make_inputs, make_model
from combo_hf.benchmarking.machine import Machine
from combo_hf.benchmarking.network import BACKBONES, step_variants
from combo_hf.benchmarking.report import Result
from combo_hf.benchmarking.timing import peak_bytes, timed


BATCHES = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 16, 32)}
ROUNDS = 3
TRAINING_CLIPS, TRAINING_FRAMES = 8, 10


def scaling_cases() -> list[Case]:
    """All cases of this file, in the order of the table."""
    cases = []
    for backbone in BACKBONES:
        cases.append(Case(f"batches/{backbone}", measure=partial(batches, backbone=backbone), gpu=True))
    for backbone in BACKBONES:
        name = f"training step/{backbone}/{TRAINING_CLIPS} clips of {TRAINING_FRAMES} (GPU only)"
        cases.append(Case(name, measure=partial(large_step, backbone=backbone), gpu=True))
    return cases


def batches(settings: Settings, machine: Machine, case: str, backbone: str) -> list[Result]:
    """Evaluation of more and more clips of five frames; times are per clip, so that the knee is where x stays."""
    model = make_model(backbone, settings)
    sizes = (1, 2) if settings.quick else BATCHES[torch.device(settings.device).type]
    results: list[Result] = []
    for dtype in (torch.float32, torch.bfloat16):
        first = None
        for size in sizes:
            inputs = make_inputs(model.config, [5] * size, device=settings.device).network

            def run(inputs: dict[str, Any] = inputs, dtype: torch.dtype = dtype) -> Any:
                enabled = dtype == torch.bfloat16
                with torch.no_grad(), torch.autocast(torch.device(settings.device).type, dtype, enabled=enabled):
                    return model(**inputs).masks_queries_logits

            run()
            spent = [timed(run, settings.device) for _ in range(1 if settings.quick else ROUNDS)]
            wall, cpu = (statistics.median(values) / size for values in zip(*spent, strict=True))
            first = first or (wall, cpu)
            results.append(
                Result(case, f"{size} clips, {str(dtype)[6:]}", wall, cpu, first[0] / wall, first[1] / cpu,
                       peak=peak_bytes(run, settings.device), note=f"per clip; {1 / wall:.3g} clips a second")
            )  # fmt: skip
    return results


def large_step(settings: Settings, machine: Machine, case: str, backbone: str) -> list[Result]:
    """A training step of eight clips of ten frames: time and memory. Too large for most processors' memory."""
    if torch.device(settings.device).type == "cpu" and not settings.quick:
        return []
    clips = [2] if settings.quick else [TRAINING_FRAMES] * TRAINING_CLIPS
    results: list[Result] = []
    for variant in step_variants(settings, backbone, clips):
        variant.run()
        wall, cpu = timed(variant.run, settings.device)
        first = results[0] if results else Result(case, "", wall, cpu, 1, 1)
        peak = peak_bytes(variant.run, settings.device)
        results.append(
            Result(case, variant.name, wall, cpu, first.wall / wall, first.cpu / cpu,
                   peak=None if peak is None else peak + variant.held)
        )  # fmt: skip
    return results
