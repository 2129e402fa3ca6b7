"""Films and sounds as tracks read forward once: opening, timing, damage, and the limits on foreign input.

All times count from the first picture of the film (from the first sample of a file without pictures); the sound keeps
its offset to the pictures. Nothing seeks: one sequential decode of 10 s 720p costs 0.4 CPU seconds, a seek per second
1.9, for the same pictures.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from .media_combo_download import MediaError, address_name, download


try:
    import av
except ImportError:  # the model itself needs no media files
    av = None


SAMPLING_RATE = 16000  # Hz
MAX_PIXELS = 8192 * 8192  # of one picture; more is refused before it is decoded
MAX_SECONDS = 24 * 3600  # a damaged time stamp must not turn into years of windows
SOUND_GAP = Fraction(1, 10)  # s; time stamps that leave the sample count by more are believed
# Playlists (hls, dash, concat) name further files and addresses; a file from a stranger must not make us open those.
FORMATS = "mov,mp4,matroska,webm,gif,avi,mpegts,mpeg,flv,asf,wav,w64,flac,mp3,ogg,aac,aiff,caf"


class MediaFile:
    """One source that can be opened several times, each time from its beginning."""

    def __init__(self, name: str, target: str | bytes, path: str | None = None) -> None:
        self.name = name
        self.path = path  # None for what has no path of its own: bytes and downloads
        self._target = target

    def error(self, reason: str) -> MediaError:
        return MediaError(f"{' '.join(self.name.split())}: {reason}")

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The container, closed at the end.

        Raises:
            MediaError: unreadable.
        """
        # "file:" keeps a colon in a file name from being read as a protocol
        target = f"file:{self._target}" if isinstance(self._target, str) else io.BytesIO(self._target)
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        try:
            container = av.open(target, options=options, metadata_errors="ignore")
        except (av.error.FFmpegError, OSError):
            reason = "cannot be read as a film or a sound (damaged, cut short, or another kind of file)."
            raise self.error(reason) from None
        try:
            yield container
        finally:
            container.close()

    def pictures(self, container: Any) -> PictureTrack:
        """The first picture track that is not a cover.

        Raises:
            MediaError: there is none, or its pictures are too large.
        """
        for stream in container.streams.video:
            if stream.codec_context is not None and not stream.disposition & av.stream.Disposition.attached_pic:
                return PictureTrack(self, container, stream)
        raise self.error("has no pictures; a film is needed.")

    def sound(self, container: Any, origin: Fraction | None) -> SoundTrack | None:
        """The first sound track, or None. `origin`: see [`SoundTrack`]."""
        for stream in container.streams.audio:
            if stream.codec_context is not None:
                return SoundTrack(self, container, stream, origin)
        return None


@contextmanager
def open_media(source: Any) -> Iterator[MediaFile]:
    """Check a source; a URL is downloaded to a temporary file, which is removed at the end.

    Args:
        source: path (`str` or `os.PathLike`), `bytes`, or an http(s) URL.

    Raises:
        MediaError: missing, empty, a folder, a refused or failed address.
        TypeError: another type.
        ImportError: PyAV is not installed.
    """
    if av is None:
        raise ImportError("reading and writing films needs PyAV: pip install av")
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        if not data:
            raise MediaError("bytes: empty (0 bytes).")
        yield MediaFile("bytes", data)
    elif isinstance(source, str) and "://" in source:
        name = address_name(source)
        with tempfile.TemporaryDirectory(prefix="combo-") as folder:
            path = os.path.join(folder, "download")
            download(source, path, name)
            yield MediaFile(name, path)
    elif isinstance(source, (str, os.PathLike)) and not isinstance(os.fspath(source), bytes):
        yield _local(os.fspath(source))
    else:
        raise TypeError(f"a film or sound is a path, bytes or an http(s) URL, got {type(source).__name__}.")


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


