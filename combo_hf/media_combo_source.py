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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageSequence

from .feature_extraction_combo import SAMPLING_RATE


try:
    import av
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Disposition, Stream
    from av.video.stream import VideoStream
except ImportError:  # the model itself needs no media files
    av = None  # type: ignore[assignment]


MediaSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview  # path, http(s) URL, or the content
MAX_PIXELS = 8192 * 8192  # of one picture; more is refused before it is decoded
LIMITS = {"max_streams": "128", "max_pixels": str(1920 * 1088)}  # of tracks, and of pictures decoded to learn theirs
MAX_SECONDS = 24 * 3600  # a damaged time stamp must not turn into years of windows
MAX_DOWNLOAD_BYTES = 1 << 30
DOWNLOAD_SECONDS = 600.0  # for the whole file
ANSWER_SECONDS = 30.0  # without a sign of the server
TS_DISCONT = 0x0200  # FFmpeg's flag of formats whose clock may jump
CLOCK_JUMP = Fraction(5)  # s; more between two packets of such a format is a jump of the clock
CLOCK_BACK = Fraction(1, 2)  # s
SILENCE = 1e-4  # of full scale
SILENCE_SECONDS = 600
MAX_NAME_BYTES = 120  # of what a downloaded file is called; file systems take 255, and endings follow
# Playlists (hls, dash, concat) name further files and addresses; a file from a stranger must not make us open those.
FORMATS = "mov,mp4,matroska,webm,gif,apng,avi,mpegts,mpeg,flv,asf,mxf,dv,wav,w64,flac,mp3,ogg,aac,aiff,caf"
# First bytes of what is not read, and what to call it.
KINDS = {
    b"YUV4MPEG2": "a bare YUV4MPEG stream",
    b"\0\0\0\1": "a bare H.264 or HEVC stream",
    b"DKIF": "a bare IVF stream",
    b"#EXTM3U": "a playlist",
    b"ffconcat": "a playlist",
    b"\x89PNG": "a still picture",
    b"\xff\xd8\xff": "a still picture",
}


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
        # FFmpeg decodes the beginning of every track to learn its kind: a few kB may hold thousands of large pictures
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", **LIMITS}
        try:
            container = av.open(target, "r", options=options, metadata_errors="ignore")
        except (av.error.FFmpegError, OSError) as error:
            kind = next((kind for start, kind in KINDS.items() if self.head().startswith(start)), None)
            reason = "damaged, cut short, or another kind of file" if kind is None else f"{kind} is not supported"
            reason = "more than 128 tracks" if isinstance(error, MemoryError) else reason
            raise self.error(f"cannot be read as a video or a sound ({reason}).") from None
        try:
            yield container
        finally:
            container.close()

    def write_animation(self, path: str) -> None:
        """Write the pictures of an animation, read by Pillow, as a lossless video.

        Raises:
            MediaError: damaged, or a single picture.
        """
        try:
            source = io.BytesIO(self._target) if isinstance(self._target, bytes) else self._target
            with Image.open(source, formats=["WEBP"]) as animation, av.open(path, "w", format="matroska") as output:
                if animation.width * animation.height > MAX_PIXELS or getattr(animation, "n_frames", 1) < 2:
                    raise self.error("cannot be read as a video or a sound (a still picture is not supported).")
                stream = output.add_stream("ffv1", rate=1000)
                stream.width, stream.height, stream.pix_fmt = animation.width, animation.height, "bgr0"
                now = 0
                for picture in ImageSequence.Iterator(animation):
                    frame = av.VideoFrame.from_image(picture.convert("RGB"))
                    frame.pts, frame.time_base = now, Fraction(1, 1000)
                    frame.duration = max(1, round(picture.info.get("duration", 100)))
                    output.mux(stream.encode(frame))
                    now += frame.duration
                output.mux(stream.encode(None))
        except (OSError, SyntaxError, EOFError, Image.DecompressionBombError, av.error.FFmpegError):
            raise self.error("cannot be read as a video or a sound (damaged, or cut short).") from None

    def head(self) -> bytes:
        """The first bytes."""
        if isinstance(self._target, bytes):
            return self._target[:16]
        with open(self._target, "rb") as file:
            return file.read(16)


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
        yield from _readable(MediaFile("bytes", data))
    elif isinstance(source, str) and "://" in source:
        name = address_name(source)
        with tempfile.TemporaryDirectory(prefix="combo-") as folder:
            path = os.path.join(folder, "download")
            fetch(source, path, name)
            yield from _readable(MediaFile(name, path))
    elif isinstance(source, (str, os.PathLike)) and not isinstance(os.fspath(source), bytes):
        yield from _readable(_local(os.fspath(source)))
    else:
        raise TypeError(f"a video or sound is a path, bytes or an http(s) URL, got {type(source).__name__}.")


