"""Addresses that strangers name: only http(s), bounded in bytes and time, and on request never into the local network.

A page that fetches what its visitors name must not reach what only its own machine can (cloud metadata, databases on
the same host). With the environment variable `COMBO_PUBLIC_ADDRESSES_ONLY=1` a name is looked up once, every address
behind it is checked, and the connection is made to a checked address, after each redirect anew: a name that points
elsewhere the second time it is asked for gains nothing.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable
from typing import Any

import httpcore


TIMEOUT_S = 30.0  # without an answer
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
PUBLIC_ONLY = "COMBO_PUBLIC_ADDRESSES_ONLY"
# Networks of IPv6 that carry an IPv4 address in their last 32 bits: mapped (RFC 4291) and NAT64 (RFC 6052).
CARRIERS = tuple(ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "64:ff9b::/96"))
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that is assigned to the public internet (RFC 4291)
ISATAP = (0x00005EFE, 0x02005EFE)  # in front of an IPv4 address in the last 64 bits (RFC 5214)


class DownloadError(ValueError):
    """An address that cannot be read; the message is one line, `<name>: <reason>`."""


def public_addresses_only() -> bool:
    """What the environment variable `COMBO_PUBLIC_ADDRESSES_ONLY` says: unset, empty and 0 mean no."""
    return os.environ.get(PUBLIC_ONLY, "") not in ("", "0")


def download(
    url: str, path: str | os.PathLike[str], name: str, limit: int, seconds: float, public_only: bool | None = None
) -> None:
    """Write what an address holds into a file.

    Args:
        url: http or https; redirects are followed to these only.
        path: of the file.
        name: what messages call it.
        limit: most bytes.
        seconds: longest time, redirects included.
        public_only: refuse addresses that are not of the public internet; proxies are then not used, since they would
            look the name up themselves. Default: [`public_addresses_only`].

    Raises:
        DownloadError: refused, not reachable, too large, too slow or empty.
    """
    network = _Network(time.monotonic() + seconds, public_addresses_only() if public_only is None else public_only)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            if not url.lower().startswith(("http://", "https://")):
                scheme = url.split("://")[0][:20]
                raise DownloadError(f"{name}: only http and https addresses are read, got {scheme!r}.")
            location = _get(url, path, name, limit, network)
            if location is None:
                return
            url = urllib.parse.urljoin(url, location)
        raise DownloadError(f"{name}: more than {MAX_REDIRECTS} redirects.")
    except _LocalAddress:
        raise DownloadError(f"{name}: addresses of the local network are not read here.") from None
    except httpcore.TimeoutException:
        late = time.monotonic() >= network.deadline
        reason = f"the download took longer than {seconds:.0f} s." if late else f"no answer within {TIMEOUT_S:.0f} s."
        raise DownloadError(f"{name}: {reason}") from None
    except DownloadError:
        raise
    except (OSError, ValueError, httpcore.ProtocolError, httpcore.NetworkError, httpcore.ProxyError) as error:
        raise DownloadError(f"{name}: the download failed ({type(error).__name__}).") from None


def _get(url: str, path: str | os.PathLike[str], name: str, limit: int, network: _Network) -> str | None:
    """Write one answer into the file, or return where it redirects to."""
    timeouts = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT_S)}
    with _pool(url, network) as pool, pool.stream("GET", url, extensions=timeouts) as answer:
        fields = {key.lower(): value.decode("latin-1") for key, value in answer.headers}
        if answer.status in REDIRECTS and b"location" in fields:
            return fields[b"location"]
        if answer.status != 200:
            raise DownloadError(f"{name}: the server answered {answer.status}.")
        length = fields.get(b"content-length", "0")
        _write(answer.iter_stream(), path, name, limit, int(length) if length.isdigit() else 0)
    return None


def _write(blocks: Iterable[bytes], path: str | os.PathLike[str], name: str, limit: int, promised: int) -> None:
    size = promised
    with open(path, "wb") as file:
        for block in blocks:
            size = max(promised, file.tell() + len(block))
            if size > limit:
                break
            file.write(block)
    if size > limit:
        raise DownloadError(f"{name}: a download is limited to {limit / 2**20:.0f} MiB; it is larger.")
    if not size:
        raise DownloadError(f"{name}: empty (0 bytes).")


def _pool(url: str, network: _Network) -> httpcore.ConnectionPool:
    parts = urllib.parse.urlsplit(url)
    if not network.public_only and not urllib.request.proxy_bypass(parts.hostname or ""):
        proxy = urllib.parse.urlsplit(urllib.request.getproxies().get(parts.scheme, ""))
        if proxy.hostname:
            user, password = (urllib.parse.unquote(part or "") for part in (proxy.username, proxy.password))
            address = f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}"
            auth = (user, password) if user else None
            return httpcore.HTTPProxy(address, proxy_auth=auth, network_backend=network)
    return httpcore.ConnectionPool(network_backend=network)


class _LocalAddress(Exception):
    """An address that is not of the public internet."""


class _Network(httpcore.SyncBackend):
    """Makes connections that end at a deadline and, on request, lead into the public internet only.

    Args:
        deadline: by `time.monotonic()`.
        public_only: connect to addresses that were looked at, not to a name that would be looked up once more.
    """

    def __init__(self, deadline: float, public_only: bool) -> None:
        super().__init__()
        self.deadline, self.public_only = deadline, public_only

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        addresses = [host]
        if self.public_only:
            addresses = sorted(
                {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}, key=_is_ipv6
            )
            if not all(map(is_public, addresses)):
                raise _LocalAddress(host)
        for number, address in enumerate(addresses, start=1):
            left = _left(self.deadline, timeout)
            try:
                stream = super().connect_tcp(address, port, left, local_address, socket_options)
                return _Stream(stream, self.deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise httpcore.ConnectError("no address")


class _Stream(httpcore.NetworkStream):
    """A connection of which every single read ends at the deadline: a server may send its headers byte by byte."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secure = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline, timeout))
        return _Stream(secure, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("deadline")
    return left if timeout is None else min(left, timeout)


def _is_ipv6(address: str) -> bool:
    return ":" in address


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, also where an IPv6 address carries an IPv4 one.

    Of IPv6 only global unicast addresses pass, and the carriers of a public IPv4 address: whatever else there is or
    will be (loopback, site-local, local NAT64, IPv4-compatible, IPv4-translated) is of no public network.
    """
    try:
        parsed = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed.is_global and not parsed.is_multicast
    last = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    if any(parsed in network for network in CARRIERS):
        return is_public(str(last))
    if int(parsed) >> 32 & 0xFFFFFFFF in ISATAP and not is_public(str(last)):
        return False
    tunnelled = parsed.sixtofour or (parsed.teredo or (None, None))[1]
    if tunnelled is not None:
        return is_public(str(tunnelled))
    return parsed in GLOBAL_UNICAST and parsed.is_global
