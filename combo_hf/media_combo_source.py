"""Where videos and sounds come from: paths, bytes and addresses, checked and opened; the limits on foreign input."""

from __future__ import annotations

import http.client
import io
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from .feature_extraction_combo import SAMPLING_RATE


try:
    import av
    from av.container import InputContainer
except ImportError:  # the model itself needs no media files
    av = None  # type: ignore[assignment]


__all__ = ["SAMPLING_RATE", "MediaError", "MediaFile", "MediaSource", "address_name", "open_media"]

MediaSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview  # path, http(s) URL, or the content
MAX_PIXELS = 8192 * 8192  # of one picture; more is refused before it is decoded
MAX_SECONDS = 24 * 3600  # a damaged time stamp must not turn into years of windows
MAX_DOWNLOAD_BYTES = 1 << 30
DOWNLOAD_SECONDS = 600.0  # for the whole file
ANSWER_SECONDS = 30.0  # without a sign of the server
MAX_NAME_BYTES = 120  # of what a downloaded file is called; file systems take 255, and endings follow
# Playlists (hls, dash, concat) name further files and addresses; a file from a stranger must not make us open those.
FORMATS = "mov,mp4,matroska,webm,gif,avi,mpegts,mpeg,flv,asf,wav,w64,flac,mp3,ogg,aac,aiff,caf"


class MediaError(ValueError):
    """A file that cannot be used; the message is one line, `<file name>: <reason>`."""


class MediaFile:
    """One source that can be opened several times, each time from its beginning."""

    def __init__(self, name: str, target: str | bytes, path: str | None = None) -> None:
        self.name = name
        self.path = path  # None for what has no path of its own: bytes and downloads
        self._target = target

    def error(self, reason: str) -> MediaError:
        return MediaError(f"{' '.join(self.name.split())}: {reason}")

    @contextmanager
    def open(self) -> Iterator[InputContainer]:
        """The container, closed at the end.

        Raises:
            MediaError: unreadable.
        """
        # "file:" keeps a colon in a file name from being read as a protocol
        target = f"file:{self._target}" if isinstance(self._target, str) else io.BytesIO(self._target)
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        try:
            container = av.open(target, "r", options=options, metadata_errors="ignore")
        except (av.error.FFmpegError, OSError):
            reason = "cannot be read as a video or a sound (damaged, cut short, or another kind of file)."
            raise self.error(reason) from None
        try:
            yield container
        finally:
            container.close()


@contextmanager
def open_media(source: MediaSource) -> Iterator[MediaFile]:
    """Check a source; a URL is downloaded to a temporary file, which is removed at the end.

    Args:
        source: path (`str` or `os.PathLike`), `bytes`, or an http(s) URL.

    Raises:
        MediaError: missing, empty, a folder, a refused or failed address.
        TypeError: another type.
        ImportError: PyAV is not installed.
    """
    if av is None:
        raise ImportError("reading and writing videos needs PyAV: pip install av")
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        if not data:
            raise MediaError("bytes: empty (0 bytes).")
        yield MediaFile("bytes", data)
    elif isinstance(source, str) and "://" in source:
        name = address_name(source)
        with tempfile.TemporaryDirectory(prefix="combo-") as folder:
            path = os.path.join(folder, "download")
            fetch(source, path, name)
            yield MediaFile(name, path)
    elif isinstance(source, (str, os.PathLike)) and not isinstance(os.fspath(source), bytes):
        yield _local(os.fspath(source))
    else:
        raise TypeError(f"a video or sound is a path, bytes or an http(s) URL, got {type(source).__name__}.")


def _local(path: str) -> MediaFile:
    media = MediaFile(os.path.basename(os.path.normpath(path)) or path, path, path)
    if os.path.isdir(path):
        raise media.error("is a folder; pass a file.")
    if not os.path.isfile(path):
        raise media.error("no such file.")
    if not os.access(path, os.R_OK):
        raise media.error("may not be read (permission).")
    if not os.path.getsize(path):
        raise media.error("empty (0 bytes).")
    return media


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


def fetch(url: str, path: str, name: str) -> None:
    """Write what an address holds into a file, for callers who know the address.

    Services that read addresses of strangers set `COMBO_PUBLIC_ADDRESSES_ONLY=1`; nothing is fetched here then, and
    `combo_hf.files.download`, which looks at where every connection leads, is what they use.

    Args:
        url: http or https, at most 1 GiB and 10 minutes.
        path: of the file.
        name: what messages call it.

    Raises:
        MediaError: refused, not reachable, too large, too slow or empty.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise MediaError(f"{name}: only http and https addresses are read, got {url.split('://')[0][:20]!r}.")
    if os.environ.get("COMBO_PUBLIC_ADDRESSES_ONLY", "") not in ("", "0"):
        raise MediaError(f"{name}: COMBO_PUBLIC_ADDRESSES_ONLY is set; fetch it by combo_hf.files.download.")
    deadline, size = time.monotonic() + DOWNLOAD_SECONDS, 0
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer, open(path, "wb") as file:
            while block := answer.read1(1 << 18):
                size += len(block)
                if size > MAX_DOWNLOAD_BYTES or time.monotonic() > deadline:
                    limits = f"{MAX_DOWNLOAD_BYTES / 2**20:.0f} MiB and {DOWNLOAD_SECONDS:.0f} s"
                    raise MediaError(f"{name}: a download is limited to {limits}; it is larger or slower.")
                file.write(block)
    except MediaError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise MediaError(f"{name}: the server answered {error.code}.") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MediaError(f"{name}: the download failed ({type(error).__name__}).") from None
    if not size:
        raise MediaError(f"{name}: empty (0 bytes).")
