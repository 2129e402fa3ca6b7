"""Several processes for work on many files: progress, and no orphans."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar


GRACE_SECONDS = 5.0
WORKER_NAME = "combo_hf worker"  # by it `combo_hf/__init__.py` knows one, and registers nothing there
Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(work: Callable[[Task], Result], tasks: Sequence[Task], num_processes: int = 1) -> Iterator[Result]:
    """Call `work` on every task and yield what it returns, in the order of completion.

    Processes are spawned, since forking one that has run torch may hang; a script that calls this with
    `num_processes` above 1 needs the `if __name__ == "__main__"` guard. They end with the process that started them,
    even if that is killed. In them, `import combo_hf` is quick: `work` calls `combo_hf.register` if it needs COMBO in
    transformers' Auto classes.

    Args:
        work: a function of a module (it is sent by name).
        tasks: its arguments, one each.
        num_processes (`int`): 1 works in this process.

    Raises:
        ValueError: fewer than one process.
        ChildProcessError: a process was killed, by lack of memory for example.
        Exception: whatever `work` raises.
    """
    if num_processes < 1:
        raise ValueError(f"num_processes must be at least 1, got {num_processes}.")
    if num_processes == 1 or len(tasks) < 2:
        yield from map(work, tasks)
        return
    pool = ProcessPoolExecutor(min(num_processes, len(tasks)), _WorkerContext(), _prepare_worker)
    try:
        waiting: set[Future[Result]] = set()
        for task in tasks:
            with _interrupts_kept_back():
                waiting.add(pool.submit(_call, work, task))
            if len(waiting) >= 4 * num_processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BaseException as error:
        _end(list((pool._processes or {}).values()))  # they would finish what nobody waits for
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                "a worker process was killed, perhaps by lack of memory; use fewer processes and run it again, "
                "finished parts are kept."
            ) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker(multiprocessing.context.SpawnProcess):
    """A process of the pool; its name is the first thing that it learns, before it imports anything."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.name = WORKER_NAME


class _WorkerContext(multiprocessing.context.SpawnContext):
    Process = _Worker


def _end(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Ask processes to end, and kill those that do not: one that waits inside a library never sees the signal."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        if not multiprocessing.connection.wait([process.sentinel], max(0, deadline - time.monotonic())):
            process.kill()


@contextlib.contextmanager
def _interrupts_kept_back() -> Iterator[None]:
    """Processes started meanwhile never get the Ctrl-C that a terminal sends to all, not even while they still import;
    this one gets it at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(work: Callable[[Task], Result], task: Task) -> Result:
    """Run a task; a pool would catch the exit asked for, and go on with the tasks that wait in its pipe."""
    try:
        return work(task)
    except SystemExit:
        os._exit(1)


def _prepare_worker() -> None:
    """Leave Ctrl-C to the owner, unwind (and remove partial files) on SIGTERM, and end when the owner is killed.

    A pool does not notice that its owner has gone; its processes would wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    parent = multiprocessing.parent_process()

    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
