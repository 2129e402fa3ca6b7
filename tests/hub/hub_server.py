"""A small Hub over HTTP, for the real client of huggingface_hub, transformers and datasets.

    python tests/hub/hub_server.py --root DIR [--port N]

serves until Ctrl-C and prints what to export. In tests: the fixtures of `tests/hub/conftest.py`. Faults are ordered
with [`HubServer.fail`]; every request is in [`HubServer.log`].
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import struct
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_api import Api
from hub_files import Answer, Call, User
from hub_store import HubError, Store


WRITER, READER = "hf_writer_of_the_tests", "hf_reader_of_the_tests"
USERS = {WRITER: User("tester", True, ("org",)), READER: User("reader", False)}
BLOCK = 1 << 16


@dataclass
class Fault:
    """Something that goes wrong with the next `times` requests whose method and path match.

    Kinds: `refuse` closes without reading the body or answering, nothing was done; `cut_upload` the same after
    `after` bytes of the body; `lost_answer` does what was asked and closes without answering; `cut` closes after
    `after` bytes of the answer's body (`reset`: with a reset); `status` answers with `status` and does nothing;
    `slow` waits `seconds` first.
    """

    kind: str
    pattern: str = ""
    method: str | None = None
    times: int = 1
    after: int = 0
    status: int = 503
    seconds: float = 0.0
    reset: bool = False


@dataclass
class Logged:
    """One request: `path` with its query, `token` as sent, `sent` bytes of body, `status` 0 without an answer."""

    method: str
    path: str
    token: str | None
    range: str | None
    status: int = 0
    sent: int = 0
    fault: str | None = None


@dataclass
class HubServer:
    """The running server.

    Args:
        root: folder for everything it keeps; an old one is taken up again.
        users: token -> user. `WRITER` may write to `tester/...` and `org/...`, `READER` may read.
        port: 0 takes a free one.
        page_size, part_size: see [`Api`].
    """

    root: Path
    users: dict[str, User] = field(default_factory=lambda: dict(USERS))
    port: int = 0
    page_size: int = 1000
    part_size: int | None = None

    def __post_init__(self) -> None:
        self.store = Store(Path(self.root))
        self.api = Api(self.store, self.users, self.page_size, self.part_size)
        self.log: list[Logged] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        # The files lie at another host name, as the real ones do: a client must not send its token there.
        self.endpoint, self.cdn = f"http://127.0.0.1:{self.port}", f"http://localhost:{self.port}"
        self._thread: threading.Thread | None = None

    def start(self) -> HubServer:
        """Serve in a thread."""
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving and free the port."""
        self._http.shutdown()
        self._http.server_close()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def fail(self, kind: str, pattern: str = "", **options: Any) -> Fault:
        """Order a [`Fault`]; `pattern` is searched in the path (with its query)."""
        fault = Fault(kind, pattern, **options)
        with self.lock:
            self.faults.append(fault)
        return fault

    def requests(self, pattern: str = "", method: str | None = None) -> list[Logged]:
        """Logged requests whose path (with its query) holds the pattern."""
        found = [entry for entry in list(self.log) if re.search(pattern, entry.path)]
        return [entry for entry in found if method in (None, entry.method)]

    def environment(self, home: Path, token: str | None = WRITER) -> dict[str, str]:
        """Environment of a process whose Hub this is, with its own empty caches below `home`."""
        settings = {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        }  # fmt: skip
        dropped = ("HF_", "HUGGING_FACE", "HUGGINGFACE", "TRANSFORMERS_OFFLINE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return {**kept, **settings, **({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})}

    def files(self, repo_id: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """Content of all files of a repository."""
        commit = self.store.repos[(kind, repo_id)].commit_at(revision)
        return {path: self.store.read(entry) for path, entry in commit.files.items()}

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault ordered for this request, if any; it is used up by one."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method in (None, method) and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None


class Cut(Exception):
    """The connection is to be closed now."""


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        hub = server

    return Handler


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, asks the routes, writes the answer, and breaks on order."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    # An answer is more than one packet: without this each would wait for the other side's acknowledgement.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr; see `HubServer.log`."""

    def handle_one_request(self) -> None:
        """As the base class, and quiet when the other side goes away."""
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        entry = Logged(self.command, self.path, token, self.headers.get("range"))
        fault = self.hub.take_fault(self.command, self.path)
        entry.fault = fault.kind if fault else None
        self.hub.log.append(entry)
        self.left = self._length()
        try:
            self._serve(parts, entry, fault)
        except Cut:
            self._hang_up(fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self, parts: Any, entry: Logged, fault: Fault | None) -> None:
        if fault and fault.kind == "slow":
            time.sleep(fault.seconds)
        if fault and fault.kind in ("refuse", "cut_upload"):
            self.rfile.read(min(fault.after, self.left or 0))
            raise Cut
        call = Call(self.command, unquote(parts.path), parse_qs(parts.query), self.headers)
        call.endpoint, call.cdn = self.hub.endpoint, self.hub.cdn
        call.path = parts.path  # the routes take apart first and unquote the parts: a branch may have a slash
        try:
            self._read_body(call)
            if fault and fault.kind == "status":
                raise HubError(fault.status, None, "ordered fault")
            answer = self.hub.api.answer(call)
        except HubError as error:
            answer = _as_answer(error)
        finally:
            if call.upload is not None:
                call.upload.unlink(missing_ok=True)
        if fault and fault.kind == "lost_answer":
            raise Cut
        self._send(answer, entry, fault)

    def _length(self) -> int | None:
        """Bytes of the body, `None` where it comes in chunks."""
        if "chunked" in (self.headers.get("transfer-encoding") or ""):
            return None
        return int(self.headers.get("content-length") or 0)

    def _blocks(self) -> Any:
        """The body in blocks."""
        if self.left is None:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        while self.left > 0:
            block = self.rfile.read(min(BLOCK, self.left))
            if not block:
                raise Cut
            self.left -= len(block)
            yield block

    def _read_body(self, call: Call) -> None:
        if self.command != "PUT" or not call.path.startswith("/lfs/"):
            call.body = b"".join(self._blocks())
            return
        handle, name = tempfile.mkstemp(dir=self.hub.store.root, suffix=".part")
        call.upload = Path(name)
        with os.fdopen(handle, "wb") as file:
            for block in self._blocks():
                file.write(block)

    def _send(self, answer: Answer, entry: Logged, fault: Fault | None) -> None:
        path = answer.body if isinstance(answer.body, Path) else None
        if path is None and not isinstance(answer.body, bytes):
            answer.body = json.dumps(answer.body).encode()
            answer.headers.setdefault("Content-Type", "application/json; charset=utf-8")
        size = path.stat().st_size if path else len(answer.body)
        first, last = 0, size - 1
        if path and entry.range:
            first, last = _parse_range(entry.range, size)
            if first > last:
                answer = Answer(416, b"", {"Content-Range": f"bytes */{size}"})
                path, first, last = None, 0, -1
            else:
                answer.status = 206
                answer.headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        entry.status = answer.status
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/octet-stream", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = fault.after if fault and fault.kind == "cut" else None
        for block in _content(path, answer.body, first, last):
            if limit is not None and entry.sent + len(block) > limit:
                self.wfile.write(block[: limit - entry.sent])
                entry.sent = limit
                raise Cut
            self.wfile.write(block)
            entry.sent += len(block)

    def _hang_up(self, fault: Fault | None) -> None:
        self.close_connection = True
        self.wfile.flush()
        if fault and fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def _as_answer(error: HubError) -> Answer:
    headers = {"X-Error-Message": error.message}
    if error.code:
        headers["X-Error-Code"] = error.code
    if "commit" in error.body:
        headers["X-Repo-Commit"] = error.body["commit"]
    return Answer(error.status, {"error": error.message, **error.body}, headers)


def _parse_range(text: str, size: int) -> tuple[int, int]:
    """First and last byte of `bytes=a-b`, `bytes=a-` or `bytes=-n`; first > last where there is none."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text.strip())
    if match is None or match[1] == match[2] == "":
        return 0, size - 1
    if match[1] == "":
        return max(size - int(match[2]), 0), size - 1
    return int(match[1]), min(int(match[2]) if match[2] else size - 1, size - 1)


def _content(path: Path | None, body: bytes, first: int, last: int) -> Any:
    if path is None:
        yield body
        return
    with path.open("rb") as file:
        file.seek(first)
        left = last - first + 1
        while left > 0 and (block := file.read(min(BLOCK, left))):
            left -= len(block)
            yield block


def main() -> None:
    """Serve a folder until interrupted."""
    parser = argparse.ArgumentParser(description="A small Hub on 127.0.0.1 for tests.")
    parser.add_argument("--root", type=Path, required=True, help="folder for everything it keeps")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    arguments = parser.parse_args()
    server = HubServer(arguments.root, port=arguments.port).start()
    for name, value in {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": WRITER, "HF_HUB_DISABLE_XET": "1"}.items():
        print(f"export {name}={value}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
