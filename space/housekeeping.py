"""Where the files of visitors lie, and when they go.

Gradio deletes only the files that its components remember; after a session has been updated, a connection has been cut
or a process has been killed, nobody remembers them. So uploads (whole or cut), results and pictures lie in one folder
of this process, where everything older than the stated time is removed, whoever made it; and a start removes the
folders of processes that no longer run.

And what stays in memory after a request: nothing that grows with their number.

Belongs to app.py, beside which it must lie.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import tempfile
import threading
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradio.blocks import Block
from gradio.state_holder import SessionState
from PIL import Image

from combo_hf.files.atomic import owned_prefix, remove_leftovers


SET_COMPONENT = SessionState.__setitem__
PREFIX = ".page"  # of the folders' names: `.page-MACHINE-PROCESS-...`


class Storage:
    """A folder for what visitors bring and get; made at once, gone with the process.

    Args:
        seconds: after which a file that nobody has written to goes.
        parent: default `GRADIO_TEMP_DIR`, else a folder in that of temporary files.

    Attributes:
        folder: for gradio, as its `GRADIO_TEMP_DIR`; components read that when they are made.
    """

    def __init__(self, seconds: float, parent: str | os.PathLike[str] | None = None) -> None:
        self.seconds = seconds
        chosen = parent or os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio"
        for place in (Path(chosen), Path(tempfile.gettempdir())):
            place.mkdir(parents=True, exist_ok=True)
            remove_leftovers(place, PREFIX)
        self.folder = Path(tempfile.mkdtemp(prefix=owned_prefix(PREFIX), dir=chosen)).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder)
        atexit.register(self.close)
        self._closed = threading.Event()
        threading.Thread(target=self._sweep_often, name="combo-housekeeping", daemon=True).start()

    def sweep(self) -> int:
        """Remove what is too old, and folders that have become empty; returns the number of files removed."""
        removed, oldest = 0, time.time() - self.seconds
        for folder, _, names in os.walk(self.folder, topdown=False):
            for path in (Path(folder, name) for name in names):
                with suppress(OSError):  # just being replaced
                    facts = path.lstat()
                    if max(facts.st_mtime, facts.st_ctime) < oldest:
                        path.unlink()
                        removed += 1
            if Path(folder) != self.folder:
                with suppress(OSError):  # not empty
                    if Path(folder).lstat().st_mtime < oldest:
                        os.rmdir(folder)
        return removed

    def close(self) -> None:
        """Remove everything."""
        self._closed.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _sweep_often(self) -> None:
        while not self._closed.wait(min(600, self.seconds / 4)):
            self.sweep()


def temporary_folder() -> Path:
    """For the work on one video; who makes it removes it, and after a crash the next start does."""
    return Path(tempfile.mkdtemp(prefix=owned_prefix(PREFIX)))


def save_pictures(pictures: list[Image.Image], folder: Path) -> list[str]:
    """As files: of pictures, gradio writes its copy anew for every visitor, also while another one downloads it."""
    folder.mkdir()
    names = [str(folder / f"{index:03d}.png") for index in range(len(pictures))]
    for picture, name in zip(pictures, names, strict=True):
        picture.save(name)
    return names


def zip_folder(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.iterdir()):
            archive.write(path, path.name)
    return target


def keep_one_component_each() -> None:
    """Let a visitor's session hold one component for each of the page's.

    For every update, an empty one too, gradio makes a new component in the place of an older one, with a number of its
    own; the next value is then kept under that number as well: 700 objects more with every request of a session.
    """

    def set_component(session: SessionState, key: int, value: Any) -> None:
        if isinstance(value, Block):
            value._id = key
        SET_COMPONENT(session, key, value)

    SessionState.__setitem__ = set_component


def give_back_memory() -> None:
    """Hand to the system what was freed: glibc keeps what lies between pieces in use, 0.5 MB more a request."""
    with suppress(OSError, AttributeError, TypeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
