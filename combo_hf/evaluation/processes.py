"""Several processes on one machine for [`evaluate_dataset`], started and watched from one; errors arrive as errors.

The same as `python -m torch.distributed.run --nproc_per_node N`, whose output of a failure is a page of traceback; for
several machines use that one.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from combo_hf.evaluation.files import count_lines
from combo_hf.evaluation.run import EvaluationOptions, ProgressCallback, evaluate_dataset


POLL_SECONDS = 0.2
GRACE_SECONDS = 5
EXPECTED = (ValueError, OSError, ImportError)  # what a user can do something about


def run_evaluation_processes(count: int) -> Callable[..., dict[str, Any]]:
    """A function like [`evaluate_dataset`] that shares the work among `count` new processes.

    Raises:
        ValueError: fewer than one process, or this is one of several processes already.
    """
    if count < 1:
        raise ValueError(f"wanted at least one process, got {count}.")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("these are several processes already (WORLD_SIZE is set); ask for one process each.")

    def evaluate(
        model: str | Path,
        data: str | Path,
        output: str | Path,
        options: EvaluationOptions | None = None,
        device: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> dict[str, Any]:
        job = {"model": str(model), "data": str(data), "output": str(output), "device": device, "parent": os.getpid()}
        job["options"] = dataclasses.asdict(options or EvaluationOptions())
        with tempfile.TemporaryDirectory() as folder:
            children = [
                _start(job, rank, count, port, Path(folder)) for port in [_free_port()] for rank in range(count)
            ]
            try:
                _watch(children, Path(folder), Path(output), progress)
            finally:
                for child in children:
                    child.kill()
                    child.wait()
        return json.loads((Path(output) / "results.json").read_text(encoding="utf-8"))

    return evaluate


def _start(job: dict[str, Any], rank: int, count: int, port: int, folder: Path) -> subprocess.Popen:
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)  # what the user has set wins
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    environment |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "combo_hf.evaluation.processes", json.dumps(job), str(folder)]
    with open(folder / f"log-{rank}", "wb") as log:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _watch(children: list[subprocess.Popen], folder: Path, output: Path, progress: ProgressCallback | None) -> None:
    """Wait for all; the first failure ends the wait with its error."""
    total_file = folder / "total"
    while True:
        codes = [child.poll() for child in children]
        failed = {rank: code for rank, code in enumerate(codes) if code}
        if failed:
            # One may be seen to fail first only because it lost the one that failed; that one leaves a note.
            deadline = time.monotonic() + GRACE_SECONDS
            while True:
                noted = [rank for rank in range(len(codes)) if (folder / f"error-{rank}.json").is_file()]
                if noted or all(child.poll() is not None for child in children) or time.monotonic() > deadline:
                    break
                time.sleep(POLL_SECONDS)
            rank = next(iter([*noted, *failed]))
            raise _error_of(rank, failed.get(rank, 1), folder)
        if progress is not None and total_file.is_file():
            total = int(total_file.read_text(encoding="utf-8") or 0)
            progress(min(count_lines(output), total), total)
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_SECONDS)


def _error_of(rank: int, code: int, folder: Path) -> Exception:
    path = folder / f"error-{rank}.json"
    if path.is_file():
        name, message = json.loads(path.read_text(encoding="utf-8"))
        kind = getattr(builtins, name, ValueError)
        return kind(message) if issubclass(kind, EXPECTED) else ValueError(message)
    lines = (folder / f"log-{rank}").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    return ChildProcessError(f"process {rank} ended with code {code}{last}; run the same command again to continue.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_with_parent(parent: int) -> None:
    """A parent killed with -9 cannot stop its children; they look for it themselves."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _child(job: dict[str, Any], folder: Path) -> int:
    rank = os.environ["RANK"]
    _end_with_parent(job["parent"])

    def tell_total(_done: int, total: int) -> None:
        if not (folder / "total").is_file():
            (folder / f"total-{rank}").write_text(str(total), encoding="utf-8")
            os.replace(folder / f"total-{rank}", folder / "total")

    try:
        evaluate_dataset(
            job["model"], job["data"], job["output"], EvaluationOptions(**job["options"]), job["device"], tell_total
        )
    except EXPECTED as error:
        temporary = folder / f"error-{rank}.partial"
        temporary.write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")
        os.replace(temporary, folder / f"error-{rank}.json")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_child(json.loads(sys.argv[1]), Path(sys.argv[2])))
