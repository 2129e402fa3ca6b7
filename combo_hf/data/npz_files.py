"""Arrays of an .npz file that may be damaged, or made by somebody else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np


MAX_BYTES = 1 << 37  # 128 GiB: prepared clips of a whole data set; what the file really holds may not be more


def read_npz(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """All arrays of a file by name; objects, which numpy would unpickle, are refused.

    Args:
        path: the file.
        max_bytes (`int`): unpacked, of all arrays together. A zip of 1 MB may unpack to 1 GB.

    Raises:
        ValueError: damaged, no .npz file, with objects in it, or too large when unpacked.
        OSError: the file cannot be opened.
    """
    name = Path(path).name
    with open(path, "rb") as handle:  # opened here: of a damaged file numpy would leave its own handle open
        try:
            with zipfile.ZipFile(handle) as archive:
                total = sum(entry.file_size for entry in archive.infolist())
            if total > max_bytes:
                raise ValueError(f"unpacked it would have {total} bytes; at most {max_bytes} are read")
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as file:
                return {key: np.asarray(file[key]) for key in file.files}
        except Exception as error:  # zlib.error, struct.error, NotImplementedError, MemoryError, ...: any damage
            what = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"{name} is damaged or no .npz file ({what[0][:120]}).") from error
