"""Figure III (the palette) and Figure IV (Maskiges of each generator side by side) of the paper's appendix.

python examples/figures_maskige.py palette --output palette.png
python examples/figures_maskige.py compare frame.png clip.mp4 --output maskiges.png \
    --generator superpixels --generator mobile_sam=my-mobile-sam --generator semantic_sam=my-semantic-sam
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from combo_hf.cli import Parser, run_script
from combo_hf.maskige_combo import PALETTE, paint_maskige
from combo_hf.proposals import load_proposal_generator
from combo_hf.proposals.sources import VIDEOS, read_picture


COLORS, COLUMNS, CELL = 150, 15, 56
SIDE, GAP, TITLE = 224, 8, 24


def palette_figure() -> Image.Image:
    """The 150 colours with their numbers; a number is what a mask of that area rank gets, 0 is no mask."""
    figure = Image.new("RGB", (COLUMNS * CELL, COLORS // COLUMNS * CELL), "white")
    draw = ImageDraw.Draw(figure)
    for number, color in enumerate(PALETTE[:COLORS].tolist()):
        x, y = number % COLUMNS * CELL, number // COLUMNS * CELL
        draw.rectangle((x + 2, y + 2, x + CELL - 3, y + CELL - 3), fill=tuple(color))
        dark = np.dot(color, (0.299, 0.587, 0.114)) < 128
        draw.text((x + CELL / 2, y + CELL / 2), str(number), fill="white" if dark else "black", anchor="mm")
    return figure


def comparison_figure(frames: list[Image.Image], generators: dict[str, object]) -> Image.Image:
    """A row for each frame: the frame, then its Maskige by every generator, with the number of masks."""
    step = SIDE + GAP
    figure = Image.new("RGB", (step * (1 + len(generators)) + GAP, (step + TITLE) * len(frames) + GAP), "white")
    draw = ImageDraw.Draw(figure)
    for row, frame in enumerate(frames):
        y = GAP + row * (step + TITLE)
        cells = [("frame", frame.resize((SIDE, SIDE)))]
        for name, generator in generators.items():
            masks = generator([frame])[0]
            cells.append((f"{name}: {len(masks)} masks", Image.fromarray(paint_maskige(masks, (SIDE, SIDE)))))
        for column, (title, cell) in enumerate(cells):
            draw.text((GAP + column * step, y), title, fill="black")
            figure.paste(cell, (GAP + column * step, y + TITLE - GAP))
    return figure


def first_frame(path: Path) -> Image.Image:
    """A picture, or the first frame of a film."""
    if path.suffix.lower() not in VIDEOS:
        return read_picture(path)
    from combo_hf.media_combo import iter_clips

    return next(iter_clips(path)).frames[0]


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="figure", required=True)
    for name, text in (("palette", "Figure III"), ("compare", "Figure IV")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--output", type=Path, required=True, help="picture file")
    command.add_argument("source", type=Path, nargs="+", help="pictures, or films whose first frame is taken")
    command.add_argument("--generator", action="append", metavar="NAME[=MODEL]", help="default: superpixels")
    command.add_argument("--points-per-side", type=int, help="of the models: 32 in the paper, 8 or 16 on a CPU")
    arguments = parser.parse_args()
    if arguments.figure == "palette":
        figure = palette_figure()
    else:
        generators = {}
        for entry in arguments.generator or ["superpixels"]:
            name, _, model = entry.partition("=")
            grid = {} if not model or not arguments.points_per_side else {"points_per_side": arguments.points_per_side}
            generators[name] = load_proposal_generator(name, model or None, **grid)
        figure = comparison_figure([first_frame(path) for path in arguments.source], generators)
    figure.save(arguments.output)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    sys.exit(run_script(main))
