"""Folders of a run that are either whole or absent, whatever kills the process.

A state is written under another name, gets a list of its files and their sizes as its last file, and is then renamed;
an older one is removed only after that. Checkpoints (`best`, `last`) are written by `replacing_folder`.

A state is read by pickle in part (optimizer and random generators, restricted to plain tensors and numbers): resume
your own runs, not folders from strangers.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from combo_hf.files.atomic import older_folder, remove, write_bytes, write_text


FILE_LIST = "files.json"
STATE_NAME = re.compile(r"step-(\d{8})")


def state_path(folder: Path, step: int) -> Path:
    """Where the state of a step is kept."""
    return folder / f"step-{step:08d}"


def seal(folder: Path) -> None:
    """Write the list of files that makes a folder a whole one."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    write_json(folder / FILE_LIST, sizes)


def is_whole(folder: Path) -> bool:
    """Whether every listed file is there with the size it was written with."""
    try:
        sizes = json.loads((folder / FILE_LIST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest_state(folder: Path) -> Path | None:
    """The whole state of the highest step, or `None`."""
    if not folder.is_dir():
        return None
    names = sorted((path.name for path in folder.iterdir() if STATE_NAME.fullmatch(path.name)), reverse=True)
    return next((folder / name for name in names if is_whole(folder / name)), None)


def has_checkpoint(run: Path) -> bool:
    """Whether the folder of a run holds something that a new run would lose: `best`, `last`, or a state of a step."""
    names = [run / name for name in ("best", "last")]
    states = [path for path in (run / "state").glob("*") if STATE_NAME.fullmatch(path.name)]
    return bool(states) or any(path.exists() or older_folder(path).exists() for path in names)


def commit_state(temporary: Path, folder: Path, step: int) -> Path:
    """Seal a written state, give it its name, and remove all other states."""
    seal(temporary)
    target = state_path(folder, step)
    remove(target)  # only a damaged one can be there
    os.replace(temporary, target)
    for other in folder.iterdir():
        if other != target and STATE_NAME.fullmatch(other.name):  # the folder may be a link to somebody's files
            remove(other)
    return target


def write_json(path: Path, values: Any) -> None:
    """Write a file that is whole or absent."""
    write_text(path, json.dumps(values))


def cut_log(path: Path, lines: int) -> None:
    """Keep the first so many records of a JSON lines file; a line that was cut off is none."""
    if not path.is_file():
        return
    kept = path.read_bytes().split(b"\n")[:-1][:lines]
    write_bytes(path, b"".join(line + b"\n" for line in kept))
