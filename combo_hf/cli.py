"""The command `combo-hf`: thin sub-commands over public functions, in `combo_hf/commands`.

Bad input ends with exit code 2 and one line on stderr, Ctrl-C with 130, an error that nobody foresaw with 3; `--debug`
shows the traceback instead.
"""

from __future__ import annotations

import _thread
import argparse
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from combo_hf import __version__
from combo_hf.commands import benchmark, data, evaluation, models, proposals, segment, training
from combo_hf.commands.common import BAD_INPUT, PROGRAM, Parser, load_transformers, quietly, reason


GROUPS = (segment, proposals, data, training, evaluation, models, benchmark)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; default those of the process.

    Returns:
        Exit code: 0 done, 2 bad input or no room (memory, disk), 3 a fault of this program, 130 interrupted, 141 the
        reader of the output has gone.
    """
    parser = build_parser()
    _complete(parser)
    arguments = parser.parse_args(argv)
    try:
        with _terminable(process_ends=argv is None), quietly(arguments.quiet):
            if arguments.check is not None:
                arguments.check(arguments)
            if not arguments.light:
                load_transformers()
            code = arguments.run(arguments) or 0
            sys.stdout.flush()  # a full disk or a closed pipe shows here, not when Python ends
            return code
    except KeyboardInterrupt:
        if argv is None:  # the process ends: a last look through torch's objects would take seconds
            gc.freeze()
        print(f"{PROGRAM}: interrupted, nothing partial was left", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        return _explain(error)


def run_script(script: Callable[[], int | None]) -> int:
    """Run the `main` of a script as a sub-command is run: an error is one line, with `--debug` a traceback.

    Args:
        script: parses `sys.argv` itself, from which `--debug` is taken away.

    Returns:
        Exit code, as of [`main`].
    """
    debug = "--debug" in sys.argv
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--debug"]
    program = os.path.basename(sys.argv[0])
    try:
        return script() or 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        return _explain(error, program)


def _explain(error: Exception, program: str = PROGRAM) -> int:
    """Say in one line what went wrong; returns the exit code."""
    if isinstance(error, BrokenPipeError):  # `combo-hf ... | head`: as if the signal had ended it
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 141
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate" in str(error):
        _print_error("not enough memory; try a smaller --batch-size, smaller pictures, or --device cpu", program)
        return 2
    if isinstance(error, BAD_INPUT):
        _print_error(reason(error), program)
        return 2
    text = f"unexpected {type(error).__name__}: {reason(error)} (--debug shows where; please report it)"
    _print_error(text, program)
    return 3


def _print_error(text: str, program: str) -> None:
    with suppress(OSError, ValueError):  # stderr may be closed or its disk full
        print(f"{program}: error: {text}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands; every one has `--help` with an example."""
    parser = Parser(prog=PROGRAM, description="Which pixels make this sound? Audio-visual segmentation of videos.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for group in GROUPS:
        group.register(commands)
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions (extra `completion`), and end."""
    if "_ARGCOMPLETE" in os.environ:
        with suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)


@contextmanager
def _terminable(process_ends: bool) -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that temporary files go; later ones must not disturb that.

    Args:
        process_ends: after this; then later ones are ignored until it has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are somebody else's business
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] == signal.SIG_IGN:  # a job in the background of a shell
        del before[signal.SIGINT]
    hook, stopped = sys.unraisablehook, False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        # Python writes there that one came just now, and what generators say when they are closed in the middle.
        sys.unraisablehook = again
        for known in before:
            signal.signal(known, signal.SIG_IGN)
        signal.default_int_handler(number, frame)

    def again(unraisable: Any) -> None:
        # Where an object is finalized, Python drops it; in a moment, for from in here it would be dropped, too.
        if unraisable.exc_type is KeyboardInterrupt:
            signal.signal(signal.SIGTERM, stop)
            timer = threading.Timer(0.05, _thread.interrupt_main, [signal.SIGTERM])
            timer.daemon = True
            timer.start()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        ends = stopped and process_ends
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ends else handler)
        sys.unraisablehook = sys.unraisablehook if ends else hook
