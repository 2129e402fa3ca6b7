"""Seconds a frame of proposal generators on photographs, and where they go: encoder, decoder, the rest.

python tests/programs/proposals.py ../shared/data/avs-sample/videos/*.mp4 --generator superpixels
python tests/programs/proposals.py photo.jpg --generator mobile_sam --model my-mobile-sam --points-per-side 8

Weights decide how many masks survive, and so how long the rest takes: `--random` measures a full-size network with
random weights (encoder and decoder cost the same), and is said in the output.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


HEIGHTS = (360, 720)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="+", type=Path, help="pictures or films (of which the first frame is taken)")
    parser.add_argument("--generator", default="superpixels")
    parser.add_argument("--model", help="folder or Hub id")
    parser.add_argument("--random", action="store_true", help="full-size network with random weights (sam: ViT-B)")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--heights", type=int, nargs="+", default=HEIGHTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = build(arguments)
    frames = [first_frame(path) for path in arguments.source]
    for height in arguments.heights:
        sized = [frame.resize((round(frame.width * height / frame.height), height)) for frame in frames]
        print(json.dumps({
            "generator": arguments.generator, "height": height, "frames": len(sized), "device": arguments.device,
            "threads": torch.get_num_threads(), "weights": "random" if arguments.random else arguments.model,
            **measure(generator, sized),
        }))  # fmt: skip


def build(arguments: argparse.Namespace) -> Any:
    """The generator to be measured."""
    from combo_hf.proposals import load_proposal_generator
    from combo_hf.proposals.modeling_mobile_sam import MobileSamConfig, MobileSamModel
    from combo_hf.proposals.sam import MobileSamProposals, SamAdapter, SamProposals

    if arguments.generator == "superpixels":
        return load_proposal_generator("superpixels")
    options = {"points_per_side": arguments.points_per_side}
    if not arguments.random:
        options |= {"device": arguments.device, "dtype": arguments.dtype}
        return load_proposal_generator(arguments.generator, arguments.model, **options)
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    networks = {
        "sam": lambda: (SamProposals, SamModel(SamConfig())),
        "mobile_sam": lambda: (MobileSamProposals, MobileSamModel(MobileSamConfig())),
    }
    kind, network = networks[arguments.generator]()
    adapter = SamAdapter(network.to(arguments.device), dtype=getattr(torch, arguments.dtype))
    # Random weights are sure of nothing: no thresholds, so post-processing is the worst case (every candidate).
    return kind(adapter, **options, pred_iou_thresh=0.0, stability_score_thresh=0.0)


def first_frame(path: Path) -> Image.Image:
    """A picture, or the first frame of a film."""
    from combo_hf.media_combo import iter_clips
    from combo_hf.proposals.sources import VIDEOS, read_picture

    return next(iter_clips(path)).frames[0] if path.suffix.lower() in VIDEOS else read_picture(path)


def measure(generator: Any, frames: list[Image.Image]) -> dict[str, Any]:
    """Mean seconds and CPU seconds a frame after a first one that is not counted, shares in percent, masks."""
    parts: dict[str, float] = {}
    adapter = getattr(generator, "adapter", None)
    for name in ("encode", "decode") if adapter is not None else ():
        setattr(adapter, name, timed(getattr(type(adapter), name).__get__(adapter), name, parts))
    generator(frames[:1])
    parts.clear()
    start, busy = time.perf_counter(), time.process_time()
    counts = [len(generator([frame])[0]) for frame in frames]
    seconds = (time.perf_counter() - start) / len(frames)
    busy = (time.process_time() - busy) / len(frames)
    shares = {name: round(100 * spent / len(frames) / seconds, 1) for name, spent in parts.items()}
    if shares:
        shares["post-processing"] = round(100 - sum(shares.values()), 1)
    return {
        "s/frame": round(seconds, 3),
        "CPU s/frame": round(busy, 3),
        "share %": shares,
        "masks": float(np.mean(counts)),
    }


def timed(function: Callable, name: str, parts: dict[str, float]) -> Callable:
    """The function, adding the seconds it takes to `parts[name]`."""

    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        parts[name] = parts.get(name, 0.0) + time.perf_counter() - start
        return result

    return call


if __name__ == "__main__":
    main()
