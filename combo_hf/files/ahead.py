"""An iterator that runs in a thread of its own, some way ahead of whoever takes its items.

For two kinds of work that let go of the interpreter lock, such as a network and a video encoder: on two cores they
take as long as the longer of the two.
"""

from __future__ import annotations

import contextvars
import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar


Item = TypeVar("Item")
GRACE = 0.5  # s, for a file that is being written


class _Stopped(BaseException):
    """Raised in the thread when nobody wants its items any more."""


@contextmanager
def running_ahead(items: Iterator[Item], size: Callable[[Item], int], most: int) -> Iterator[Iterator[Item]]:
    """Let an iterator run beside the block, and take its items there. When the block is left, it has ended.

    Args:
        items: read by the thread alone. What it raises is raised where its items are taken.
        size: of an item.
        most: the iterator waits while the items that nobody has taken yet are larger than this together.
    """
    ahead = _Ahead(items, size, most)
    ahead.thread.start()
    try:
        yield ahead.items()
    finally:
        ahead.stop()


class _Ahead(Generic[Item]):
    def __init__(self, items: Iterator[Item], size: Callable[[Item], int], most: int) -> None:
        self._items, self._size, self._most = items, size, most
        self._ready: deque[Item] = deque()
        self._held = 0
        self._ended, self._unwanted = False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        context = contextvars.copy_context()  # progress bars of web pages know by it whose they are
        self.thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def items(self) -> Iterator[Item]:
        """In order, as they get ready."""
        while True:
            with self._changed:
                while not self._ready and not self._ended:
                    self._changed.wait()
                if not self._ready:
                    break
                item = self._ready.popleft()
                self._held -= self._size(item)
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the thread: at its next item, or, if that takes long, as Ctrl-C would, between any two steps."""
        with self._changed:
            self._unwanted = True
            self._changed.notify_all()
        self.thread.join(GRACE)
        with self._changed:
            if not self._ended and self.thread.ident is not None:
                number = ctypes.c_ulong(self.thread.ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(_Stopped))
        self.thread.join()

    def _run(self) -> None:
        with suppress(_Stopped):  # which may come late
            self._work()

    def _work(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._ready.append(item)
                    self._held += self._size(item)
                    self._changed.notify_all()
                    while self._held > self._most and not self._unwanted:
                        self._changed.wait()
                if self._unwanted:
                    break
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._end()

    def _end(self) -> None:
        try:
            close = getattr(self._items, "close", None)  # of a generator: its files are closed now, and in this thread
            if close is not None:
                close()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
