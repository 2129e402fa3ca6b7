"""Ctrl-C while `combo-hf` is still importing: torch takes seconds, and Python would show its insides."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any


def end_quietly_when_interrupted() -> None:
    """If this process is the command line, let Ctrl-C end it with one line until [`interrupt_as_usual`].

    Nothing has been written by then, so there is nothing to clean up. An ignored signal (a background job) stays
    ignored.
    """
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def interrupt_as_usual() -> None:
    """`KeyboardInterrupt` from here on."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    # A worker has the arguments of its parent; one that is spawned imports before it knows of having a parent.
    if multiprocessing.parent_process() is not None or multiprocessing.current_process().name != "MainProcess":
        return False
    program = sys.argv[0] if sys.argv else ""
    return Path(program).stem == "combo-hf" or (program == "-m" and __package__ in sys.orig_argv)


def _end(number: int, frame: Any) -> None:
    os.write(2, b"combo-hf: interrupted\n")
    os._exit(130)  # an exception would be caught, or turned into another, by the modules being loaded
