"""One run at a time in a folder, by a lock that ends with its process, however that ends.

The lock is on a file, `.running`, which names the process and its machine and goes with the run. After kill -9 the
file stays, without the lock: the next run takes it. A link of that name, which may come with a folder from a stranger,
is refused: it would be the file at its other end that is written to. Other machines see the lock where the file system
they share passes locks on (NFS and most of its kind do); where one has no locks at all, nobody is refused.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from combo_hf.files.atomic import open_plain


MARKER = ".running"
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
WINDOWS_BYTE = 1 << 30  # locked bytes cannot be read there: one beyond the text
_held: dict[Path, int] = {}  # folder -> process, since a forked one has this table, too, but not the lock


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep other processes that do the same out of a folder; who holds it may take it again.

    Args:
        folder: made if it is missing, and removed in the end if nothing came into it.

    Raises:
        FileExistsError: another process works there, the folder is a file, or `.running` in it is a link.
        OSError: the folder cannot be made or written to.
    """
    place = folder.resolve()
    if _held.get(place) == os.getpid():
        yield
        return
    made = [path for path in (place, *place.parents) if not path.exists()]
    place.mkdir(parents=True, exist_ok=True)
    try:
        handle = _take(place / MARKER, folder)
        _held[place] = os.getpid()
        try:
            yield
        finally:
            del _held[place]
            with suppress(OSError):  # where an open file cannot be removed: the next run takes it
                (place / MARKER).unlink()
            os.close(handle)
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


def _take(path: Path, folder: Path) -> int:
    """Handle of the locked file; closing it, or the end of the process, ends the lock."""
    while True:
        handle = open_plain(path, os.O_RDWR)
        try:
            _lock(handle)
            if _is_at(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
                return handle
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in TAKEN:
                owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise FileExistsError(
                    f"{folder} is in use by another run ({owner}); wait until it has ended, or choose another folder."
                ) from None
            os.close(handle)
            raise
        os.close(handle)  # the one before has just removed it


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int) -> None:
    """Lock a file for this process, not for those it forks (they may outlive it).

    Raises:
        OSError: another process holds it (`errno` is one of `TAKEN`).
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, WINDOWS_BYTE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise  # any other: this file system has no locks
