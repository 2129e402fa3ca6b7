"""What visitors may ask for, and messages without names of files here.

Belongs to app.py, beside which it must lie.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
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


Message = MutableMapping[str, Any]  # of ASGI, as are the two that carry one
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]

# What the page in a browser and the clients of its API ask for.
NEEDED = re.compile(
    r"(/(config|openapi\.json|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(/\d+)?"
    r"|(static|assets|svelte)/.*"
    r"|gradio_api/(info|openapi\.json|app_id|user|token|login_check|theme\.css|startup-events|heartbeat/[^/]+|upload"
    r"|upload_progress|cancel|reset|queue/(join|data|status)|(call|run|api)/.+|file[=/](?![a-zA-Z][\w+.-]+:).*)))?/?",
    re.DOTALL,
)
UPLOAD = "/gradio_api/upload"
LARGEST_QUESTION = 1_000_000  # bytes of a request that brings no file
SPARE_DISK = 1_000_000_000  # bytes below which no upload is taken


class Gate:
    """Lets through the requests that the page needs, if they are no larger than they have to be.

    Gradio answers others, too: it starts ffmpeg on what it is sent, fetches addresses, leaves what was cut off where
    nobody looks for it, and takes a request of any size into memory.

    Args:
        app: what answers them.
        megabytes: largest upload.
        folder: where uploads lie.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]], megabytes: int, folder: Path) -> None:
        self.app, self.largest, self.folder = app, megabytes * (1 << 20) + LARGEST_QUESTION, folder

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            is_upload = path.rstrip("/") == UPLOAD
            allowed = self.largest if is_upload else LARGEST_QUESTION
            length = dict(scope["headers"]).get(b"content-length", b"0")
            refused: tuple[int, str] | None = None
            if not NEEDED.fullmatch(path):
                refused = 404, "There is nothing here."
            elif not length.isdigit() or int(length) > allowed:
                refused = 413, "Too large."
            elif is_upload and shutil.disk_usage(self.folder).free < SPARE_DISK:
                refused = 503, "There is no room for another video at the moment; try again later."
            if refused:
                return await _answer(send, _at_most(2 * allowed, receive), *refused)
            receive = _at_most(allowed, receive)
        await self.app(scope, receive, send)


def _at_most(left: int, receive: Receive) -> Receive:
    """Hang up on who sends more: the length of a request need not be told before."""

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return counted


async def _answer(send: Send, receive: Receive, status: int, text: str) -> None:
    while (await receive()).get("more_body"):  # who is still sending does not read the answer
        pass
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def refusal(text: str) -> gr.Error:
    """What cannot be done, in words for visitors."""
    return gr.Error(text, title="Not segmented", print_exception=False)


def plain(error: Any, path: Path) -> str:
    """A message without names of files on this machine."""
    text = " ".join(str(error).split("\n")[0].split()).replace(str(path), "the video").replace(path.name, "the video")
    text = re.sub(r"(?<![\w./])(?:[A-Za-z]:\\|/)[^\s'\",;:]+", "a file", text)
    return f"{text[:1].upper()}{text[1:300]}"
