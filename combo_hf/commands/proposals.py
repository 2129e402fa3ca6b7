"""`combo-hf maskige` and `combo-hf proposals ...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from combo_hf.commands.common import (
    DEVICE,
    PROGRAM,
    InputError,
    add_command,
    add_group,
    device,
    generator_option,
    load_transformers,
    missing,
    named,
    positive,
    proposals,
)
from combo_hf.files.progress import Progress, stage
from combo_hf.files.wording import visible


CONVERTERS = {
    "sam": ("sam", "convert_sam"),
    "mobile_sam": ("sam", "convert_mobile_sam"),
    "semantic_sam": ("semantic_sam", "convert_semantic_sam"),
}


def maskige(arguments: argparse.Namespace) -> int:
    """Make the Maskiges of a video, a folder, AVSBench as downloaded, or a built data set."""
    from combo_hf.proposals.pregenerate import pregenerate

    with named(arguments.model or arguments.generator, loading=True):
        generator = _generator(arguments)
    size = None if arguments.size is None else (arguments.size, arguments.size)
    with named(arguments.source), Progress(Path(arguments.source).name, "clip") as progress:
        report = pregenerate(
            arguments.source, generator, arguments.output, size=size, fps=arguments.fps, resume=arguments.resume,
            stable=arguments.stable_colors, num_shards=arguments.num_shards, shard_index=arguments.shard_index,
            num_processes=arguments.num_processes, progress=progress)  # fmt: skip
    print(f"{report.written} made, {report.kept} kept, {len(report.failed)} failed; in {report.folder}")
    for name, reason in report.failed:
        print(visible(f"{PROGRAM}: error: {name}: {' '.join(reason.split())}"), file=sys.stderr)
    return 2 if report.failed else 0


def convert(arguments: argparse.Namespace) -> None:
    """Convert an official file of SAM, MobileSAM or Semantic-SAM into a folder that `--model` takes."""
    import importlib

    from combo_hf.conversion.saving import TERMS, check_output, save_converted_proposal_model

    check_output(arguments.output)
    module, function = CONVERTERS[arguments.kind]
    converter = importlib.import_module(f"combo_hf.conversion.{module}")
    terms = getattr(converter, "LICENCE_NOTE", TERMS)
    with named(arguments.file), stage(f"reading {arguments.file.name}"):
        model, report = getattr(converter, function)(arguments.file)
    print(report)
    print(f"written to {save_converted_proposal_model(model, report, arguments.output, terms=terms)}\n{terms}")


def _generator(arguments: argparse.Namespace) -> Any:
    from combo_hf.proposals_combo import SuperpixelProposals, get_proposal_generator

    options = {**(arguments.proposals or {"name": arguments.generator}), **dict(arguments.option)}
    if options["name"] != SuperpixelProposals.name:
        load_transformers()
    for name in ("model", "device", "dtype"):
        if getattr(arguments, name) is not None:
            options[name] = getattr(arguments, name)
    if arguments.cache is not None:
        options = {"name": "cached", "generator": options, "folder": str(arguments.cache)}
    try:
        return get_proposal_generator(options)
    except TypeError as error:  # an option that the generator does not have
        raise InputError(str(error)) from error


def register(commands: Any) -> None:
    """Add the sub-commands."""
    example = f"{PROGRAM} maskige frames --proposals mobile_sam=my-mobile-sam --output maskiges"
    command = add_command(
        commands, "maskige", maskige, "make Maskiges in advance", example,
        lambda found: missing(Path(found.source)), light=True)  # fmt: skip
    command.add_argument("source", help="video, folder of pictures or videos, AVSBench, or built data set")
    command.add_argument("--output", type=Path, required=True, help="folder; for AVSBench it may be the source")
    names = "superpixels (default, no weights), sam, mobile_sam, mobile_sam_fast, semantic_sam, sam2, edgetam"
    text = f"proposal model, NAME or NAME=folder or Hub id; one of {names}"
    command.add_argument("--proposals", type=proposals, metavar="NAME[=MODEL]", help=text)
    command.add_argument("--generator", default="superpixels", help="older form of --proposals: NAME alone")
    command.add_argument("--model", help="and its weights, folder or Hub id, with --generator")
    command.add_argument("--option", type=generator_option, action="append", default=[], metavar="NAME=VALUE",
                         help="of the generator: points_per_side=16, pred_iou_thresh=0.9, ...")  # fmt: skip
    command.add_argument("--size", type=positive, help="side in pixels; default 224; AVSBench, data sets: the frame's")
    command.add_argument("--fps", type=positive, default=1, help="frames per second of a video, default 1")
    command.add_argument("--stable-colors", action="store_true", help="keep colours from frame to frame of a clip")
    command.add_argument("--num-shards", type=positive, default=1, help="parts that the work is cut into")
    command.add_argument("--shard-index", type=int, default=0, help="which part to do, from 0")
    command.add_argument("--num-processes", type=positive, default=1, help="processes; each loads the generator")
    command.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                         help="keep what is there (default), or make it again")  # fmt: skip
    command.add_argument("--cache", type=Path, help="folder for masks, found again by content and settings")
    command.add_argument("--device", type=device, help=DEVICE)
    command.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the generator's network")

    group = add_group(commands, "proposals", "models that propose masks")
    example = f"{PROGRAM} proposals convert mobile_sam.pt --kind mobile_sam --output my-mobile-sam"
    command = add_command(
        group, "convert", convert, "convert an official file", example, lambda found: missing(found.file)
    )
    command.add_argument("file", type=Path, help="official .pt or .pth file")
    command.add_argument(
        "--kind", "--model", dest="kind", required=True, choices=sorted(CONVERTERS), help="what the file is of"
    )
    command.add_argument("--output", type=Path, required=True, help="new folder")