class _Track:
    """What both kinds of track share: packets that do not decode are skipped and counted."""

    def __init__(self, media: MediaFile, container: Any, stream: Any) -> None:
        self.media = media
        self.container = container
        self.stream = stream
        self.damaged = 0

    def packets(self) -> Iterator[Any]:
        """Packets of the track; a file that breaks off ends here."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self.damaged += 1
                return
            yield packet

    def decode(self) -> Iterator[Any]:
        """Decoded frames."""
        for packet in self.packets():
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self.damaged += 1
                continue
            yield from frames


class PictureTrack(_Track):
    """Pictures in order of time.

    Attributes (all but `stream` known from the first picture on):
        origin (`Fraction`): time stamp of the first picture on the clock of the file, in s.
        turns (`int`): quarter turns counter-clockwise that show the picture upright (phones; display matrix).
        size (`tuple[int, int]`): width and height as shown. Later pictures of another size are scaled to it.
        end (`float`): end of the latest picture, in s from the first.
    """

    def __init__(self, media: MediaFile, container: Any, stream: Any) -> None:
        super().__init__(media, container, stream)
        codec = stream.codec_context
        self._check_size(codec.width, codec.height)
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        rate = stream.average_rate or stream.guessed_rate or 25
        self.step = max(1, round(1 / (rate * stream.time_base)))  # ticks
        self.origin: Fraction | None = None
        self.turns = 0
        self.size = self._coded = (0, 0)
        self.end = 0.0
        self._first = self._last = 0

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise self.media.error(f"pictures of {width} x {height}; at most {MAX_PIXELS} pixels are read.")

    def seconds(self, ticks: int) -> float:
        """Seconds from the first picture to a time stamp, correctly rounded."""
        base = self.stream.time_base
        return (ticks - self._first) * base.numerator / base.denominator

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        """Time in s and decoded frame; `frame.pts` and `frame.duration` are filled, `pts` strictly grows.

        Raises:
            MediaError: no picture decodes, or one is too large.
        """
        for frame in self.decode():
            self._check_size(frame.width, frame.height)
            if self.origin is None:
                self._start(frame)
            elif frame.pts is None:
                frame.pts = self._last + self.step
            elif frame.pts <= self._last:
                frame.pts = self._last + 1
            self._last = frame.pts
            frame.duration = frame.duration or self.step
            self.end = self.seconds(frame.pts + frame.duration)
            now = self.seconds(frame.pts)
            if now > MAX_SECONDS:
                raise self.media.error(f"a time stamp of {now:.0f} s; at most {MAX_SECONDS} s are read.")
            yield now, frame
        if self.origin is None:
            raise self.media.error("no picture can be decoded.")

    def _start(self, frame: Any) -> None:
        if frame.pts is None:
            frame.pts = 0
        self._first = frame.pts
        self.origin = frame.pts * self.stream.time_base
        self.turns = round(frame.rotation / 90) % 4
        self._coded = (frame.width, frame.height)
        self.size = self._coded[::-1] if self.turns % 2 else self._coded

    def planes(self, frame: Any, pixels: str) -> np.ndarray:
        """The picture as coded, in the size of the first one, in a pixel format of PyAV."""
        width, height = self._coded
        return frame.reformat(width=width, height=height, format=pixels).to_ndarray()

    def image(self, frame: Any) -> Image.Image:
        """The picture as shown, RGB."""
        return Image.fromarray(np.ascontiguousarray(np.rot90(self.planes(frame, "rgb24"), self.turns)))

    def warnings(self, complete: bool) -> list[str]:
        """What the reader of the result should know; `complete`: the track was read to its end."""
        notes = [f"damaged packets skipped in the film: {self.damaged}."] if self.damaged else []
        promised = float((self.stream.duration or 0) * self.stream.time_base)
        if complete and promised - self.end > 0.5:
            notes.append(f"the film breaks off at {self.end:.2f} s; its header says {promised:.2f} s.")
        return notes


def even_picture(track: PictureTrack, frame: Any) -> Any:
    """The picture as shown, a new yuv420p frame with even H and W; stays in YUV."""
    if track.turns or track.size[0] % 2 or track.size[1] % 2:
        planes = np.rot90(track.planes(frame, "yuv444p"), track.turns, axes=(1, 2))  # (3, H, W)
        padded = np.ascontiguousarray(even(planes.transpose(1, 2, 0)).transpose(2, 0, 1))
        return av.VideoFrame.from_ndarray(padded, format="yuv444p").reformat(format="yuv420p")
    width, height = track.size
    given = frame.reformat(width=width, height=height, format="yuv420p")
    picture = av.VideoFrame(width, height, "yuv420p")  # the decoder may still need its own
    for old, new in zip(given.planes, picture.planes, strict=True):
        np.copyto(plane_values(new), plane_values(old))
    return picture


def even(picture: np.ndarray) -> np.ndarray:
    """(H, W, ...) with its last row or column once more where H or W is odd."""
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.pad(picture, ((0, height % 2), (0, width % 2)) + ((0, 0),) * (picture.ndim - 2), mode="edge")
    return np.ascontiguousarray(picture)


def plane_values(plane: Any) -> np.ndarray:
    """The values of a plane of 8 bits, (height, width); writing changes the plane."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


