"""Addresses of strangers: only http(s), bounded in bytes and time, and on request never into the local network.

A page that fetches what its visitors name must not reach what only its own machine can (cloud metadata, databases on
the same host). Set the environment variable `COMBO_PUBLIC_ADDRESSES_ONLY=1` and the address that a connection is made
to is looked at, after the name was looked up and again after every redirect: a name that points elsewhere the second
time it is asked for gains nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import socket
import threading
import urllib.error
import urllib.parse
from typing import Any
from urllib import request


MAX_DOWNLOAD_BYTES = 1 << 30
DOWNLOAD_TIMEOUT = 30.0  # s without an answer
DOWNLOAD_DEADLINE = 600.0  # s for the whole file
MAX_NAME_BYTES = 120  # of what a downloaded file is called; file systems take 255, and endings follow
PUBLIC_ONLY = "COMBO_PUBLIC_ADDRESSES_ONLY"


class MediaError(ValueError):
    """A file that cannot be used; the message is one line, `<file name>: <reason>`."""


class _LocalAddress(OSError):
    """An address that is not of the public internet."""


def address_name(url: str) -> str:
    """What the file of an address is called: its last part, without query (it may hold a key) and odd characters."""
    try:
        name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    except ValueError:  # "http://[::1/"
        return "URL"
    name = re.sub(r"[\x00-\x1f\x7f\\]", " ", name).strip()
    stem, ending = os.path.splitext(name)
    short = stem.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore") + ending[:16]
    return short if short.strip(".") else "URL"


def download(
    url: str,
    path: str,
    name: str,
    limit: int | None = None,
    seconds: float | None = None,
    public_only: bool | None = None,
) -> None:
    """Write what an address holds into a file.

    Args:
        url: http or https; redirects are followed to these only.
        path: of the file.
        name: what messages call it.
        limit: most bytes; default 1 GiB.
        seconds: longest time, redirects included; default 600.
        public_only: refuse addresses that are not of the public internet; proxies are then not used. Default: what
            the environment variable `COMBO_PUBLIC_ADDRESSES_ONLY` says.

    Raises:
        MediaError: refused, not reachable, too large, too slow or empty.
    """
    if public_only is None:
        public_only = os.environ.get(PUBLIC_ONLY, "") not in ("", "0")
    if not url.lower().startswith(("http://", "https://")):
        raise MediaError(f"{name}: only http and https addresses are read, got {url.split('://')[0][:20]!r}.")
    watch = _Watch(DOWNLOAD_DEADLINE if seconds is None else seconds)
    try:
        with (
            watch,
            _opener(watch, public_only).open(url, timeout=DOWNLOAD_TIMEOUT) as answer,
            open(path, "wb") as file,
        ):
            _copy_limited(answer, file, name, MAX_DOWNLOAD_BYTES if limit is None else limit)
        watch.check()  # a connection that was cut at the deadline looks like a complete one
    except MediaError:
        raise
    except _LocalAddress:
        raise MediaError(f"{name}: addresses of the local network are not read here.") from None
    except urllib.error.HTTPError as error:
        error.close()
        raise MediaError(f"{name}: the server answered {error.code}.") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MediaError(f"{name}: {_reason(error, watch)}") from None
    if not os.path.getsize(path):
        raise MediaError(f"{name}: empty (0 bytes).")


def _reason(error: Exception, watch: _Watch) -> str:
    inner = getattr(error, "reason", error)
    if isinstance(inner, _LocalAddress):
        return "addresses of the local network are not read here."
    if watch.fired:
        return f"the download took longer than {watch.seconds:.0f} s."
    if isinstance(inner, TimeoutError):
        return f"no answer within {DOWNLOAD_TIMEOUT:.0f} s."
    return f"the download failed ({type(error).__name__})."


class _Watch:
    """Cuts all connections at a deadline: a server may send its headers a byte at a time, for years."""

    def __init__(self, seconds: float) -> None:
        self.fired, self.seconds = False, seconds
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.daemon = True

    def add(self, connection: socket.socket) -> None:
        self._sockets.append(connection.dup())  # TLS takes the original over; both are one connection

    def check(self) -> None:
        if self.fired:
            raise TimeoutError

    def _fire(self) -> None:
        self.fired = True
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for connection in self._sockets:
            connection.close()


def _opener(watch: _Watch, public_only: bool) -> request.OpenerDirector:
    class Http(http.client.HTTPConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._create_connection = connect

    class Https(http.client.HTTPSConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._create_connection = connect

    class HttpHandler(request.HTTPHandler):
        def http_open(self, req: Any) -> Any:
            return self.do_open(Http, req)

    class HttpsHandler(request.HTTPSHandler):
        def https_open(self, req: Any) -> Any:
            return self.do_open(Https, req)

    def connect(address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
        connection = _connect(address, timeout, public_only)
        watch.add(connection)
        return connection

    opener = request.OpenerDirector()  # build_opener would also follow a redirect to ftp
    handlers = [request.UnknownHandler, HttpHandler, HttpsHandler]
    handlers += [request.HTTPDefaultErrorHandler, request.HTTPRedirectHandler, request.HTTPErrorProcessor]
    if not public_only:  # a proxy would look the name up itself
        handlers.insert(0, request.ProxyHandler)
    for handler in handlers:
        opener.add_handler(handler())
    return opener


def _connect(address: tuple[str, int], timeout: Any, public_only: bool) -> socket.socket:
    """A connection; with `public_only` to an address that was looked at, not to a name that is asked for again."""
    if not public_only:
        return socket.create_connection(address, timeout)
    found = {entry[4][0] for entry in socket.getaddrinfo(*address, type=socket.SOCK_STREAM)}
    if not all(is_public(entry) for entry in found):
        raise _LocalAddress(address[0])
    error: OSError | None = None
    for entry in sorted(found, key=lambda entry: ":" in entry):
        try:
            return socket.create_connection((entry, address[1]), timeout)
        except OSError as failed:
            error = failed
    raise error or OSError("no address")


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, also where an IPv6 address carries an IPv4 one."""
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is None and found in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def _copy_limited(answer: Any, file: Any, name: str, limit: int) -> None:
    too_large = MediaError(f"{name}: a download is limited to {limit / 2**20:.0f} MiB; it is larger.")
    if int(answer.headers.get("Content-Length") or 0) > limit:
        raise too_large
    size = 0
    while block := answer.read1(1 << 18):
        size += len(block)
        if size > limit:
            raise too_large
        file.write(block)
