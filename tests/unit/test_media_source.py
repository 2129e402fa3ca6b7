"""Where films may come from, and what is refused."""

from __future__ import annotations

import contextlib
import http.server
import math
import re
import resource
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from fixtures_media import encode, remux
from PIL import Image

from combo_hf import media_combo_source, media_combo_tracks
from combo_hf.media_combo import (
    MediaError,
    iter_clips,
    load_audio,
    probe_media,
    read_clip,
)
from combo_hf.results.video import write_video


def test_all_kinds_of_source_agree(film: Path) -> None:
    clips = [read_clip(source) for source in (film, str(film), film.read_bytes(), bytearray(film.read_bytes()))]
    for clip in clips:
        assert np.array_equal(clip.waveform, clips[0].waveform) and clip.frames == clips[0].frames
    assert probe_media(film.read_bytes()).path is None


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("missing.mp4", MediaError, "missing.mp4: no such file."),
        (".", MediaError, "is a folder"),
        ("empty.mp4", MediaError, r"empty.mp4: empty \(0 bytes\)."),
        (b"", MediaError, r"bytes: empty \(0 bytes\)."),
        (b"no film at all, only words" * 40, MediaError, "bytes: cannot be read as a video"),
        ("list.m3u8", MediaError, "list.m3u8: cannot be read as a video"),
        ("list.txt", MediaError, "list.txt: cannot be read as a video"),
        ("picture.png", MediaError, "picture.png: cannot be read as a video"),
        ("two\nlines.mp4", MediaError, "two lines.mp4: no such file."),
        ("ftp://host/film.mp4", MediaError, "film.mp4: only http and https addresses are read, got 'ftp'"),
        ("file:///etc/hostname", MediaError, "hostname: only http and https"),
        ("rtsp://host/", MediaError, "URL: only http and https"),
        ("concat:film.mp4|film.mp4", MediaError, "no such file."),
        (None, TypeError, "got NoneType"),
        (7, TypeError, "got int"),
    ],
)
def test_unusable_sources(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    film: Path,
    source: object,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(film, "film.mp4")
    Path("empty.mp4").touch()
    Path("list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfilm.mp4\n#EXT-X-ENDLIST\n")
    Path("list.txt").write_text("ffconcat version 1.0\nfile film.mp4\n")
    Image.new("RGB", (8, 8)).save("picture.png")
    for read in (probe_media, read_clip, load_audio):
        with pytest.raises(error, match=message) as caught:
            read(source)
        assert type(caught.value) is error and "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_colons_in_a_name(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "pipe:1 http: film.mp4"
    shutil.copy(film, path)
    assert probe_media(path).seconds == 3


def test_too_many_pixels(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_combo_tracks, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(MediaError, match=r"^film.mp4: pictures of 64 x 48; at most 3071 pixels are read.$"):
        probe_media(film)


def with_tracks(data: bytes, count: int) -> bytes:
    """An mp4 file whose first track is there so many times more; all of them share its samples."""
    boxes, place = {}, 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        boxes[data[place + 4 : place + 8]] = place, place + size
        place += size
    start, end = boxes[b"moov"]
    moov = data[start + 8 : end]
    track = moov.index(b"trak") - 4
    length = int.from_bytes(moov[track : track + 4], "big")
    more = moov + moov[track : track + length] * count
    head = (len(more) + 8).to_bytes(4, "big") + b"moov"
    return data[: start + 4] + b"free" + data[start + 8 :] + head + more  # samples stay where they are


def test_a_thousand_tracks_of_large_pictures(tmp_path: Path) -> None:
    """579 kB of 900 tracks took 5.8 GB before anything was known of the file; here 60 are read, 150 refused."""
    path = write_video(tmp_path / "a.mp4", [np.full((2160, 3840, 3), 90, np.uint8)] * 2, 4, None)
    data = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert probe_media(with_tracks(data, 60)).width == 3840
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kB; they took 1.1 GB
    with pytest.raises(MediaError, match="more than 128 tracks"):
        probe_media(with_tracks(data, 150))


def test_time_stamps_of_years(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", [0, 40, 500_000])
    assert len(read_clip(path, max_seconds=2000).frames) >= 500
    monkeypatch.setattr(media_combo_tracks, "MAX_SECONDS", 60)
    with pytest.raises(MediaError, match=r"a time stamp of 500 s; at most 60 s"):
        read_clip(path)


def test_longer_than_asked_for(film: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"longer than 2 s; read it in windows by iter_clips"):
        read_clip(film, max_seconds=2)
    with pytest.raises(MediaError, match=r"^film.mp4: the sound is longer than 2 s; raise max_seconds"):
        load_audio(film, max_seconds=2)
    assert len(read_clip(film, max_seconds=3).frames) == 3
    late = remux(film, tmp_path / "late.mkv", sound_delay=70_000)  # a few kB that would be 4.5 GB of silence
    with pytest.raises(MediaError, match=r"^late.mkv: the sound is longer than 3600 s"):
        load_audio(late)


def test_a_limit_holds_whatever_the_container_says(tmp_path: Path) -> None:
    """Ticks of two seconds, all pictures at time 0: the header means 2 s, and reading goes on for a minute."""
    path = encode(tmp_path / "a.mkv", [1000 * k for k in range(30)])
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as video:
        places = [packet.pos for packet in video.demux(video=0) if packet.size]
    for place in places:  # number of the track, time in the cluster
        data[place + 1 : place + 3] = b"\0\0"
    for cluster in [match.start() for match in re.finditer(rb"\x1f\x43\xb6\x75", bytes(data))]:
        time = data.index(b"\xe7", cluster)
        length = data[time + 1] & 0x7F
        data[time + 2 : time + 2 + length] = bytes(length)
    scale = data.index(b"\x2a\xd7\xb1\x83")
    name = bytes(
        data[scale + 10 : scale + 10 + (data[scale + 9] & 0x7F)]
    )  # of the program that wrote it, cut by a byte
    ticks = b"\x2a\xd7\xb1\x84" + struct.pack(">I", 2_000_000_000)
    data[scale : scale + 10 + len(name)] = ticks + b"\x4d\x80" + bytes([0x80 | len(name) - 1]) + name[1:]
    path.write_bytes(data)
    assert probe_media(path).seconds <= 2
    assert len(read_clip(path).frames) > 30
    with pytest.raises(MediaError, match=r"^a.mkv: is longer than 5 s\.$"):
        list(iter_clips(path, max_seconds=5))
    with pytest.raises(MediaError, match=r"longer than 5 s"):
        read_clip(path, max_seconds=5)


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_impossible_limits(film: Path, seconds: float) -> None:
    with pytest.raises(ValueError, match="max_seconds must be above 0"):
        iter_clips(film, max_seconds=seconds)


@pytest.mark.parametrize("promised", [0, 44, 2**31 - 1, 2**32 - 1])
def test_a_wav_that_lies_about_its_length(tmp_path: Path, promised: int) -> None:
    samples = np.arange(16000, dtype="<i2").tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", promised) + head + b"data" + struct.pack("<I", promised) + samples)
    try:
        waveform, rate = load_audio(path)
    except MediaError as error:
        assert str(error).startswith("a.wav: ") and promised == 0
    else:
        assert rate == 16000 and 0 < len(waveform) <= 16000


class _Server(http.server.BaseHTTPRequestHandler):
    """`/film.mp4` and some answers that must not be believed."""

    film = b""

    def do_GET(self) -> None:
        if self.path.startswith("/film.mp4"):
            self.send_response(200)
            if "unsized" not in self.path:
                self.send_header("Content-Length", str(len(self.film)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client may hang up at its limit
                self.wfile.write(self.film)
        elif self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
        else:
            self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server on this machine; temporary files go to `tmp_path / "downloads"`."""
    (tmp_path / "downloads").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "downloads"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(_Server, "film", film.read_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()
    assert not list((tmp_path / "downloads").iterdir())


@pytest.mark.parametrize("address", ["/film.mp4", "/film.mp4?key=a&unsized", "/moved?/film.mp4"])
def test_film_from_an_address(server: str, film: Path, address: str) -> None:
    clip = read_clip(server + address)
    assert np.array_equal(clip.waveform, read_clip(film).waveform) and len(clip.frames) == 3
    assert probe_media(server + address).path is None


def test_strangers_addresses_are_left_to_the_guarded_download(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMBO_PUBLIC_ADDRESSES_ONLY", "1")
    with pytest.raises(MediaError, match=r"^film.mp4: COMBO_PUBLIC_ADDRESSES_ONLY is set; fetch it by combo_hf.files"):
        read_clip(server + "/film.mp4")


@pytest.mark.parametrize(
    ("address", "limit", "message"),
    [
        ("/nothing.mp4", 1 << 20, "^nothing.mp4: the server answered 404.$"),
        ("/film.mp4", 1000, "^film.mp4: a download is limited to"),
        ("/film.mp4?unsized", 1000, "^film.mp4: a download is limited to"),
        ("/moved?file:///etc/hostname", 1 << 20, "^moved: the server answered 302.$"),
        ("/moved?ftp://127.0.0.1:1/film.mp4", 1 << 20, "^moved: the download failed"),
    ],
)
def test_addresses_that_fail(
    server: str, monkeypatch: pytest.MonkeyPatch, address: str, limit: int, message: str
) -> None:
    monkeypatch.setattr(media_combo_source, "MAX_DOWNLOAD_BYTES", limit)
    with pytest.raises(MediaError, match=message):
        read_clip(server + address)
