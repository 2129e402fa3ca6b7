"""Arrays of an .npz file that may be damaged, or made by somebody else."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy


MAX_BYTES = 1 << 37  # 128 GiB: prepared clips of a whole data set; what the file really holds may not be more
MOST_PACKED = 1100  # deflate makes nothing smaller than by 1032


def read_npz(
    path: str | Path, max_bytes: int = MAX_BYTES, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Arrays of a file by name; objects, which numpy would unpickle, are refused.

    Args:
        path: the file.
        max_bytes (`int`): unpacked, of all arrays together. A zip of 1 MB may unpack to 1 GB.
        names (*optional*): of the arrays that are read; default: all.

    Raises:
        ValueError: damaged, no .npz file, with objects in it, without an array that was asked for, or too large when
            unpacked.
        MemoryError: the arrays are as large as the file says, and do not fit.
        OSError: the file cannot be opened.
    """
    name = Path(path).name
    with open(path, "rb") as handle:  # opened here: of a damaged file numpy would leave its own handle open
        try:
            _check_sizes(handle, max_bytes)
        except Exception as error:  # a header of brackets takes all memory of the parser
            raise _damaged(name, error) from error
        try:
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as file:
                return {key: np.asarray(file[key]) for key in (file.files if names is None else names)}
        except MemoryError:  # it is not the file's fault: its sizes have been looked at
            raise
        except Exception as error:  # zlib.error, struct.error, NotImplementedError, ...: any damage
            raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> ValueError:
    what = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"{name} is damaged or no .npz file ({what[0][:120]}).")


def _check_sizes(handle: IO[bytes], max_bytes: int) -> None:
    """Raise `ValueError` where a file promises more than it can hold: numpy makes the room before it reads."""
    length = handle.seek(0, os.SEEK_END)
    with zipfile.ZipFile(handle) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        if total > max_bytes:
            raise ValueError(f"unpacked it would have {total} bytes; at most {max_bytes} are read")
        for entry in entries:
            if entry.compress_size > length or entry.file_size > MOST_PACKED * (entry.compress_size + 1):
                raise ValueError(f"{entry.filename} cannot have {entry.file_size} bytes")
            with archive.open(entry) as file:
                version = npy.read_magic(file)
                read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read_header(file)
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize > entry.file_size - file.tell():
                    raise ValueError(f"{entry.filename} is shorter than its header says")
