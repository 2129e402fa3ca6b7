"""Foreign weight files, read without running what is in them.

Three kinds occur: PyTorch files (detectron2 checkpoints, VGGish, PVTv2), ImageNet pickles of detectron2 (numpy
arrays), and safetensors. PyTorch files go through `torch.load(weights_only=True)`, pickles through an unpickler that
knows arrays of numbers and nothing else.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from combo_hf.conversion.pickles import NUMPY, load_arrays, unpack


def read_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors by name from a file or from a dict, with or without the `{"model": ...}` of detectron2.

    Args:
        source: a `.pth`, `.pt`, `.bin`, `.safetensors` or `.pkl` file, or the dict itself (tensors or numpy arrays).

    Raises:
        ValueError: no such file, truncated, not a weight file, or a dict with something else than tensors in it.
        TypeError: `source` is neither a path nor a dict.
    """
    if isinstance(source, Mapping):
        return _tensors(source, "the given state dict")
    if not isinstance(source, (str, Path)):
        raise TypeError(f"wanted a path or a state dict, got {type(source).__name__}.")
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    content = _read_pickle(path) if path.suffix.lower() == ".pkl" else _read_torch(path)
    return _tensors(content, path.name)


def _read_torch(path: Path) -> Any:
    """Tensors, plain containers and, beside the model (a best score, say), numpy numbers and arrays."""
    numpy_data = [(replacement, name) for name, replacement in NUMPY.items()]
    try:
        with torch.serialization.safe_globals(numpy_data), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols; what fails is told below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:  # its text advises to load the file unsafely
        if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path.name} holds a {found.group(1)}, which is no tensor, could run code and is not loaded. "
                "If you trust the file, save its state dict alone with torch.save."
            ) from error
        raise ValueError(f"{path.name} is truncated or not a PyTorch weight file.") from error
    except Exception as error:  # RuntimeError, EOFError, KeyError, ...: what a damaged file provokes
        raise ValueError(f"{path.name} is truncated or not a PyTorch weight file ({_first_line(error)}).") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is truncated or not a safetensors file ({_first_line(error)}).") from error


def _read_pickle(path: Path) -> Any:
    try:
        return load_arrays(path.read_bytes())
    except Exception as error:  # any exception may come out of a damaged pickle
        raise ValueError(f"{path.name} is truncated or not a pickle of arrays ({_first_line(error)}).") from error


def _tensors(content: Any, name: str) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{name} holds no state dict: wanted names -> tensors, got {type(content).__name__}.")
    tensors = {}
    for key, value in content.items():
        value = unpack(value)
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))  # a scalar stays one
        if not isinstance(key, str) or not torch.is_tensor(value):
            raise ValueError(f"{name} is not a state dict: {key!r} is a {type(value).__name__}, wanted a tensor.")
        tensors[key] = value
    return tensors


def _is_zip(path: Path) -> bool:
    """mmap works for PyTorch's zip format (since 1.6) only; VGGish's and PVTv2's files are older."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
