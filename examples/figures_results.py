"""The pictures of docs/results.md: one of every kind of file that `combo-hf predict` writes.

python examples/figures_results.py --output docs/images
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

import combo_hf
from combo_hf.cli import Parser, run_script
from combo_hf.results.folder import predict_to_folder
from combo_hf.results.pictures import draw_timeline


SECONDS = (0, 5, 7)  # of the demo clip that are shown, each where the network looks
WIDTH = 256


def at_times(path: Path) -> list[Image.Image]:
    """The pictures of a video at those seconds, over a chequered ground where they are transparent."""
    times, found = [second + 15 / 16 for second in SECONDS], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if len(found) < len(times) and (frame.time or 0.0) >= times[len(found)] - 0.5 / 25:
                picture = Image.fromarray(frame.to_ndarray(format="rgba"))
                squares = np.add.outer(np.arange(frame.height) // 12, np.arange(frame.width) // 12) % 2
                ground = Image.fromarray((200 + 40 * squares).astype(np.uint8)).convert("RGBA")
                found.append(Image.alpha_composite(ground, picture).convert("RGB"))
    return found


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size beside each other."""
    height = round(WIDTH * pictures[0].height / pictures[0].width)
    out = Image.new("RGB", (len(pictures) * (WIDTH + 6) - 6, height), "white")
    for index, picture in enumerate(pictures):
        out.paste(picture.convert("RGB").resize((WIDTH, height)), (index * (WIDTH + 6), 0))
    return out


def main() -> None:
    """Segment the bundled clip and draw."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    pipe, clip = combo_hf.load_pipeline(), combo_hf.ASSETS / "demo_real.mp4"
    with tempfile.TemporaryDirectory() as folder:
        made = predict_to_folder(
            pipe, clip, folder, "clip", masks=True, summary=True, sheet=True, matte="mov", keep=10)  # fmt: skip
        shown = {kind: row(at_times(made.files[kind])) for kind in ("overlay", "matte")}
        masks = sorted(made.files["masks"].iterdir())
        shown["masks"] = row([Image.open(masks[second]) for second in SECONDS])
        boxes, report = at_times(clip), json.loads(made.files["json"].read_text(encoding="utf-8"))
        for picture, second in zip(boxes, SECONDS, strict=True):
            for segment in report["frames"][second]["segments"]:
                left, top, width, height = segment["bbox"]
                place = (left, top, left + width, top + height)
                ImageDraw.Draw(picture).rectangle(place, outline=report["colors"][segment["label"]], width=4)
        shown["json"] = row(boxes)
        sheet = Image.open(made.files["sheet"]).convert("RGB")
        shown["sheet"] = sheet.resize((1000, round(1000 * sheet.height / sheet.width)), Image.Resampling.LANCZOS)
        shown["timeline"] = draw_timeline(made.result, made.peaks)
        for kind, picture in shown.items():
            picture.save(output / f"results_{kind}.jpg", quality=80)


if __name__ == "__main__":
    sys.exit(run_script(main))
