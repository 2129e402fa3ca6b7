"""`combo-hf export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from combo_hf.commands.common import PROGRAM, InputError, add_command, named, positive


def export(arguments: argparse.Namespace) -> None:
    """Write the network as an ONNX file or a torch.export program, for a fixed number of frames per clip."""
    from combo_hf import ComboForAudioVisualSegmentation, resolve_model
    from combo_hf.conversion.exporting import SUFFIXES, export_onnx, save_program

    if arguments.output.suffix not in SUFFIXES:
        raise InputError(
            f"{arguments.output.name}: the file must end in {' (ONNX) or '.join(SUFFIXES)} (torch.export)"
        )
    with named(arguments.model, loading=True):
        model = ComboForAudioVisualSegmentation.from_pretrained(resolve_model(arguments.model))
    if arguments.output.suffix == SUFFIXES[0]:
        differences = export_onnx(model, arguments.output, arguments.frames)
    else:
        differences = save_program(model, arguments.output, arguments.frames)
    for name, difference in differences.items():
        print(f"{name}: differs from PyTorch by {difference:.1e} of its largest magnitude")
    print(f"written to {arguments.output}")


def register(commands: Any) -> None:
    """Add the sub-command."""
    example = f"{PROGRAM} export my-model --output model.onnx --frames 5"
    command = add_command(commands, "export", export, "write the network as ONNX or torch.export file", example)
    command.add_argument("model", help="folder or Hub id")
    command.add_argument("--output", type=Path, required=True, help="file.onnx (ONNX) or file.pt2 (torch.export)")
    command.add_argument("--frames", type=positive, help="frames per clip, default the model's")
