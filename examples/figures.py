"""The figures of the paper's appendix, in kind: drawn from synthetic clips, or from the rows of a data set.

    python examples/figures.py --output figures                       # the bundled weights on synthetic clips
    python examples/figures.py --output figures --model my-model --data my-avsbench --subset ms3
    python examples/figures.py --output figures --without-ada other   # figure V with a model trained without L_ada

Writes: I_subtasks.png, II_proposals.png, V_heat_maps.png, comparison.mp4 (frame, truth, baseline, COMBO, with sound);
figures III and IV are `examples/figures_maskige.py`. Baseline: `--baseline MODEL`, or the same weights
hearing silence.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

import combo_hf
from combo_hf.cli import Parser, run_script
from combo_hf.data.synthetic.clip import synthesize_clip
from combo_hf.maskige_combo import paint_maskige
from combo_hf.results.figures import clip_result, comparison_video, grid, marked
from combo_hf.results.pictures import heat_map


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder")
    parser.add_argument("--model", help="folder or Hub id; default: the bundled weights")
    parser.add_argument("--baseline", help="model to compare with; default: the same weights hearing silence")
    parser.add_argument("--without-ada", help="model trained without the inter-frame loss, for figure V")
    parser.add_argument("--data", help="data set folder or Hub id; default: synthetic clips")
    parser.add_argument("--subset", help="of --data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--index", type=int, default=1, help="which clip")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    pipe = combo_hf.load_pipeline(arguments.model)
    clips = read_clips(arguments)
    for name, figure in (
        ("I_subtasks", subtasks(pipe, clips)),
        ("II_proposals", proposals(pipe, clips[-1])),
        ("V_heat_maps", heat_maps(pipe, clips[-1], arguments.without_ada)),
    ):
        figure.save(arguments.output / f"{name}.png")
        print(arguments.output / f"{name}.png")
    print(comparison(pipe, clips[-1], arguments.baseline, arguments.output / "comparison.mp4"))


def read_clips(arguments: argparse.Namespace) -> list[SimpleNamespace]:
    """Clips with `title`, `frames`, `masks` (class ids), `waveform`, `sampling_rate`."""
    if arguments.data is None:
        made = [synthesize_clip(kind, 7, arguments.index, "test", num_frames=5) for kind in ("s4", "ms3", "avss")]
        titles = ("S4\none source", "MS3\nseveral", "AVSS\nwith classes")
        return [
            SimpleNamespace(
                title=title, frames=clip.frames, waveform=clip.waveform, sampling_rate=clip.sampling_rate,
                masks=clip.masks if clip.kind == "avss" else [np.minimum(mask, 1) for mask in clip.masks])
            for title, clip in zip(titles, made, strict=True)
        ]  # fmt: skip
    import soundfile

    from combo_hf.data.loading import load_avsbench

    row = load_avsbench(arguments.data, arguments.split, arguments.subset)[arguments.index]
    waveform, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
    masks = [np.asarray(mask) for mask in row["masks"]]
    masks = [np.minimum(mask, 1) for mask in masks] if row["subset"] in ("s4", "ms3") else masks
    frames = [frame.convert("RGB") for frame in row["frames"]]
    return [SimpleNamespace(title=row["subset"], frames=frames, masks=masks, waveform=waveform, sampling_rate=rate)]


def subtasks(pipe: Any, clips: list[SimpleNamespace]) -> Image.Image:
    """Figure I: what the three sub-tasks ask for, and what the model says."""
    rows, labels = [], pipe.model.config.num_labels
    for clip in clips:
        rows.append((clip.title, clip.frames))
        rows.append(("truth", [marked(*pair, labels) for pair in zip(clip.frames, clip.masks, strict=True)]))
        found = clip_result(pipe, clip)
        binary = max(int(mask.max()) for mask in clip.masks) <= 1
        maps = [np.minimum(frame["label_map"], 1) if binary else frame["label_map"] for frame in found]
        rows.append(("COMBO", [marked(*pair, labels) for pair in zip(clip.frames, maps, strict=True)]))
    columns = min(len(pictures) for _, pictures in rows)
    return grid([(title, list(pictures)[:columns]) for title, pictures in rows], seconds(columns))


def proposals(pipe: Any, clip: SimpleNamespace) -> Image.Image:
    """Figure II: frame -> class-agnostic masks -> Maskige."""
    masks = pipe.processor.proposal_generator(clip.frames)
    sizes = [(frame.height, frame.width) for frame in clip.frames]
    painted = [Image.fromarray(paint_maskige(mask, size)) for mask, size in zip(masks, sizes, strict=True)]
    outlined = [outline(frame, mask) for frame, mask in zip(clip.frames, masks, strict=True)]
    captions = [f"{len(mask)} masks" for mask in masks]
    return grid([("frame", clip.frames), ("class-agnostic\nmasks", outlined), ("Maskige", painted)], captions)


def outline(frame: Image.Image, masks: np.ndarray) -> Image.Image:
    """The frame with the edges of all masks (K, H, W) in white."""
    pixels = np.asarray(frame).copy()
    edges = np.zeros(pixels.shape[:2], bool)
    for mask in masks:
        edges[:, 1:] |= mask[:, 1:] != mask[:, :-1]
        edges[1:] |= mask[1:] != mask[:-1]
    pixels[edges] = 255
    return Image.fromarray(pixels)


def heat_maps(pipe: Any, clip: SimpleNamespace, other: str | None) -> Image.Image:
    """Figure V: how sure the model is of sound, frame by frame; `other`: a model trained without L_ada."""
    labels = pipe.model.config.num_labels
    truth = [marked(frame, mask, labels) for frame, mask in zip(clip.frames, clip.masks, strict=True)]
    rows = [("frame", clip.frames), ("truth", truth)]
    pipes = [("COMBO", pipe)]
    if other is not None:
        pipes = [("without L_ada", combo_hf.load_pipeline(other)), ("with L_ada", pipe)]
    for title, model in pipes:
        found = clip_result(model, clip)
        rows.append((title, [heat_map(f, m["heat_map"]) for f, m in zip(clip.frames, found, strict=True)]))
    return grid(rows, seconds(len(clip.frames)))


def comparison(pipe: Any, clip: SimpleNamespace, baseline: str | None, path: Path) -> Path:
    """Frame, truth, baseline and COMBO side by side, with the sound."""
    other = pipe if baseline is None else combo_hf.load_pipeline(baseline)
    labels = pipe.model.config.num_labels

    def draw(maps: Iterable[np.ndarray]) -> list[Image.Image]:
        return [marked(frame, label_map, labels) for frame, label_map in zip(clip.frames, maps, strict=True)]

    columns = {
        "frame": clip.frames,
        "truth": draw(clip.masks),
        "hears silence" if baseline is None else "baseline": draw(
            [frame["label_map"] for frame in clip_result(other, clip, silent=baseline is None)]
        ),
        "COMBO": draw([frame["label_map"] for frame in clip_result(pipe, clip)]),
    }
    return comparison_video(path, columns, clip.waveform)


def seconds(count: int) -> list[str]:
    return [f"second {index}" for index in range(count)]


if __name__ == "__main__":
    sys.exit(run_script(main))
