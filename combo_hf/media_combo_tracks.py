"""Videos and sounds as tracks that are read forward once: timing, damage, and the picture as it is shown.

All times count from the first picture of the video (from the first sample of a file without pictures); the sound keeps
its offset to the pictures. Nothing seeks: one sequential decode of 10 s 720p costs 0.4 CPU seconds, a seek per second
1.9, for the same pictures.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from .media_combo_shown import (
    RGB,
    SDR,
    Colour,
    Deinterlacer,
    ToneMapper,
    colour_of,
    is_hdr,
    orientation_of,
    square_pixels,
)
from .media_combo_source import MAX_PIXELS, MAX_SECONDS, SAMPLING_RATE, MediaFile, TrackChoice, choose_tracks


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
HDR_NOTE = "HDR colours (PQ or HLG) were brought to the range of ordinary screens (SDR, BT.709)."
INTERLACED_NOTE = "interlaced pictures were deinterlaced."


def picture_track(media: MediaFile, container: InputContainer, choice: TrackChoice | None = None) -> PictureTrack:
    """The chosen picture track (default: what a player would take), its first picture decoded.

    Raises:
        MediaError: there is none, its pictures are too large, or none can be decoded.
    """
    choice = choose_tracks(media) if choice is None else choice
    if choice.pictures is None:
        raise media.error("has no pictures; a video is needed.")
    stream = container.streams[choice.pictures]
    assert isinstance(stream, VideoStream)
    return PictureTrack(media, container, stream, choice)


def sound_track(
    media: MediaFile, container: InputContainer, choice: TrackChoice, origin: Fraction | None
) -> SoundTrack | None:
    """The chosen sound track, or None. `origin`: see [`SoundTrack`]."""
    if choice.sound is None:
        return None
    stream = container.streams[choice.sound]
    assert isinstance(stream, AudioStream)
    return SoundTrack(media, container, stream, choice, origin)


def packets_of(track: PictureTrack, container: InputContainer, choice: TrackChoice) -> _Track:
    """The same track in another opening of the file, for its packets."""
    return _Track(track.media, container, track.stream, choice)


class _Track:
    """What both kinds of track share: packets that do not decode are skipped and counted."""

    def __init__(
        self, media: MediaFile, container: InputContainer, stream: VideoStream | AudioStream, choice: TrackChoice
    ) -> None:
        self.media = media
        self.container = container
        self.time_base = stream.time_base or Fraction(1, av.time_base)
        self.damaged = 0
        self._index = stream.index
        self._breaks = choice.breaks.get(stream.index, [])

    def packets(self) -> Iterator[Packet]:
        """Packets of the track; a file that breaks off ends here.

        Raises:
            MediaError: they are encrypted.
        """
        packets = self.container.demux(self.container.streams[self._index])
        breaks = list(self._breaks)
        added, count = 0, 0
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:
                self.damaged += 1
                return
            if packet.has_sidedata("encryption_info"):
                raise self.media.error("is encrypted (DRM); such files cannot be read.")
            if breaks and breaks[0][0] == count:
                added = round(breaks.pop(0)[1] / self.time_base)
            if added:
                packet.pts = None if packet.pts is None else packet.pts + added
                packet.dts = None if packet.dts is None else packet.dts + added
            count += 1
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

    Attributes:
        first (`int`): time stamp of the first picture on the clock of the file, in ticks.
        origin (`Fraction`): the same in s.
        orientation (`Orientation`): what shows the picture upright (phones; display matrix).
        size (`tuple[int, int]`): width and height as shown. Later pictures of another size are scaled to it.
        colour (`Colour`): of the planes that [`planes`] gives.
        end (`float`): end of the latest picture, in s from the first.
    """

    def __init__(self, media: MediaFile, container: InputContainer, stream: VideoStream, choice: TrackChoice) -> None:
        super().__init__(media, container, stream, choice)
        self.stream = stream
        codec = stream.codec_context
        self._check_size(codec.width, codec.height)
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        rate = stream.average_rate or stream.guessed_rate or 25
        self.step = max(1, round(1 / (rate * self.time_base)))  # ticks
        self.end = 0.0
        self._notes = list(choice.notes)
        self._tone_mapper = ToneMapper()
        self._deinterlacer = Deinterlacer(self.time_base)
        self._frames = self._deinterlaced()
        first = next(self._frames, None)
        if first is None:
            raise media.error("no picture can be decoded.")
        self._frames = itertools.chain([first], self._frames)
        self.first = first.pts or 0
        self.origin = self.first * self.time_base
        self.orientation = orientation_of(first)
        self._flat = square_pixels(first.width, first.height, stream.sample_aspect_ratio)  # before it is turned
        self._check_size(*self._flat)
        self.size = self._flat[::-1] if self.orientation.transpose else self._flat
        self.colour = colour_of(first)
        self._is_hdr = is_hdr(first)
        if self._is_hdr or self.colour.matrix == RGB:
            self.colour = SDR

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise self.media.error(f"pictures of {width} x {height}; at most {MAX_PIXELS} pixels are read.")

    def seconds(self, ticks: int) -> float:
        """Seconds from the first picture to a time stamp, correctly rounded."""
        return (ticks - self.first) * self.time_base.numerator / self.time_base.denominator

    def __iter__(self) -> Iterator[tuple[float, VideoFrame]]:
        """Time in s and decoded frame; `frame.pts` and `frame.duration` are filled, `pts` strictly grows.

        Raises:
            MediaError: a picture is too large, or its time stamp.
        """
        for frame in self._frames:
            ticks = frame.pts or 0
            self.end = self.seconds(ticks + frame.duration)
            now = self.seconds(ticks)
            if now > MAX_SECONDS:
                raise self.media.error(f"a time stamp of {now:.0f} s; at most {MAX_SECONDS} s are read.")
            yield now, frame

    def _deinterlaced(self) -> Iterator[VideoFrame]:
        for frame in self._timed():
            yield from self._deinterlacer.push(frame)
        yield from self._deinterlacer.flush()

    def _timed(self) -> Iterator[VideoFrame]:
        """Decoded frames with time stamps that strictly grow."""
        last: int | None = None
        frame: VideoFrame
        for frame in self._decode():
            self._check_size(frame.width, frame.height)
            if last is None:
                frame.pts = frame.pts or 0
            elif frame.pts is None:
                frame.pts = last + self.step
            else:
                frame.pts = max(frame.pts, last + 1)
            last = frame.pts
            frame.duration = frame.duration or self.step
            yield frame

    def planes(self, frame: VideoFrame, pixels: str) -> VideoFrame:
        """The picture as coded, but with square pixels and in the size of the first one.

        Args:
            frame: of this track.
            pixels: a YUV pixel format of 8 bits; the colours are those of [`colour`].
        """
        return self._converted(frame, pixels, self.colour)

    def image(self, frame: VideoFrame) -> Image.Image:
        """The picture as shown, RGB."""
        return Image.fromarray(np.ascontiguousarray(self.orientation.apply(self._rgb(frame))))

    def _rgb(self, frame: VideoFrame) -> np.ndarray:
        return self._converted(frame, "rgb24", None).to_ndarray()  # (H, W, 3)

    def _converted(self, frame: VideoFrame, pixels: str, target: Colour | None) -> VideoFrame:
        if is_hdr(frame):
            frame = self._tone_mapper.map(frame)
        colour = colour_of(frame)
        source = {} if colour.matrix == RGB else {"src_colorspace": colour.matrix, "src_color_range": colour.range}
        wanted = {} if target is None else {"dst_colorspace": target.matrix, "dst_color_range": target.range}
        width, height = self._flat
        kernel = "BILINEAR" if (frame.width, frame.height) == self._flat else "BICUBIC"
        return frame.reformat(width, height, pixels, interpolation=kernel, **source, **wanted)

    def warnings(self, complete: bool) -> list[str]:
        """What the reader of the result should know; `complete`: the track was read to its end."""
        notes = list(self._notes)
        if self._is_hdr:
            notes.append(HDR_NOTE)
        if self._deinterlacer.used:
            notes.append(INTERLACED_NOTE)
        if self.damaged:
            notes.append(f"damaged packets skipped in the video: {self.damaged}.")
        promised = float((self.stream.duration or 0) * self.time_base)
        if complete and promised - self.end > 0.5 and not self._breaks:
            notes.append(f"the video breaks off at {self.end:.2f} s; its header says {promised:.2f} s.")
        return notes


