"""Files and folders that are whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """The name to write under; the file takes its own name in the end, and is removed if the writing fails.

    Args:
        path: where the file belongs.
        temporary: in the same folder; default `.partial-` and the name.

    Raises:
        OSError: no room, or no right to write there.
    """
    temporary = path.with_name(f".partial-{path.name}") if temporary is None else temporary
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(folder: Path, name: str) -> Iterator[None]:
    """Remove a folder if its writing fails.

    Args:
        folder: temporary; moving it to its place is part of the writing.
        name: of what is written, for the message.

    Raises:
        OSError: no room; also where safetensors and torch have errors of their own for that.
    """
    try:
        with writing(name):
            yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


# What a write that fails is called: by safetensors, and by torch's writer of archives.
UNWRITTEN = ("I/O error", "inline_container.cc", "PytorchStreamWriter", "PyTorchFileWriter")


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn the errors of libraries that cannot write weights into an `OSError` in words."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or not any(text in str(error) for text in UNWRITTEN):
            raise
        detail = str(error).splitlines()[0].partition("I/O error: ")[2] or "is there room left?"
        raise OSError(f"{name} cannot be written: {detail}") from error
