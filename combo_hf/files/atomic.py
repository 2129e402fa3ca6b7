"""Files and folders that are whole or absent: the one way in which this package writes.

What is being written has a temporary name beside its place, `.partial-PLACE-PROCESS-TOKEN`, and gets its own name when
it is complete. The temporary name says which process is at work, so that what a killed one has left behind can be
removed. Within one PLACE (this machine since its start, or this container) a process that no longer runs has left it;
elsewhere, and on Windows, only its age tells.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


PARTIAL = ".partial"
# Seconds without a change after which an unfinished file must be of a killed process. A living one may write nothing
# for hours: sixteen rows of ten frames, a minute each, are one part of a table.
STALE = 24 * 3600
STARTED = time.time()  # an older file with the number of this process is of another one
OWNER = re.compile(r"\.[a-z]+-([0-9a-f]{8})-(\d+)-")
# What a write that fails is called: by safetensors, and by torch's writer of archives.
UNWRITTEN = ("I/O error", "inline_container.cc", "PytorchStreamWriter", "PyTorchFileWriter")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The name to write a file under; it takes its own name in the end, and is removed if the writing fails.

    What killed processes have left unfinished in the same folder is removed, too.

    Args:
        path: where the file belongs; the temporary name has its ending, by which many writers choose the format.

    Raises:
        OSError: no room, or no right to write there.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(target: str | Path) -> Iterator[Path]:
    """The folder to write into; it takes its own name in the end, in place of an older one if there is one.

    If the writing fails, it is removed and the older one stays. If the process is killed between the two renames at
    the end, [`recover_folder`] (which the next call begins with) puts the older one back.

    Raises:
        OSError: no room, or no right to write there.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(target)
    temporary = _temporary(target)
    with removed_on_failure(temporary, str(target)):
        temporary.mkdir()
        yield temporary
        if target.exists():
            os.replace(target, older_folder(target))
        try:
            os.replace(temporary, target)
        except BaseException:
            recover_folder(target)
            raise
    remove(older_folder(target))


def recover_folder(target: Path) -> None:
    """Undo what a [`replacing_folder`] that was killed has left."""
    if not target.exists() and older_folder(target).exists():
        os.replace(older_folder(target), target)
    remove(older_folder(target))
    remove_leftovers(target.parent)


@contextmanager
def removed_on_failure(folder: Path, name: str) -> Iterator[None]:
    """Remove a temporary folder if its writing fails.

    Args:
        folder: moving it to its place is part of the writing.
        name: of what is written, for the message.

    Raises:
        OSError: no room; also where safetensors and torch have errors of their own for that.
    """
    try:
        with writing(name):
            yield
    except BaseException:
        remove(folder)
        raise


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


def write_text(path: str | Path, text: str) -> None:
    """Write a text file that is whole or absent, as UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file that is whole or absent."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def appending(path: Path) -> IO[bytes]:
    """A file that lines are added to; made if it is missing.

    Raises:
        FileExistsError: as of [`open_plain`].
        OSError: no room, or no right to write there.
    """
    return os.fdopen(open_plain(path, os.O_WRONLY | os.O_APPEND), "ab")


def open_plain(path: Path, flags: int) -> int:
    """Handle of a file, made if it is missing, and never of one that it links to.

    A file that is written to under its own name may be a link where a folder comes from a stranger.

    Args:
        flags: of `os.open`, how it is used.

    Raises:
        FileExistsError: it is a link (hard ones too), a folder or a device.
    """
    refused = FileExistsError(f"{path} is a link or no plain file, so nothing is written to it; remove it.")
    flags |= os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():  # Windows has no O_NOFOLLOW
            raise refused
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise refused from None
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise refused
    return handle


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link and not what it links to; nothing where that fails."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # another process may have removed it
            path.unlink()


def write_below(root: Path, path: str | Path, data: bytes) -> None:
    """Write a file, whole or not at all, in folders below `root` that are made where they are missing.

    Args:
        root: must be there; a folder that was removed while a run works in it is an error, not made again.
        path: from `root` on.

    Raises:
        FileNotFoundError: `root` is gone.
        OSError: no room, or no right to write there.
    """
    make_below(root, (root / path).parent)
    write_bytes(root / path, data)


def make_below(root: Path, folder: Path) -> None:
    """Make a folder below `root`, which must be there.

    Raises:
        FileNotFoundError: `root` is gone.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is gone: it was removed while files were being written into it.")
    folder.mkdir(parents=True, exist_ok=True)


def owned_prefix(prefix: str = PARTIAL) -> str:
    """What the names of this process's unfinished files begin with; `prefix` is a dot and small letters."""
    return f"{prefix}-{_place()}-{os.getpid()}-"


def is_partial(path: Path) -> bool:
    """Whether a name is that of something unfinished."""
    return path.name.startswith(f"{PARTIAL}-")


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
    pattern = f"{prefix}-*"
    unfinished = list(folder.rglob(pattern) if deep else folder.glob(pattern))
    removed = [path for path in unfinished if _is_left_over(path)]
    for path in removed:
        remove(path)
    return removed


def _temporary(path: Path) -> Path:
    _clean_once(path.parent)
    return path.with_name(f"{owned_prefix()}{secrets.token_hex(4)}{path.suffix}")


@functools.lru_cache(maxsize=4096)
def _clean_once(folder: Path) -> None:
    remove_leftovers(folder)


def older_folder(target: Path) -> Path:
    """Where the older folder is while [`replacing_folder`] puts the new one in its place."""
    return target.with_name(f".old-{target.name}")


def _is_left_over(path: Path) -> bool:
    owner = OWNER.match(path.name)
    if owner is None and not is_partial(path):  # somebody else's, `.combo-settings` for example
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
    with suppress(OSError, IndexError):  # one that has ended and waits to be collected still has its number
        facts = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
        return facts.rpartition(")")[2].split()[0] != "Z"
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
