"""The command `combo-hf`: thin sub-commands over public functions, in `combo_hf/commands`.

Bad input ends with exit code 2 and one line on stderr, Ctrl-C with 130; `--debug` shows the traceback instead.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .commands import benchmark, conversion, data, evaluation, export, hub, proposals, segment, training
from .commands.common import BAD_INPUT, PROGRAM, Parser, reason


GROUPS = (segment, proposals, data, training, evaluation, conversion, export, hub, benchmark)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; default those of the process.

    Returns:
        Exit code: 0 done, 2 bad input, 130 interrupted.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        with _terminable():
            _quiet_transformers()
            return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted, nothing partial was left", file=sys.stderr)
        return 130
    except BAD_INPUT as error:
        if arguments.debug:
            raise
        print(f"{PROGRAM}: error: {reason(error)}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands; every one has `--help` with an example."""
    parser = Parser(prog=PROGRAM, description="Which pixels make this sound? Audio-visual segmentation of films.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for group in GROUPS:
        group.register(commands)
    return parser


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that temporary files go."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
