"""Addresses: which may be reached, and that no server can keep us or fill the disk."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from combo_hf.files.download import PUBLIC_ONLY, DownloadError, download, is_public
from combo_hf.media_combo_source import address_name
from combo_hf.results.folder import display_name, source_name


LIMITS = {"limit": 1 << 20, "seconds": 20.0}
PUBLIC = {**LIMITS, "public_only": True}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # where clouds keep their keys
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2002:808:808::", True),
        ("fec0::1", False),  # site-local
        ("64:ff9b:1::7f00:1", False),  # local NAT64
        ("64:ff9b::808:808", True),
        ("::127.0.0.1", False),  # IPv4-compatible
        ("::8.8.8.8", False),
        ("::ffff:0:127.0.0.1", False),  # IPv4-translated
        ("2001:0:808:808:0:0:80ff:fffe", False),  # Teredo: the client behind it is 127.0.0.1
        ("2606:4700::5efe:127.0.0.1", False),  # ISATAP
        ("2606:4700::200:5efe:10.0.0.1", False),
        ("2001:db8::1", False),  # documentation
        ("100::1", False),  # discard
        ("fdff::1", False),
        ("4000::1", False),  # not assigned to anybody
        ("localhost", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a/film.mp4?key=SECRET", "film.mp4"),
        ("https://host/a/..%2f..%2fetc%2fpasswd", "passwd"),
        ("https://host/..", "URL"),
        ("https://host/%2e%2e", "URL"),
        ("https://host/a%00b%0a.mp4", "a b .mp4"),
        ("https://host/c:%5cwindows%5cx.mp4", "c: windows x.mp4"),
        (f"https://host/{'x' * 400}.mp4", "x" * 120 + ".mp4"),
        (f"https://host/{'%C3%A4' * 400}.mp4", "ä" * 60 + ".mp4"),
        ("https://user:SECRET@host/", "URL"),
    ],
)
def test_names_of_addresses(url: str, name: str) -> None:
    assert address_name(url) == display_name(url) == name
    assert "SECRET" not in source_name(url) and "/" not in source_name(url)


class _Server(http.server.BaseHTTPRequestHandler):
    """Redirects to what its query says, drips, or says `film`."""

    def do_GET(self) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
        elif self.path.startswith("/drip"):
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
                for _ in range(200):
                    self.wfile.write(b"y")
                    time.sleep(0.05)
        elif self.path.startswith("/slow"):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(200):
                    self.wfile.write(b"y")
                    time.sleep(0.05)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"film")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv(PUBLIC_ONLY, raising=False)


def test_the_local_network_is_read_unless_forbidden(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "film"
    download(f"{server}/film", str(target), "film", **LIMITS)
    assert target.read_bytes() == b"film"
    target.unlink()
    for switch in ({"public_only": True}, {}):
        monkeypatch.setenv(PUBLIC_ONLY, "1")
        with pytest.raises(DownloadError, match=r"^film: addresses of the local network are not read here\.$"):
            download(f"{server}/film", str(target), "film", **LIMITS, **switch)
    assert not target.exists()
    monkeypatch.setenv(PUBLIC_ONLY, "0")
    download(f"{server}/film", str(target), "film", **LIMITS)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "[::1]", "0"])
def test_ways_to_write_this_machine(server: str, tmp_path: Path, host: str) -> None:
    port = server.rpartition(":")[2]
    with pytest.raises(DownloadError, match="local network|failed"):
        download(f"http://{host}:{port}/film", str(tmp_path / "film"), "film", **PUBLIC)
    assert not (tmp_path / "film").exists()


def test_redirects_and_changed_names_are_looked_at_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`public.test` is public at first and leads to this server; where it redirects to is looked at anew."""
    port = int(server.rpartition(":")[2])
    answers = {"public.test": "93.184.216.34", "private.test": "10.0.0.1"}
    real = socket.create_connection

    def look_up(host: str, *_: object, **__: object) -> list:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.get(host, host), port))]

    def create(address: tuple[str, int], *args: object, **kwargs: object) -> socket.socket:
        assert address[0] == "93.184.216.34", f"a connection to {address[0]}"  # never the name itself
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        return real_connect(address, *args, **kwargs)

    def real_connect(_: object, *args: object, **kwargs: object) -> socket.socket:
        monkeypatch.setattr(socket, "getaddrinfo", original)
        try:
            return real(("127.0.0.1", port), *args, **kwargs)
        finally:
            monkeypatch.setattr(socket, "getaddrinfo", look_up)

    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", create)
    download(f"http://public.test:{port}/film", str(tmp_path / "film"), "film", **PUBLIC)
    for place in ("http://private.test/film", "http://127.0.0.1/film", "http://169.254.169.254/latest/meta-data"):
        with pytest.raises(DownloadError, match="local network"):
            download(f"http://public.test:{port}/moved?{place}", str(tmp_path / "x"), "film", **PUBLIC)
    with pytest.raises(DownloadError, match="only http and https"):
        download(
            f"http://public.test:{port}/moved?file:///etc/passwd",
            str(tmp_path / "x"),
            "film",
            **PUBLIC,
        )


def test_redirects_in_a_circle(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="more than 5 redirects"):
        download(f"{server}/moved?/moved?/moved", str(tmp_path / "film"), "film", **LIMITS)


@pytest.mark.parametrize("path", ["/drip", "/slow"])
def test_servers_that_take_their_time(server: str, tmp_path: Path, path: str) -> None:
    with pytest.raises(DownloadError, match="^film: the download took longer than 0 s"):
        download(server + path, str(tmp_path / "film"), "film", limit=1 << 20, seconds=0.3)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/film", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("http://", "failed"),
        ("http:///film", "failed"),
        ("http://[::1/film", "failed"),
        ("http://127.0.0.1:99999/film", "failed"),
        ("http://127.0.0.1:1/film\r\nHost: x", "failed"),
        ("http://127.0.0.1:1/", "failed"),
    ],
)
def test_addresses_that_are_none(tmp_path: Path, url: str, message: str) -> None:
    for switch in (False, True):
        with pytest.raises(DownloadError, match=f"{message}|local network") as caught:
            download(url, str(tmp_path / "film"), "film", **LIMITS, public_only=switch)
        assert "\n" not in str(caught.value)
