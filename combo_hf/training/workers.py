"""How many processes may assemble batches here."""

from __future__ import annotations

import os
import sys


def useful_workers(wanted: int) -> int:
    """`wanted`, or the number of cores that this process may use where that is less, which is then said in one line.

    More would only take turns, and torch would warn of it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted <= cores:
        return wanted
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        print(f"num_workers: {wanted} wanted, {cores} used, as many as there are cores here", file=sys.stderr)
    return cores
