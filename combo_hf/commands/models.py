"""Commands about whole models: `combo-hf convert`, `combo-hf export`, `combo-hf push`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from combo_hf import resolve_model
from combo_hf.commands.common import PROGRAM, InputError, add_command, missing, named, positive
from combo_hf.files.progress import stage
from combo_hf.files.wording import visible


if TYPE_CHECKING:
    from combo_hf.publishing import Publication


def convert(arguments: argparse.Namespace) -> None:
    """Convert a checkpoint of the official release into a folder that `--model` takes."""
    from combo_hf.conversion.official import convert_official_checkpoint
    from combo_hf.conversion.saving import check_output, save_converted

    check_output(arguments.output)
    with named(arguments.checkpoint), stage(f"reading {arguments.checkpoint.name}"):
        model, report = convert_official_checkpoint(
            arguments.checkpoint, arguments.preset, fusion=False if arguments.no_fusion else None
        )
    print(report)
    with stage("writing the folder"):
        folder = save_converted(model, report, arguments.output)
    print(f"written to {folder}")


def check_export(arguments: argparse.Namespace) -> None:
    """Whether there is such a model, and the file has one of the two endings."""
    if arguments.output.suffix not in (".onnx", ".pt2"):
        raise InputError(f"{arguments.output.name}: the file must end in .onnx (ONNX) or .pt2 (torch.export)")
    if arguments.int8 and (arguments.output.suffix != ".onnx" or arguments.any_frames):
        raise InputError("--int8 writes ONNX files (.onnx) for a fixed number of frames: leave --any-frames out")
    if arguments.calibrate and not arguments.int8:
        raise InputError("--calibrate: only together with --int8")
    with named(arguments.model):
        resolve_model(arguments.model)


def export(arguments: argparse.Namespace) -> None:
    """Write the network as an ONNX file or a torch.export program, for a fixed number of frames per clip or any."""
    from combo_hf import ASSETS, ComboForAudioVisualSegmentation, ComboProcessor
    from combo_hf.commands.segment import DEMO_CLIP
    from combo_hf.conversion.exporting import SUFFIXES, export_onnx, save_program
    from combo_hf.conversion.quantizing import export_int8

    with named(arguments.model, loading=True):
        model = ComboForAudioVisualSegmentation.from_pretrained(resolve_model(arguments.model))
        processor = ComboProcessor.from_pretrained(resolve_model(arguments.model)) if arguments.int8 else None
    if processor is not None:
        videos = arguments.calibrate or [ASSETS / DEMO_CLIP]
        with named(arguments.output.name), stage("calibrating, writing and comparing with float32"):
            found = export_int8(model, processor, arguments.output, videos, arguments.frames)
        print(
            f"against float32, on {found.windows} windows: {100 * found.equal_labels:.2f} % of the pixels have the "
            f"same class, masks differ by {found.masks:.1e} of their largest magnitude\n"
            f"CPU time of a clip, one thread: {found.seconds:.3f} s (float32: {found.float_seconds:.3f} s)\n"
            f"size: {found.bytes:,} bytes (float32: {found.float_bytes:,})\nwritten to {arguments.output}"
        )
        return
    write = export_onnx if arguments.output.suffix == SUFFIXES[0] else save_program
    with stage("tracing the network, writing it and comparing it with PyTorch"):
        differences = write(model, arguments.output, arguments.frames, arguments.any_frames)
    for name, difference in differences.items():
        print(f"{name}: differs from PyTorch by {difference:.1e} of its largest magnitude")
    print(f"written to {arguments.output}")


def push(arguments: argparse.Namespace) -> None:
    """Publish a checkpoint on the Hub: weights, configuration, processor, code, model card and a picture."""
    from combo_hf.publishing import plan_publication, publish, resolve_repo_id

    _quiet_hub()
    # A dry run needs neither token nor network.
    repo_id = arguments.repo if arguments.dry_run else resolve_repo_id(arguments.repo)
    with named(arguments.folder):
        publication = plan_publication(
            arguments.folder,
            repo_id if "/" in repo_id else f"your-name/{repo_id}",
            results=arguments.results or (),
            license=arguments.license,
            preview=not arguments.no_preview,
            card_only=arguments.card_only,
        )
    _print_files(publication)
    if arguments.dry_run:
        print(f"dry run: nothing was sent to {publication.repo_id}")
        return
    published = publish(
        publication,
        private=arguments.private,
        message=arguments.message,
        report=lambda line: print(line, file=sys.stderr),
    )
    for name in published.removed:
        print(f"removed there: {name}, of an earlier publication")
    print(f"published: {published.url} at {published.commit[:12]}")


def _quiet_hub() -> None:
    """No bars in a log file."""
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def _print_files(publication: Publication) -> None:
    width = max(len(file.name) for file in publication.files)
    for file in publication.files:
        print(visible(f"  {file.name:{width}}  {file.size:>14,} bytes  {file.why}"))
    print(f"  {len(publication.files)} files, {publication.size:,} bytes")


def register(commands: Any) -> None:
    """Add the sub-commands."""
    example = f"{PROGRAM} convert model_best.pth --preset pvtv2-b5-s4 --output combo-s4"
    command = add_command(
        commands,
        "convert",
        convert,
        "convert an official checkpoint",
        example,
        lambda found: missing(found.checkpoint),
    )
    command.add_argument("checkpoint", type=Path, help="official .pth file")
    command.add_argument("--preset", required=True, help="{r50, pvtv2-b5}-{s4, ms3, avss}: what it was trained as")
    command.add_argument("--output", type=Path, required=True, help="new folder")
    command.add_argument("--no-fusion", action="store_true", help="as the release's AVSS/R50 test configuration")

    example = f"{PROGRAM} export my-model --output model.onnx --frames 5"
    text = "write the network as ONNX or torch.export file"
    command = add_command(commands, "export", export, text, example, check_export)
    command.add_argument("model", help="folder or Hub id")
    command.add_argument("--output", type=Path, required=True, help="file.onnx (ONNX) or file.pt2 (torch.export)")
    command.add_argument("--frames", type=positive, help="frames per clip, default the model's")
    command.add_argument("--any-frames", action="store_true", help="clips may have 1 to 1000 frames")
    command.add_argument(
        "--int8", action="store_true", help="8-bit products for processors (ONNX); accuracy and speed are told"
    )
    command.add_argument(
        "--calibrate", nargs="+", metavar="VIDEO",
        help="with --int8: videos that show what activations are like, default the demo clip"
    )  # fmt: skip

    example = f"{PROGRAM} push runs/demo/best me/combo-demo --private --dry-run"
    command = add_command(
        commands, "push", push, "publish a checkpoint on the Hub", example, lambda found: missing(found.folder)
    )
    command.add_argument("folder", type=Path, help="checkpoint: a folder of save_pretrained with its processor")
    command.add_argument("repo", help="name or owner/name on the Hub; made where it does not exist")
    command.add_argument("--private", action="store_true", help="nobody else may see it")
    command.add_argument("--dry-run", action="store_true", help="show what would go, and send nothing")
    command.add_argument("--message", help="of the commit")
    command.add_argument("--card-only", action="store_true", help="only the model card and its picture")
    command.add_argument(
        "--results", type=Path, action="append", help="results.json of evaluate for these weights; may be repeated"
    )
    command.add_argument("--license", help="of the weights, as the Hub names it; default: from what made them")
    command.add_argument("--no-preview", action="store_true", help="no picture")