class SoundTrack(_Track):
    """16 kHz mono sound, read forward, sample n at n / 16000 s after `origin`.

    The channels are averaged after resampling: the down-mix of FFmpeg to mono is 3 dB louder than their mean. One
    resampler runs through the whole track, so windows put together equal the track read at once.

    Args:
        origin (`Fraction`, *optional*): zero of the time, in s on the clock of the file; default: the first sample.
    """

    def __init__(self, media: MediaFile, container: Any, stream: Any, origin: Fraction | None) -> None:
        super().__init__(media, container, stream)
        self.origin = origin
        self.samples = 0  # read so far
        self._chunks = self._read()
        self._waiting: deque[tuple[int, np.ndarray]] = deque()
        self._ahead = 0.0  # first sample not yet read

    def take(self, start: int, stop: int) -> np.ndarray:
        """Samples `[start, stop)` as float32 `(stop - start,)`, silence where there are none.

        `start` must not lie before the `stop` of an earlier call.

        Raises:
            MediaError: NaN or infinite samples.
        """
        waveform = np.zeros(stop - start, dtype=np.float32)
        while self._ahead < stop:
            position, chunk = next(self._chunks, (-1, None))
            if chunk is None:
                self._ahead = float("inf")
            else:
                self._ahead = position + len(chunk)
                self._waiting.append((position, chunk))
        for position, chunk in self._waiting:
            low, high = max(start, position), min(stop, position + len(chunk))
            if low < high:
                waveform[low - start : high - start] = chunk[low - position : high - position]
        while self._waiting and self._waiting[0][0] + len(self._waiting[0][1]) <= stop:
            self._waiting.popleft()
        return waveform

    def take_rest(self, max_seconds: float) -> np.ndarray:
        """Everything from `origin` on, float32 `(N,)`.

        Raises:
            MediaError: longer than `max_seconds`; NaN or infinite samples.
        """
        chunks, end = [], 0
        for position, chunk in self._chunks:
            end = position + len(chunk)
            if end > max_seconds * SAMPLING_RATE:
                raise self.media.error(f"the sound is longer than {max_seconds:g} s; raise max_seconds to read it.")
            chunks.append((position, chunk))
        waveform = np.zeros(end, dtype=np.float32)
        for position, chunk in chunks:
            waveform[position : position + len(chunk)] = chunk
        return waveform

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        """Chunks that follow each other without overlap, each with its first sample (0 or later)."""
        free = 0
        for position, chunk in self._resampled():
            if not np.isfinite(chunk).all():
                raise self.media.error(f"the sound has NaN or infinite samples at {position / SAMPLING_RATE:.1f} s.")
            if position > MAX_SECONDS * SAMPLING_RATE:
                return
            chunk = chunk[max(0, free - position) :]
            if len(chunk):
                position = max(position, free)
                free = position + len(chunk)
                self.samples += len(chunk)
                yield position, chunk

    def _resampled(self) -> Iterator[tuple[int, np.ndarray]]:
        resampler = form = None
        position, expected = 0, self.origin
        for frame in self.decode():
            begin = expected if frame.pts is None else frame.pts * frame.time_base
            begin = Fraction(begin or 0)
            found = (frame.sample_rate, frame.layout.name, frame.format.name)
            if form != found or abs(begin - expected) > SOUND_GAP:
                if resampler is not None:
                    yield from _mono(resampler, None, position)
                if self.origin is None:
                    self.origin = begin
                resampler, form, expected = _resampler(), found, begin
                position = round((begin - self.origin) * SAMPLING_RATE)
            expected += Fraction(frame.samples, frame.sample_rate)
            for position_of_chunk, chunk in _mono(resampler, frame, position):
                yield position_of_chunk, chunk
                position = position_of_chunk + len(chunk)
        if resampler is not None:
            yield from _mono(resampler, None, position)


def _resampler() -> Any:
    # packed: PyAV 18.1 sees nine planes in a planar frame of eight channels and reads past the end
    return av.AudioResampler(format="flt", layout=None, rate=SAMPLING_RATE)


def _mono(resampler: Any, frame: Any, position: int) -> Iterator[tuple[int, np.ndarray]]:
    """Resample one frame (None: what is left) and average its channels; chunks with their first sample."""
    for part in resampler.resample(frame):
        chunk = part.to_ndarray().reshape(part.samples, -1).mean(axis=1, dtype=np.float32)
        yield position, chunk
        position += len(chunk)
