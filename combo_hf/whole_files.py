"""Files that are whole or absent."""

from __future__ import annotations

import os
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
