"""What a GPU makes of the network: evaluation and training step of both backbones, in float32 and bfloat16.

    python tests/programs/gpu.py --json gpu.json      # some minutes on one GPU
    python tests/programs/gpu.py --rehearse           # the same on the processor, with tiny networks

For every backbone (random weights of the AVSS network): labels and masks against the processor's float32, frames a
second of packed clips, steps a second and peak of memory of a training step of 8 clips of 10 frames, the plain code of
`combo_hf/benchmarking` beside it, and how often one step and one evaluation wait for the GPU (torch's own count).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from combo_hf.benchmarking.cases import Settings, label_maps, make_inputs, make_model
from combo_hf.benchmarking.network import BACKBONES, TRAINING_CLIPS, TRAINING_FRAMES, step_variants
from combo_hf.benchmarking.reference_network import ReferenceCombo
from combo_hf.benchmarking.timing import peak_bytes, timed


ROUNDS = 5


def main(arguments: list[str] | None = None) -> int:
    """Measure; 2 where there is nothing to measure on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to a file, too")
    parser.add_argument("--clips", type=int, default=TRAINING_CLIPS, help="in a training step and a large batch")
    parser.add_argument("--frames", type=int, default=TRAINING_FRAMES, help="of a clip")
    parser.add_argument("--rehearse", action="store_true", help="tiny networks on the processor; figures mean nothing")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        print("no CUDA device: torch finds none here, nothing was measured (--rehearse runs tiny networks without)")
        return 2
    device = "cpu" if options.rehearse else "cuda"
    figures: dict[str, Any] = {"torch": torch.__version__, "device": device}
    if device == "cuda":
        figures["name"] = torch.cuda.get_device_name()
    for backbone in BACKBONES:
        settings = Settings(quick=options.rehearse, device=device)
        figures[backbone] = {
            "evaluation": evaluation(backbone, settings, options.clips, options.frames),
            "training step": training(backbone, settings, options.clips, options.frames),
        }
        print(json.dumps({backbone: figures[backbone]}, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def evaluation(backbone: str, settings: Settings, clips: int, frames: int) -> dict[str, Any]:
    """Agreement with the processor's float32, frames a second, peak of memory, waits."""
    model = make_model(backbone, settings)
    one = make_inputs(model.config, [frames]).network
    with torch.no_grad():
        wanted = make_model(backbone, Settings(quick=settings.quick, seed=settings.seed))(**one)
    figures: dict[str, Any] = {}
    plain = ReferenceCombo(model)
    ways: dict[str, Callable[..., Any]] = {"plain, float32": lambda **inputs: plain(**inputs)[-1][1]}
    for dtype in (torch.float32, torch.bfloat16):
        ways[str(dtype)[6:]] = lambda dtype=dtype, **inputs: in_dtype(model, dtype, settings.device)(**inputs)
    for name, run in ways.items():
        found = {}
        for count in (1, clips):
            inputs = make_inputs(model.config, [frames] * count, device=settings.device).network
            with torch.no_grad():
                run(**inputs)
                seconds = statistics.median(
                    timed(lambda run=run, inputs=inputs: run(**inputs), settings.device)[0] for _ in range(ROUNDS)
                )
                found[f"{count} clips"] = {
                    "frames a second": round(count * frames / seconds, 2),
                    "peak, bytes": peak_bytes(lambda run=run, inputs=inputs: run(**inputs), settings.device),
                    "waits": waits(lambda run=run, inputs=inputs: run(**inputs), settings.device),
                }
        figures[name] = found
    inputs = {name: value.to(settings.device) for name, value in one.items()}
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad(), precision(dtype, settings.device):
            got = model(**inputs)
        maps = [out.masks_queries_logits.float().cpu() for out in (wanted, got)]
        labels = [
            label_maps(out.class_queries_logits.float().cpu(), masks)
            for out, masks in zip((wanted, got), maps, strict=True)
        ]
        figures[f"{str(dtype)[6:]} against the processor"] = {
            "equal labels": round((labels[0] == labels[1]).float().mean().item(), 5),
            "masks, relative": float((maps[0] - maps[1]).abs().max() / maps[0].abs().max()),
        }
    return figures


def training(backbone: str, settings: Settings, clips: int, frames: int) -> dict[str, Any]:
    """Steps a second, peak of memory and waits of each way to make a training step."""
    figures = {}
    for variant in step_variants(settings, backbone, [frames] * clips):
        variant.run()
        seconds = statistics.median(timed(variant.run, settings.device)[0] for _ in range(ROUNDS))
        peak = peak_bytes(variant.run, settings.device)
        figures[variant.name] = {
            "steps a second": round(1 / seconds, 4),
            "peak, bytes": None if peak is None else peak + variant.held,
            "waits": waits(variant.run, settings.device),
        }
    return figures


def in_dtype(model: Any, dtype: torch.dtype, device: str) -> Callable[..., torch.Tensor]:
    """The masks of the model, computed in a precision."""

    def run(**inputs: Any) -> torch.Tensor:
        with precision(dtype, device):
            return model(**inputs).masks_queries_logits

    return run


def precision(dtype: torch.dtype, device: str) -> Any:
    """Autocast to bfloat16, or nothing."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def waits(run: Callable[[], Any], device: str) -> int | None:
    """How often the program waits for the GPU, as torch sees it; `None` without one."""
    if device != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


if __name__ == "__main__":
    sys.exit(main())