def _readable(media: MediaFile) -> Iterator[MediaFile]:
    """The file itself, or in place of an animated WebP, which FFmpeg does not read, a temporary video."""
    head = media.head()
    if not (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        yield media
        return
    with tempfile.TemporaryDirectory(prefix="combo-") as folder:
        path = os.path.join(folder, "animation.mkv")
        media.write_animation(path)
        yield MediaFile(media.name, path, media.path)


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


@dataclass(frozen=True)
class TrackChoice:
    """Which streams of a file are read, and how its clock is to be understood.

    Attributes:
        pictures, sound: index of the stream, `None` where there is none.
        breaks: for each stream, from which of its packets on which time, in s, is added to its time stamps.
        notes: what the reader of a result should know.
    """

    pictures: int | None
    sound: int | None
    breaks: dict[int, list[tuple[int, Fraction]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def choose_tracks(media: MediaFile, video_track: int | None = None, audio_track: int | None = None) -> TrackChoice:
    """Look for the tracks that a player would play.

    Pictures: the track flagged as default, else the largest that moves; never a cover. Sound: the track flagged as
    default, else the first; one that is silent from end to end gives way to one that is not.

    Args:
        media: the file.
        video_track, audio_track: number of the track among those of its kind, from 1, in place of the choice.

    Raises:
        MediaError: unreadable, or encrypted.
        ValueError: a number that no track has.
    """
    notes: list[str] = []
    with media.open() as container:
        videos = [stream for stream in container.streams.video if stream.codec_context is not None]
        videos = [stream for stream in videos if not stream.disposition & Disposition.attached_pic]
        sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
        best = sorted(videos, key=_playability, reverse=True)
        pictures = _numbered(media, videos, best, "video", video_track, notes)
        best_sounds = sorted(sounds, key=lambda stream: not stream.disposition & Disposition.default)
        if audio_track is None and len(sounds) > 1:
            best_sounds = sorted(best_sounds, key=lambda stream: is_silent(media, stream))
        sound = _numbered(media, sounds, best_sounds, "sound", audio_track, notes)
        chosen = [index for index in (pictures, sound) if index is not None]
        breaks = find_breaks(container, chosen) if container.format.flags & TS_DISCONT else {}
    joints = max((len(times) for times in breaks.values()), default=0)
    if joints:
        notes.append(f"the clock of the file jumps {joints} time(s), as where videos were joined; time goes on there.")
    return TrackChoice(pictures, sound, breaks, notes)


def _playability(stream: VideoStream) -> tuple[bool, bool, int]:
    still = stream.disposition & (Disposition.still_image | Disposition.timed_thumbnails) or stream.frames == 1
    size = stream.codec_context.width * stream.codec_context.height
    return bool(stream.disposition & Disposition.default), not still, size


def _numbered(
    media: MediaFile,
    streams: Sequence[Stream],
    best: Sequence[Stream],
    kind: str,
    number: int | None,
    notes: list[str],
) -> int | None:
    """Index of the best stream, or of that with this number from 1."""
    if number is not None:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= len(streams):
            wanted = f"1 to {len(streams)}" if streams else f"none, since there is no {kind} track"
            raise media.error(f"the number of the {kind} track must be {wanted}, got {number!r}.")
        return streams[number - 1].index
    if not best:
        return None
    if len(streams) > 1:
        names = ", ".join(f"{place} ({_track_name(stream)})" for place, stream in enumerate(streams, start=1))
        notes.append(f"{len(streams)} {kind} tracks: {names}; number {streams.index(best[0]) + 1} is used.")
    return best[0].index


def _track_name(stream: Stream) -> str:
    form = ""
    if isinstance(stream, AudioStream):
        form = stream.codec_context.layout.name
    elif isinstance(stream, VideoStream):
        form = f"{stream.codec_context.width} x {stream.codec_context.height}"
    flags = ["default"] if stream.disposition & Disposition.default else []
    language = stream.metadata.get("language", "und")  # "und" is what files say that say nothing
    words = [stream.codec_context.name, form, *flags, *([] if language == "und" else [language])]
    return " ".join(" ".join(words).split())[:80]


def is_silent(media: MediaFile, stream: AudioStream) -> bool:
    """Whether the first ten minutes of a sound track hold nothing that could be heard."""
    resampler, form, heard = None, None, Fraction(0)
    with media.open() as container:
        for packet in _packets(container, [container.streams[stream.index]]):
            with suppress(av.error.FFmpegError):
                for frame in packet.decode():
                    assert isinstance(frame, AudioFrame)
                    if resampler is None or form != (frame.sample_rate, frame.layout.name, frame.format.name):
                        form = (frame.sample_rate, frame.layout.name, frame.format.name)
                        resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLING_RATE)
                    if any(np.abs(part.to_ndarray()).max(initial=0) > SILENCE for part in resampler.resample(frame)):
                        return False
                    heard += Fraction(frame.samples, frame.sample_rate)
            if heard > SILENCE_SECONDS:
                break
    return True


def find_breaks(container: InputContainer, indices: Sequence[int]) -> dict[int, list[tuple[int, Fraction]]]:
    """Where the clock of a stream format (transport streams, program streams) begins anew or jumps.

    A recording goes on at the end of what came before. A pause of one track, over which another goes on, is none.

    Returns:
        For each stream `(number of the packet, s to add from there on)`, in order.
    """
    breaks: dict[int, list[tuple[int, Fraction]]] = {index: [] for index in indices}
    counts = dict.fromkeys(indices, 0)
    added = dict.fromkeys(indices, Fraction(0))
    last: dict[int, Fraction] = {}  # decoding times, with what was added
    ends: dict[int, Fraction] = {}
    newest = Fraction(0)
    for packet in _packets(container, [container.streams[index] for index in indices]):
        index = packet.stream.index
        counts[index] += 1
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None:
            continue
        if packet.pts is not None and abs(packet.pts - stamp) * packet.time_base > CLOCK_JUMP:
            stamp = packet.pts  # the demuxer has made up the other one
        time = stamp * packet.time_base
        if index in last and not _goes_on(time + added[index], last, index):
            if not -CLOCK_BACK < time + newest - last[index] < CLOCK_JUMP:
                newest = max(ends.values()) - time
            added[index] = newest
            breaks[index].append((counts[index] - 1, newest))
        last[index] = time + added[index]
        shown = time if packet.pts is None else packet.pts * packet.time_base
        ends[index] = max(ends.get(index, shown), shown + added[index] + (packet.duration or 0) * packet.time_base)
    return {index: times for index, times in breaks.items() if times}


def _goes_on(now: Fraction, last: dict[int, Fraction], index: int) -> bool:
    """Whether a time follows what came before in its track, or after a pause, what came in another one."""
    if now <= last[index] - CLOCK_BACK:
        return False
    others = [time for other, time in last.items() if other != index]
    return now < last[index] + CLOCK_JUMP or any(abs(now - time) < CLOCK_JUMP for time in others)


def _packets(container: InputContainer, streams: Sequence[Stream]) -> Iterator[Packet]:
    packets = container.demux(*streams)
    while True:
        try:
            yield next(packets)
        except (StopIteration, av.error.FFmpegError):
            return


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
