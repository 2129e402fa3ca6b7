"""How far long work has come: a bar on a terminal; elsewhere (nohup, Slurm, a notebook) a line every so often."""

from __future__ import annotations

import datetime
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


LINE_EVERY = 30.0  # seconds
FIRST_LINE = 3.0  # of work that cannot be counted
_SILENT = ContextVar("silent", default=False)


class Progress:
    """`progress(done, total)` shows how far the work has come; quick work prints no line at all.

    Before its first call it may be sent to another process.

    Args:
        name: what is done, shown in front.
        unit: what is counted, such as "clip".
        total (*optional*): how many there are; may also be said in a call.
        done: how many are done already.
        shown: off: nothing is ever written.
    """

    def __init__(self, name: str, unit: str, total: int | None = None, done: int = 0, shown: bool = True) -> None:
        self.name, self.unit, self.total, self.done = name, unit, total, done
        self.shown = shown and not _SILENT.get()
        self._first = done
        self._bar: Any = None
        self._started = self._told = 0.0

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Tell.

        Args:
            done: how many are done, of all.
            total (*optional*): how many there are.
            note: what else is worth a word, such as a loss.
        """
        self.done, self.total = done, self.total if total is None else total
        if not self.shown:
            return
        if sys.stderr.isatty():
            self._move_bar(note)
            return
        now = time.monotonic()
        if not self._started:
            self._started = self._told = now
            self._first = done
        elif now - self._told >= LINE_EVERY:
            self._told = now
            print(self._line(now - self._started, note), file=sys.stderr, flush=True)

    def advance(self, count: int = 1, note: str = "") -> None:
        """So many more are done."""
        self(self.done + count, note=note)

    def close(self) -> None:
        """The work is done, or given up."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        self(self.done)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _move_bar(self, note: str) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(desc=self.name, unit=self.unit, total=self.total, initial=self.done, leave=False)
        self._bar.total = self.total
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(self.done - self._bar.n)

    def _line(self, elapsed: float, note: str) -> str:
        of = "" if self.total is None else f"/{self.total}"
        left = ""
        if self.total is not None and self.done > self._first:
            left = f", about {_span(elapsed * (self.total - self.done) / (self.done - self._first))} to go"
        return f"{self.name}: {self.done}{of} {self.unit}s after {_span(elapsed)}{left}{note and ', '}{note}"


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Work that cannot be counted: after some seconds, and then every so often, a line on stderr that it goes on."""
    ended, started = threading.Event(), time.monotonic()

    def tell() -> None:
        wait = FIRST_LINE
        while not ended.wait(wait):
            print(f"{text}: {_span(time.monotonic() - started)}", file=sys.stderr, flush=True)
            wait = LINE_EVERY

    if not _SILENT.get():
        threading.Thread(target=tell, name="combo-stage", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def silence() -> Iterator[None]:
    """No progress of what is begun inside is shown."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def _span(seconds: float) -> str:
    """`"0:01:30"`"""
    return str(datetime.timedelta(seconds=round(seconds)))
