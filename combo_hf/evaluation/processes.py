"""Several processes on one machine for [`evaluate_dataset`], started and watched from one; errors arrive as errors.

`python -m torch.distributed.run --nproc_per_node N -m combo_hf evaluate ...` does the same work, but ends with a page
of traceback where this ends with one line, and it is a second command to learn. For several machines use that one.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from combo_hf import register
from combo_hf.evaluation.prepare import EvaluationOptions
from combo_hf.evaluation.run import ProgressCallback, evaluate_dataset
from combo_hf.files.pool import run_tasks


EXPECTED = (ValueError, OSError, ImportError)  # what a user can do something about


@dataclass(frozen=True)
class _Job:
    """What every process is asked to do."""

    model: str
    data: str
    output: str
    options: EvaluationOptions
    device: str | None
    progress: ProgressCallback | None
    processes: int
    port: int


def evaluate_in_processes(
    count: int,
    model: str | Path,
    data: str | Path,
    output: str | Path,
    options: EvaluationOptions | None = None,
    device: str | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """As [`evaluate_dataset`], with the work shared among `count` new processes.

    A script that calls this needs the `if __name__ == "__main__"` guard.

    Args:
        count (`int`): number of processes.
        model, data, output, options, device: of [`evaluate_dataset`].
        progress (*optional*): as there, but it is sent to the first process and called in it.

    Raises:
        ValueError: fewer than one process, or this is one of several processes already.
        Exception: whatever [`evaluate_dataset`] raises in one of them.
        ChildProcessError: one of them was killed.
    """
    if count < 1:
        raise ValueError(f"wanted at least one process, got {count}.")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("these are several processes already (WORLD_SIZE is set); ask for one process each.")
    if count == 1:
        return evaluate_dataset(model, data, output, options, device, progress)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = _Job(str(model), str(data), str(output), options or EvaluationOptions(), device, progress, count, port)
    lost: Exception | None = None
    for error in run_tasks(partial(_evaluate, job), range(count), count):
        if isinstance(error, EXPECTED):
            raise error
        lost = lost or error  # perhaps only that the connection to another one broke, whose own error is to come
    if lost is not None:
        raise ChildProcessError(f"{lost}; run the same command again to continue.") from lost
    return json.loads((Path(output) / "results.json").read_text(encoding="utf-8"))


def _evaluate(job: _Job, rank: int) -> Exception | None:
    """The part of one process; its error, if there is one."""
    register()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(job.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job.port)}
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.processes))
    progress = job.progress if rank == 0 else None
    try:
        evaluate_dataset(job.model, job.data, job.output, job.options, job.device, progress)
    except (*EXPECTED, RuntimeError) as error:
        return _plain(error)
    return None


def _plain(error: Exception) -> Exception:
    """The error as one of Python's own, which can be sent whatever library it is of."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    kinds = (FileExistsError, FileNotFoundError, ConnectionError, OSError, ImportError, ValueError, RuntimeError)
    return next(kind for kind in kinds if isinstance(error, kind))(str(error))
