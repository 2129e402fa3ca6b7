"""Videos and sounds as tracks that are read forward once: timing, damage, and the picture as it is shown.

All times count from the first picture of the video (from the first sample of a file without pictures); the sound keeps
its offset to the pictures. Nothing seeks: one sequential decode of 10 s 720p costs 0.4 CPU seconds, a seek per second
1.9, for the same pictures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from .media_combo_source import MAX_PIXELS, MAX_SECONDS, SAMPLING_RATE, MediaFile


try:
    import av
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
except ImportError:  # the model itself needs no media files
    av = None  # type: ignore[assignment]


SOUND_GAP = Fraction(1, 10)  # s; time stamps that leave the sample count by more are believed


def picture_track(media: MediaFile, container: InputContainer) -> PictureTrack:
    """The first picture track that is not a cover.

    Raises:
        MediaError: there is none, or its pictures are too large.
    """
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & av.stream.Disposition.attached_pic:
            return PictureTrack(media, container, stream)
    raise media.error("has no pictures; a video is needed.")


def sound_track(media: MediaFile, container: InputContainer, origin: Fraction | None) -> SoundTrack | None:
    """The first sound track, or None. `origin`: see [`SoundTrack`]."""
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            return SoundTrack(media, container, stream, origin)
    return None


class _Track:
    """What both kinds of track share: packets that do not decode are skipped and counted."""

    def __init__(self, media: MediaFile, container: InputContainer, stream: VideoStream | AudioStream) -> None:
        self.media = media
        self.container = container
        self.time_base = stream.time_base or Fraction(1, av.time_base)
        self.damaged = 0
        self._index = stream.index

    def packets(self) -> Iterator[Packet]:
        """Packets of the track; a file that breaks off ends here."""
        packets = self.container.demux(self.container.streams[self._index])
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self.damaged += 1
                return
            yield packet

    def _decode(self) -> Iterator[Any]:
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

    def __init__(self, media: MediaFile, container: InputContainer, stream: VideoStream) -> None:
        super().__init__(media, container, stream)
        self.stream = stream
        codec = stream.codec_context
        self._check_size(codec.width, codec.height)
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        rate = stream.average_rate or stream.guessed_rate or 25
        self.step = max(1, round(1 / (rate * self.time_base)))  # ticks
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
        return (ticks - self._first) * self.time_base.numerator / self.time_base.denominator

    def __iter__(self) -> Iterator[tuple[float, VideoFrame]]:
        """Time in s and decoded frame; `frame.pts` and `frame.duration` are filled, `pts` strictly grows.

        Raises:
            MediaError: no picture decodes, or one is too large.
        """
        frame: VideoFrame
        for frame in self._decode():
            self._check_size(frame.width, frame.height)
            if self.origin is None:
                self._start(frame)
            ticks = self._last + self.step if frame.pts is None else frame.pts
            ticks = max(ticks, self._last + 1)
            frame.pts = self._last = ticks
            frame.duration = frame.duration or self.step
            self.end = self.seconds(ticks + frame.duration)
            now = self.seconds(ticks)
            if now > MAX_SECONDS:
                raise self.media.error(f"a time stamp of {now:.0f} s; at most {MAX_SECONDS} s are read.")
            yield now, frame
        if self.origin is None:
            raise self.media.error("no picture can be decoded.")

    def _start(self, frame: VideoFrame) -> None:
        self._first = frame.pts or 0
        self._last = self._first - self.step
        self.origin = self._first * self.time_base
        self.turns = round(frame.rotation / 90) % 4
        self._coded = (frame.width, frame.height)
        self.size = (frame.height, frame.width) if self.turns % 2 else self._coded

    def planes(self, frame: VideoFrame, pixels: str) -> np.ndarray:
        """The picture as coded, in the size of the first one, in a pixel format of PyAV."""
        width, height = self._coded
        return frame.reformat(width=width, height=height, format=pixels).to_ndarray()

    def image(self, frame: VideoFrame) -> Image.Image:
        """The picture as shown, RGB."""
        return Image.fromarray(np.ascontiguousarray(np.rot90(self.planes(frame, "rgb24"), self.turns)))

    def warnings(self, complete: bool) -> list[str]:
        """What the reader of the result should know; `complete`: the track was read to its end."""
        notes = [f"damaged packets skipped in the video: {self.damaged}."] if self.damaged else []
        promised = float((self.stream.duration or 0) * self.time_base)
        if complete and promised - self.end > 0.5:
            notes.append(f"the video breaks off at {self.end:.2f} s; its header says {promised:.2f} s.")
        return notes


class SoundTrack(_Track):
    """16 kHz mono sound, read forward, sample n at n / 16000 s after `origin`.

    The channels are averaged after resampling: the down-mix of FFmpeg to mono is 3 dB louder than their mean. One
    resampler runs through the whole track, so windows put together equal the track read at once.

    Args:
        origin (`Fraction`, *optional*): zero of the time, in s on the clock of the file; default: the first sample.
    """

    def __init__(
        self, media: MediaFile, container: InputContainer, stream: AudioStream, origin: Fraction | None
    ) -> None:
        super().__init__(media, container, stream)
        self.stream = stream
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
        resampler: AudioResampler | None = None
        form: tuple[int, str, str] | None = None
        position, expected = 0, self.origin or Fraction(0)
        for frame in self.frames():
            begin = expected if frame.pts is None else frame.pts * (frame.time_base or self.time_base)
            found = (frame.sample_rate, frame.layout.name, frame.format.name)
            if resampler is None or form != found or abs(begin - expected) > SOUND_GAP:
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

    def frames(self) -> Iterator[AudioFrame]:
        """Decoded stretches of sound."""
        return self._decode()


def _resampler() -> AudioResampler:
    # packed: PyAV 18.1 sees nine planes in a planar frame of eight channels and reads past the end
    return AudioResampler(format="flt", layout=None, rate=SAMPLING_RATE)


def _mono(resampler: AudioResampler, frame: AudioFrame | None, position: int) -> Iterator[tuple[int, np.ndarray]]:
    """Resample one frame (None: what is left) and average its channels; chunks with their first sample."""
    for part in resampler.resample(frame):
        chunk = part.to_ndarray().reshape(part.samples, -1).mean(axis=1, dtype=np.float32)
        yield position, chunk
        position += len(chunk)
