"""Files of an evaluation: settings, one line per video, and how an interrupted run is picked up.

Every process appends to a file of its own; the first one puts the lines together. A line counts when it is complete,
so a process may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from combo_hf.files.atomic import is_partial, write_text
from combo_hf.files.folder_lock import MARKER


SETTINGS_FILE = "settings.json"
VIDEOS_FILE = "per_video.jsonl"
NAMES = {"model", "data"}  # they may be moved; weights and videos are compared by content
PART_PATTERN = "per_video.part-*.jsonl"


def part_file(output: Path, rank: int) -> Path:
    """Where process `rank` appends its lines."""
    return output / f"per_video.part-{rank:05d}.jsonl"


def check_settings(output: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds an evaluation with the same settings, to be continued.

    Raises:
        FileExistsError: it holds one with other settings (named), or files that are none.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; name a folder.")
    path = output / SETTINGS_FILE
    if not path.is_file():
        if output.is_dir() and any(not is_partial(entry) and entry.name != MARKER for entry in output.iterdir()):
            raise FileExistsError(f"{output} holds files that are no evaluation; choose a new or empty folder.")
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        names = {*found, *settings} - NAMES
        changed = sorted(name for name in names if found.get(name) != settings.get(name))
    except (ValueError, TypeError) as error:
        raise FileExistsError(f"{path} is damaged ({error}); choose another folder, or remove this one.") from error
    if changed:
        differences = ", ".join(f"{name} was {found.get(name)!r}, is {settings.get(name)!r}" for name in changed)
        raise FileExistsError(
            f"{output} holds an evaluation with other settings: {differences}. Choose another folder, or remove it."
        )
    return True


def write_settings(output: Path, settings: dict[str, Any]) -> None:
    """Make the folder and record the settings."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")


def read_lines(output: Path) -> dict[str, dict[str, Any]]:
    """All complete lines of an evaluation, by video id; half a line, which a killed process left, is dropped."""
    records: dict[str, dict[str, Any]] = {}
    for path in (output / VIDEOS_FILE, *sorted(output.glob(PART_PATTERN))):
        content = path.read_bytes() if path.is_file() else b""
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            try:
                record = json.loads(line)
                records.setdefault(record["video_id"], record)
            except (ValueError, TypeError, KeyError):  # a power cut may leave zeros
                continue
    return records


def collect_lines(output: Path, video_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Put all lines into one file, in the order of the data set, and remove the parts; returns them by video id."""
    found = read_lines(output)
    records = {name: found[name] for name in video_ids if name in found}
    write_text(output / VIDEOS_FILE, "".join(json.dumps(record) + "\n" for record in records.values()))
    for path in output.glob(PART_PATTERN):
        path.unlink()
    return records


def fingerprint_ids(video_ids: Iterable[str]) -> str:
    """Short name of a list of videos and their order."""
    return hashlib.sha256("\n".join(video_ids).encode()).hexdigest()[:16]
