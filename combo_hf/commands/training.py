"""`combo-hf train`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from combo_hf import RECIPES
from combo_hf.commands.common import PROGRAM, add_command, device, is_first, named, reason
from combo_hf.files.typed_yaml import find_yaml


if TYPE_CHECKING:
    from combo_hf.training import TrainingRecipe, TrainingResult


def check(arguments: argparse.Namespace) -> None:
    """Whether there is such a recipe, and such a device."""
    find_yaml(arguments.recipe, RECIPES)
    if arguments.device == "cuda":
        device("cuda")


def train(arguments: argparse.Namespace) -> int:
    """Train a model by a recipe: best and last checkpoint, log and resumable state go into one folder."""
    from combo_hf.training import TrainingRecipe, run_recipe

    with named(arguments.recipe):
        recipe = TrainingRecipe.from_yaml(arguments.recipe, arguments.override)
    try:
        result = run_recipe(recipe, arguments.output, arguments.resume, cpu=arguments.device == "cpu")
    except (FloatingPointError, RuntimeError) as error:  # a loss that is not finite, memory that does not suffice
        if arguments.debug:
            raise
        print(f"{PROGRAM}: error: {reason(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; --resume continues from the last state", file=sys.stderr)
        return 130
    if is_first():
        print(f"{result.step} steps, stopped by {result.stopped_by}; {summary(recipe, result)}in {arguments.output}")
    return 0


def summary(recipe: TrainingRecipe, result: TrainingResult) -> str:
    """The best score and what it is of."""
    if result.best is None:
        return "checkpoint "
    return f"best validation {recipe.best_metric} {result.best:.4f}; checkpoints best and last "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, also of examples/train.py."""
    text = "YAML file, or the name of one of the package: synthetic-quick (minutes), own-data, pvtv2-b5-s4, ..."
    parser.add_argument("--recipe", required=True, help=text)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    text = "auto (default: the accelerators that there are), cpu: leave them alone, cuda: an error without one"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=text)
    parser.add_argument("override", nargs="*", metavar="KEY=VALUE", help="values that replace the recipe's")


def register(commands: Any) -> None:
    """Add the sub-command."""
    example = f"{PROGRAM} train --recipe synthetic-quick --output runs/quick max_steps=100"
    add_arguments(add_command(commands, "train", train, "train a model by a recipe", example, check))