class SoundTrack(_Track):
    """Sound, read forward; sample n of the 16 kHz mono sound lies at n / 16000 s after `origin`.

    The channels are averaged after resampling: the down-mix of FFmpeg to mono is 3 dB louder than their mean. One
    resampler runs through the whole track, so windows put together equal the track read at once.

    Args:
        origin (`Fraction`, *optional*): zero of the time, in s on the clock of the file; default: the first sample.
    """

    def __init__(
        self,
        media: MediaFile,
        container: InputContainer,
        stream: AudioStream,
        choice: TrackChoice,
        origin: Fraction | None,
    ) -> None:
        super().__init__(media, container, stream, choice)
        self.stream = stream
        self.origin = origin
        self.samples = 0  # read so far
        self.forms: dict[str, None] = {}  # rates and layouts met so far, in order
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
        """Mono chunks, each with its first sample (0 or later)."""
        for position, chunk in self.resampled(SAMPLING_RATE):
            mono = chunk.mean(axis=0, dtype=np.float32)  # (C, N) -> (N,)
            if not np.isfinite(mono).all():
                raise self.media.error(f"the sound has NaN or infinite samples at {position / SAMPLING_RATE:.1f} s.")
            self.samples += len(mono)
            yield position, mono

    def resampled(self, rate: int, layout: str | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Chunks `(channels, N)` float32 that follow each other without overlap, each with its first sample.

        Args:
            rate: in Hz.
            layout: of the channels, as FFmpeg calls them; default: as they come, which may change on the way.
        """
        free = 0
        for position, chunk in self._stretches(rate, layout):
            if position > MAX_SECONDS * rate:
                return
            chunk = chunk[:, max(0, free - position) :]
            if chunk.shape[1]:
                position = max(position, free)
                free = position + chunk.shape[1]
                yield position, chunk

    def _stretches(self, rate: int, layout: str | None) -> Iterator[tuple[int, np.ndarray]]:
        """As decoded: a new resampler where the form of the sound changes, or its time stamps leave a gap."""
        resampler: AudioResampler | None = None
        form: tuple[int, str, str] | None = None
        position, expected = 0, self.origin or Fraction(0)
        frame: AudioFrame
        for frame in self._decode():
            begin = expected if frame.pts is None else frame.pts * (frame.time_base or self.time_base)
            found = (frame.sample_rate, frame.layout.name, frame.format.name)
            if resampler is None or form != found or abs(begin - expected) > SOUND_GAP:
                if resampler is not None:
                    yield from _chunks(resampler, None, position)
                if self.origin is None:
                    self.origin = begin
                resampler, form, expected = _resampler(rate, layout), found, begin
                self.forms[f"{frame.sample_rate} Hz {frame.layout.name}"] = None
                position = round((begin - self.origin) * rate)
            expected += Fraction(frame.samples, frame.sample_rate)
            for position_of_chunk, chunk in _chunks(resampler, frame, position):
                yield position_of_chunk, chunk
                position = position_of_chunk + chunk.shape[1]
        if resampler is not None:
            yield from _chunks(resampler, None, position)


def _resampler(rate: int, layout: str | None) -> AudioResampler:
    # packed: PyAV 18.1 sees nine planes in a planar frame of eight channels and reads past the end
    return AudioResampler(format="flt", layout=layout, rate=rate)


def _chunks(resampler: AudioResampler, frame: AudioFrame | None, position: int) -> Iterator[tuple[int, np.ndarray]]:
    """Resample one frame (None: what is left); chunks `(channels, N)` with their first sample."""
    for part in resampler.resample(frame):
        yield position, part.to_ndarray().reshape(part.samples, -1).T
        position += part.samples
