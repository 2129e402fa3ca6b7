"""What visitors may ask for, and messages without names of files here.

Belongs to app.py, beside which it must lie.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        seconds: longest video.
        megabytes: largest upload.
        pixels: largest picture, width x height.
        queue: visitors waiting.
        keep: seconds after which the files of a visitor go.
    """

    seconds: int = 60
    megabytes: int = 50
    pixels: int = 1920 * 1088
    queue: int = 64
    keep: int = 3600

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """`COMBO_MAX_SECONDS`, `COMBO_MAX_MEGABYTES`, `COMBO_MAX_QUEUE` and `COMBO_KEEP_SECONDS`.

        Raises:
            ValueError: not a whole number above 0.
        """
        values = {}
        for field in ("seconds", "megabytes", "queue", "keep"):
            name = "COMBO_KEEP_SECONDS" if field == "keep" else f"COMBO_MAX_{field.upper()}"
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


def refuse_addresses() -> None:
    """Let no component fetch anything.

    API clients may name an address in place of a file, in any input; gradio would load it whole into memory, whatever
    its size.
    """

    async def refuse(url: str, cache_dir: str) -> str:
        raise gr.Error("Addresses are not fetched here; upload the file.", print_exception=False)

    # the one function through which gradio's components fetch
    gr.processing_utils.async_ssrf_protected_download = refuse


def refusal(text: str) -> gr.Error:
    """What cannot be done, in words for visitors."""
    return gr.Error(text, title="Not segmented", print_exception=False)


def plain(error: Any, path: Path) -> str:
    """A message without names of files on this machine."""
    text = " ".join(str(error).split("\n")[0].split()).replace(str(path), "the video").replace(path.name, "the video")
    text = re.sub(r"(?<![\w./])(?:[A-Za-z]:\\|/)[^\s'\",;:]+", "a file", text)
    return f"{text[:1].upper()}{text[1:300]}"
