"""What the sub-commands share: the parser, names in front of messages, progress."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from combo_hf.files.progress import silence
from combo_hf.files.wording import visible


PROGRAM = "combo-hf"
BAD_INPUT = (ValueError, OSError, ImportError)
LONGEST_REASON = 1000  # letters: a value that a message repeats may be a list of a million


class InputError(ValueError):
    """Bad input, with the name of the file or option in front: `<name>: <reason>`."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2, and which takes words between the options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Take files and KEY=VALUE wherever they stand; argparse, which parses a sub-command by this method, takes
        those of one place and leaves the rest.
        """
        known, rest = super().parse_known_args(args, namespace)
        several = [action.dest for action in self._get_positional_actions() if action.nargs in ("*", "+")]
        if several and not any(word.startswith("-") and word != "-" for word in rest):
            words, rest = [*getattr(known, several[0]), *rest], []
            setattr(known, several[0], words)
        return known, rest

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.split()[0]}: error: {message}\n")


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
    example: str,
    check: Callable[[argparse.Namespace], object] | None = None,
    light: bool = False,
) -> argparse.ArgumentParser:
    """Add a sub-command.

    Args:
        commands: what `add_subparsers` returned.
        name (`str`): of the sub-command.
        run: called with the parsed arguments; returns an exit code or `None`. Its docstring is the description.
        text (`str`): one line for the list of commands.
        example (`str`): a command line, shown by `--help`.
        check: called before transformers is loaded, which takes seconds: a missing file or folder is said at once.
        light: it needs no network of ours: transformers is not loaded before it runs.
    """
    about = textwrap.fill(" ".join(f"{run.__doc__}".split()), shutil.get_terminal_size().columns - 2)
    shown = {"description": about, "epilog": f"example:\n  {example}"}  # raw, or the example could not be copied
    command = commands.add_parser(name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter, **shown)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.add_argument("--quiet", action="store_true", help="say nothing but errors: no results, no progress")
    command.set_defaults(run=run, check=check, light=light)
    return command


def add_group(commands: Any, name: str, text: str) -> Any:
    """Add a sub-command that has sub-commands of its own, and return what those are added to."""
    group = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
    return group.add_subparsers(dest=f"{name}_command", required=True, metavar="COMMAND", parser_class=Parser)


def positive(text: str) -> int:
    """Type of an option: a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def generator_option(text: str) -> tuple[str, Any]:
    """Type of an option: NAME=VALUE of a proposal generator; a value that is no literal of Python is a text."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted NAME=VALUE, points_per_side=16 for example")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def proposals(text: str) -> dict[str, Any]:
    """Type of an option: NAME or NAME=MODEL of a proposal model."""
    name, mark, model = text.partition("=")
    if not name or (mark and not model):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME=folder or Hub id")
    return {"name": name, "model": model} if mark else {"name": name}


def device(text: str) -> str | None:
    """Type of an option: a device that torch can use here; `auto` is the first accelerator there is."""
    from combo_hf.files.environment import resolve_device

    if text == "auto":
        return None
    try:
        resolve_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


DEVICE = "auto (default: the first accelerator there is), cpu, cuda, cuda:1, ..."


def missing(path: Path) -> None:
    """Raise `FileNotFoundError` where there is no such file or folder."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")


def is_first() -> bool:
    """Of several processes (torchrun sets their numbers) one speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def named(source: Any, loading: bool = False) -> Iterator[None]:
    """Put the name of the file in front of what went wrong with it.

    Args:
        source: the file.
        loading: nothing but this file is read meanwhile, by libraries that raise what they like: whatever it is, the
            file is to blame. Memory that does not suffice is not.
    """
    try:
        yield
    except BAD_INPUT as error:
        if isinstance(error, BrokenPipeError):
            raise
        text, name = reason(error), Path(str(source)).name
        known = isinstance(error, InputError) or text.startswith((f"{name}:", f"{source}:"))
        raise InputError(text if known else f"{name}: {text}") from error
    except Exception as error:
        if not loading or isinstance(error, MemoryError) or "allocate" in str(error) or "memory" in str(error):
            raise
        text = f"cannot be loaded ({type(error).__name__}: {reason(error)[:200]})"
        raise InputError(f"{Path(str(source)).name}: {text}") from error


def reason(error: Exception) -> str:
    """One line, without the machinery of the exception."""
    if isinstance(error, OSError) and error.strerror:
        return visible(f"{Path(str(error.filename)).name}: {error.strerror}" if error.filename else error.strerror)
    text = str(error).strip() or type(error).__name__
    if text.startswith("Caught ") and "DataLoader worker process" in text:  # the error itself follows its traceback
        found = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): (.+)$", text, re.MULTILINE)
        text = found[-1] if found else text
    return visible(" ".join(text.split("\n")[0].split()))[:LONGEST_REASON]


def load_transformers() -> None:
    """Make transformers know COMBO, and keep its remarks and bars to itself."""
    import combo_hf

    combo_hf.register()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Nothing on stdout, and no progress, where `quiet`."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), silence():
        yield
