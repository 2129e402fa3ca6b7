"""`combo-hf data ...`: data sets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .common import PROGRAM, add_command, add_group, positive


def synthesize(arguments: argparse.Namespace) -> None:
    """Write synthetic clips with their ground truth."""
    from combo_hf.data.synthetic import write_dataset

    folder = write_dataset(
        arguments.kind,
        arguments.output,
        {arguments.split: arguments.clips},
        seed=arguments.seed,
        formats=("rows", "mp4") if arguments.rows else ("mp4",),
        progress=sys.stderr.isatty(),
    )
    print(f"{arguments.clips} clip(s) of kind {arguments.kind} in {folder}; clips.jsonl says what sounds when")


def register(commands: Any) -> None:
    """Add the sub-commands."""
    group = add_group(commands, "data", "data sets")
    example = f"{PROGRAM} data synthesize --output scenes --kind ms3 --clips 4"
    command = add_command(group, "synthesize", synthesize, "make clips whose ground truth is known", example)
    command.add_argument("--output", type=Path, required=True, help="folder for the clips")
    command.add_argument("--kind", default="ms3", help="s4 (one source), ms3 (several), avss (with classes)")
    command.add_argument("--split", default="test", help="train, val or test")
    command.add_argument("--clips", type=positive, default=4, help="how many, default 4")
    command.add_argument("--seed", type=int, default=0, help="other seeds give other clips, default 0")
    command.add_argument("--rows", action="store_true", help="also parquet rows with masks, to train on")
