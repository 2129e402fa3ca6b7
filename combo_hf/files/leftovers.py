"""Unfinished files and folders carry the process that makes them in their names: what a killed one left can go.

A name is `PREFIX-PLACE-PROCESS-...`. Within one place (this machine since its start, this container) a process that no
longer runs has left it; elsewhere, and on Windows, only age tells.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path


PARTIAL = ".partial"
# Seconds without a change after which an unfinished file must be of a killed process. A living one may write nothing
# for hours: sixteen rows of ten frames, a minute each, are one part of a table.
STALE = 24 * 3600
STARTED = time.time()  # an older file with the number of this process is of another one
OWNER = re.compile(r"\.[a-z]+-([0-9a-f]{8})-(\d+)-")


def owned_prefix(prefix: str = PARTIAL) -> str:
    """What the names of this process's unfinished files begin with; `prefix` is a dot and small letters."""
    return f"{prefix}-{_place()}-{os.getpid()}-"


def remove_leftovers(folder: Path, prefix: str = PARTIAL, deep: bool = False) -> list[Path]:
    """Remove what killed processes left unfinished in a folder, and nothing that a running one may still need.

    Args:
        folder: need not exist.
        prefix: of the names, as for [`owned_prefix`].
        deep: in all folders below, too.

    Returns:
        What was removed.
    """
    if not folder.is_dir():
        return []
    found = folder.rglob(f"{prefix}-*") if deep else folder.glob(f"{prefix}-*")
    removed = [path for path in list(found) if _is_left_over(path)]
    for path in removed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # another process may have removed it
                path.unlink()
    return removed


def _is_left_over(path: Path) -> bool:
    owner = OWNER.match(path.name)
    if owner is None and not path.name.startswith(f"{PARTIAL}-"):  # somebody else's, `.combo-settings` for example
        return False
    try:
        changed = max((entry.lstat().st_mtime for entry in (path, *path.rglob("*"))), default=0.0)
    except OSError:  # it is just being finished
        return False
    if owner is None or owner[1] != _place() or sys.platform == "win32":  # where os.kill(process, 0) would end it
        return time.time() - changed > STALE
    if int(owner[2]) == os.getpid():
        return changed < STARTED
    return not _runs(int(owner[2])) or time.time() - changed > STALE


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


@functools.cache
def _place() -> str:
    """Short name of where a process number means the same process."""
    facts = [platform.node()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
