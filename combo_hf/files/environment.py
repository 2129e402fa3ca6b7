"""What there is on this machine, and in a model: device, processor cores, package versions, fingerprint of weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING


if TYPE_CHECKING:  # torch takes seconds to load, and versions can be told without it
    import torch


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device named, or the first accelerator, or the CPU.

    Raises:
        ValueError: no such device here.
    """
    import torch

    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} is not usable here: {str(error).splitlines()[0]}") from error


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


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Version of every package by its name on PyPI, "not installed" for one that is absent."""
    return {name: _version(name) for name in names}


def fingerprint_weights(model: torch.nn.Module) -> str:
    """Short name of a model's weights, whatever file they came from: of names, types, shapes and every value."""
    import torch

    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
