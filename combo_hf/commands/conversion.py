"""`combo-hf convert`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from combo_hf.commands.common import PROGRAM, add_command, named


def convert(arguments: argparse.Namespace) -> None:
    """Convert a checkpoint of the official release into a folder that `--model` takes."""
    from combo_hf.conversion.official import convert_official_checkpoint
    from combo_hf.conversion.saving import check_output, save_converted

    check_output(arguments.output)
    with named(arguments.checkpoint):
        model, report = convert_official_checkpoint(
            arguments.checkpoint, arguments.preset, fusion=False if arguments.no_fusion else None
        )
    print(report)
    print(f"written to {save_converted(model, report, arguments.output)}")


def register(commands: Any) -> None:
    """Add the sub-command."""
    example = f"{PROGRAM} convert model_best.pth --preset pvtv2-b5-s4 --output combo-s4"
    command = add_command(commands, "convert", convert, "convert an official checkpoint", example)
    command.add_argument("checkpoint", type=Path, help="official .pth file")
    command.add_argument("--preset", required=True, help="{r50, pvtv2-b5}-{s4, ms3, avss}: what it was trained as")
    command.add_argument("--output", type=Path, required=True, help="new folder")
    command.add_argument("--no-fusion", action="store_true", help="as the release's AVSS/R50 test configuration")
