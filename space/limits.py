"""What visitors may ask for, addresses in place of uploads, and messages without names of files here.

Belongs to app.py, beside which it must lie.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync

from combo_hf.files.download import DownloadError, download
from combo_hf.media_combo_source import address_name


DOWNLOAD_S = 60


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        seconds: longest video.
        megabytes: largest upload.
        pixels: largest picture, width x height.
        queue: visitors waiting.
    """

    seconds: int = 60
    megabytes: int = 50
    pixels: int = 1920 * 1088
    queue: int = 64

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """`COMBO_MAX_SECONDS`, `COMBO_MAX_MEGABYTES` and `COMBO_MAX_QUEUE`.

        Raises:
            ValueError: not a whole number above 0.
        """
        values = {}
        for field in ("seconds", "megabytes", "queue"):
            name = f"COMBO_MAX_{field.upper()}"
            if name in environment:
                if not environment[name].isdigit() or int(environment[name]) < 1:
                    raise ValueError(f"{name}: wanted a whole number above 0, got {environment[name]!r}.")
                values[field] = int(environment[name])
        return cls(**values)


def proposal_sources(text: str) -> dict[str, str]:
    """`"sam=folder,mobile_sam=org/name"` -> name: folder or Hub id.

    Raises:
        ValueError: an entry without `=`, or a name that is no proposal model.
    """
    from combo_hf.proposals import PROPOSAL_GENERATORS

    known = sorted(set(PROPOSAL_GENERATORS) - {"cached"})
    sources = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, mark, source = entry.partition("=")
        if not (name.strip() and mark and source.strip()):
            raise ValueError(f"COMBO_PROPOSALS: wanted name=folder or Hub id, got {entry!r}.")
        if name.strip() not in known:
            raise ValueError(f"COMBO_PROPOSALS: wanted one of {', '.join(known)}, got {name.strip()!r}.")
        sources[name.strip()] = source.strip()
    return sources


def limit_addresses(component: gr.Video, limits: Limits) -> None:
    """API clients may name an address in place of a file; gradio would fetch it whole, whatever its size."""
    move = component.async_move_resource_to_block_cache

    async def fetch(source: Any) -> str | None:
        if not str(source).lower().startswith(("http://", "https://")):
            return await move(source)
        name = address_name(str(source))
        folder = tempfile.mkdtemp(prefix="address-", dir=_folder(component.GRADIO_CACHE))
        path = os.path.join(folder, name)
        limit = int(limits.megabytes * 1e6)
        try:
            await run_sync(functools.partial(download, str(source), path, name, limit, DOWNLOAD_S))
        except DownloadError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise gr.Error(plain(error, Path(path)), print_exception=False) from None
        component.temp_files.add(path)
        return path

    component.async_move_resource_to_block_cache = fetch


def _folder(path: str) -> str:
    os.makedirs(path, exist_ok=True)
    return path


def plain(error: Any, path: Path) -> str:
    """A message without names of files on this machine."""
    text = " ".join(str(error).split("\n")[0].split()).replace(str(path), "the video").replace(path.name, "the video")
    text = re.sub(r"(?<![\w./])(?:[A-Za-z]:\\|/)[^\s'\",;:]+", "a file", text)
    return f"{text[:1].upper()}{text[1:300]}"
