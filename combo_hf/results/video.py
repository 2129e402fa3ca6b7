"""Overlay videos and videos made of pictures: H.264 and AAC in mp4, written whole or not at all."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from combo_hf.files.atomic import replacing
from combo_hf.maskige_combo import PALETTE
from combo_hf.media_combo_shown import UNKNOWN
from combo_hf.media_combo_source import SAMPLING_RATE, MediaError, MediaSource, choose_tracks, open_media
from combo_hf.media_combo_tracks import PictureTrack, SoundTrack, picture_track, sound_track
from combo_hf.results.moments import with_due_maps, with_followed_maps
from combo_hf.results.painting import MapSink, Painter, even


ENDINGS = (".mp4", ".m4v", ".mov")
# The same pictures shall give the same bytes: several threads gave others once in sixty times, and weighted prediction
# with macroblock trees, which reads memory that nobody has written, one time in three.
X264_OPTIONS = {"preset": "veryfast", "threads": "1", "x264-params": "weightp=0:mbtree=0"}
# superfast with macroblock trees over ten pictures: size and quality of veryfast for two thirds of its time
OVERLAY_OPTIONS = {"preset": "superfast", "x264-params": "rc-lookahead=10:mbtree=1"}
AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


def write_overlay_video(
    source: MediaSource,
    path: str | os.PathLike[str],
    label_maps: Iterable[tuple[float, np.ndarray]],
    colors: np.ndarray | None = None,
    fps: float = 1,
    alpha: float = 0.5,
    progress: Callable[[int, int | None], None] | None = None,
    video_track: int | None = None,
    audio_track: int | None = None,
    labels: Mapping[int, str] | None = None,
    follow: bool = False,
    sinks: Sequence[MapSink] = (),
) -> Path:
    """Paint label maps over a video as it is shown, at its resolution and with its time stamps and sound.

    A picture shown at t takes the map of its slot floor(t * fps), else the latest one before it; pictures before the
    first map stay as they are. A still picture is repeated where the map changes.

    Args:
        source: path, bytes or http(s) URL of the video.
        path: mp4 to write (.mp4, .m4v or .mov); appears only when complete.
        label_maps: in order of time, `(timestamp in s, (H, W) integer map)`, H and W as shown; 0 is left alone. Read
            one at a time, when the video gets there: an iterator that runs a network does so in between.
        colors (`np.ndarray` of shape `(K, 3)`, *optional*): uint8 RGB of each class; default the ADE20K colours.
        fps (`float`): maps per second, as they were predicted.
        alpha (`float`): share of the colour, 0 to 1; the contour gets a little more.
        progress: called as `progress(pictures read, pictures in all or None)`.
        video_track, audio_track (`int`, *optional*): as in [`iter_clips`].
        labels (`dict`, *optional*): class number -> name; written on the objects, with a legend of the colours.
        follow: move the maps along with the pictures ([`follow_label_maps`]): every picture gets a map of its own.
        sinks: get every picture with its label map as well.

    Returns:
        `Path`: what was written. Sound in AAC or MP3 is copied, other sound encoded as AAC with the same channels.
        RGB and HDR become 8 bit BT.709; other colours keep their tags.

    Raises:
        ValueError: impossible alpha, fps, colours, path, or a map that does not fit; `MediaError`: an unusable video.
    """
    path = _target(path)
    colors = np.asarray(PALETTE if colors is None else colors)
    _check_painting(source, path, colors, fps, alpha)
    with open_media(source) as media, media.open() as video, media.open() as sound_video:
        choice = choose_tracks(media, video_track, audio_track)
        track = picture_track(media, video, choice)
        # one zero for both tracks keeps the sound where it was
        zero = Fraction(video.start_time or 0, av.time_base)
        with container(path, media.error) as output:
            pictures = PictureWriter(output, track, zero)
            sound = _SoundWriter(output, sound_track(media, sound_video, choice, zero), zero)
            painter = Painter(colors, alpha, track, labels)
            for sink in sinks:
                sink.open(track, zero)
            count = 0
            followed = with_followed_maps(media, choice, track, label_maps, fps) if follow else None
            for (now, frame, shown_for), label_map in followed or with_due_maps(track, label_maps, fps):
                changed = painter.show(label_map)
                if changed or not shown_for:  # a still picture is shown anew where the map changes
                    ticks = (frame.pts or 0) + pictures.ticks(shown_for)
                    pictures.write(painter.mix(frame), ticks)
                    for sink in sinks:
                        sink.write(frame, painter.label_map, ticks)
                sound.write_until(now)
                count += not shown_for
                if progress is not None and not shown_for:
                    progress(count, track.stream.frames or None)
            end = pictures.ticks(track.end) + track.first
            pictures.finish(end)
            for sink in sinks:
                sink.finish(end)
            sound.write_until(math.inf)
    return path


def _check_painting(source: MediaSource, path: Path, colors: np.ndarray, fps: float, alpha: float) -> None:
    if colors.ndim != 2 or colors.shape[1] != 3 or colors.dtype != np.uint8:
        raise ValueError(f"colors must be (K, 3) uint8, got {colors.shape} {colors.dtype}.")
    if not 0 <= alpha <= 1 or not fps > 0:
        raise ValueError(f"alpha must lie in 0..1 and fps above 0, got alpha={alpha} and fps={fps}.")
    if isinstance(source, (str, os.PathLike)) and path.exists() and os.path.exists(source):
        if os.path.samefile(source, path):
            raise ValueError(f"{path.name} is the video itself; write the overlay to another file.")


class PictureWriter:
    """Encodes pictures at their times; each is shown until the next one.

    Args:
        output: the video to write.
        track: of the source.
        zero: s on the source's clock that become 0.
        encoder, pixels, options: of FFmpeg; default H.264 as overlays have it.
    """

    def __init__(
        self,
        output: OutputContainer,
        track: PictureTrack,
        zero: Fraction,
        encoder: str = "libx264",
        pixels: str = "yuv420p",
        options: Mapping[str, str] = OVERLAY_OPTIONS,
    ) -> None:
        rate, regular_rate = track.stream.average_rate or 25, track.stream.guessed_rate or 25
        # Pictures out of order lose how long each of them is shown, which only stills make visible.
        order = {"bf": "0"} if rate < 0.9 * regular_rate else {}
        stream: VideoStream = output.add_stream(encoder, rate=rate, options={**options, **order})  # type: ignore[assignment]
        stream.pix_fmt = pixels
        stream.width, stream.height = (side + side % 2 for side in track.size)
        codec = stream.codec_context
        stream.time_base = codec.time_base = track.time_base
        colour = track.colour
        codec.colorspace, codec.color_primaries, codec.color_trc = colour.matrix, colour.primaries, colour.transfer
        codec.color_range = colour.range if colour.full or colour.matrix != UNKNOWN else 0
        self._output, self._stream, self._time_base = output, stream, track.time_base
        self._zero = self.ticks(zero)
        self._held: tuple[VideoFrame, int] | None = None
        self._durations: dict[int, int] = {}

    def ticks(self, seconds: float | Fraction) -> int:
        """A stretch of time in ticks of the track."""
        return round(seconds / self._time_base)

    def write(self, picture: VideoFrame, ticks: int) -> None:
        """Take a picture that is shown from `ticks`, on the source's clock; not later than the one before: drop it."""
        if self._held is None or ticks > self._held[1]:
            self._encode_held(ticks)
            self._held = picture, ticks

    def finish(self, ticks: int) -> None:
        """Write what is left; `ticks`: end of the last picture, on the source's clock."""
        self._encode_held(ticks)
        self._mux(self._stream.encode(None))

    def _encode_held(self, until: int) -> None:
        if self._held is not None:
            picture, ticks = self._held
            picture.pts, picture.time_base = ticks - self._zero, self._time_base
            self._durations[picture.pts] = max(1, until - ticks)
            self._mux(self._stream.encode(picture))

    def _mux(self, packets: list[Packet]) -> None:
        for packet in packets:
            # without it the muxer guesses how long the last picture stays, and a video of one picture has no length
            packet.duration = self._durations.pop(packet.pts or 0, packet.duration or 0)
            self._output.mux(packet)


class _SoundWriter:
    """Writes the sound track beside the pictures, copied where mp4 can hold it, as AAC otherwise.

    Args:
        output: the video to write; gets its sound stream now.
        track: of the source, with `zero` as its origin, or `None`.
        zero: s on the source's clock that become 0.
    """

    def __init__(self, output: OutputContainer, track: SoundTrack | None, zero: Fraction) -> None:
        self._output = output
        self._packets = iter(()) if track is None else self._open(track, zero)
        self._due = next(self._packets, None)

    def write_until(self, now: float) -> None:
        """Write up to a time in s; called with every picture, so that the muxer holds no long queue of either."""
        while self._due is not None and self._due[0] <= now:
            self._output.mux(self._due[1])
            self._due = next(self._packets, None)

    def _open(self, track: SoundTrack, zero: Fraction) -> Iterator[tuple[float, Packet]]:
        codec = track.stream.codec_context
        kind = codec.codec.canonical_name
        # AAC in a transport stream carries its description in every packet, not where mp4 wants it
        if kind == "mp3" or (kind == "aac" and codec.extradata):
            return _copied(track, self._output.add_stream_from_template(track.stream), zero)
        rate = codec.sample_rate if codec.sample_rate in AAC_RATES else 48000
        layout = AAC_LAYOUTS.get(codec.channels, "stereo")
        return _encoded(track, self._output.add_stream("aac", rate=rate, layout=layout), rate, layout)


def _copied(track: SoundTrack, stream: AudioStream, zero: Fraction) -> Iterator[tuple[float, Packet]]:
    for packet in track.packets():
        if packet.dts is None or packet.pts is None:
            continue
        ticks = round(zero / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        packet.stream = stream
        yield float(packet.pts * packet.time_base), packet


def _encoded(track: SoundTrack, stream: AudioStream, rate: int, layout: str) -> Iterator[tuple[float, Packet]]:
    now: int | None = None  # sample
    for position, chunk in track.resampled(rate, layout):
        now = position if now is None else now
        while now < position:  # the encoder wants one sample after the other
            silence = np.zeros((len(chunk), min(rate, position - now)), np.float32)
            yield from _timed(stream.encode(_sound_frame(silence, now, rate, layout)))
            now += silence.shape[1]
        yield from _timed(stream.encode(_sound_frame(np.nan_to_num(chunk), now, rate, layout)))
        now += chunk.shape[1]
    if now is not None:
        yield from _timed(stream.encode(None))


def _timed(packets: list[Packet]) -> Iterator[tuple[float, Packet]]:
    for packet in packets:
        yield float((packet.pts or 0) * packet.time_base), packet


def _sound_frame(sound: np.ndarray, start: int, rate: int, layout: str) -> av.AudioFrame:
    """Samples `(channels, N)` for the encoder; the first one is number `start`."""
    packed = np.ascontiguousarray(sound.T).reshape(1, -1)  # PyAV 18.1 sees nine planes in a planar one of 8 channels
    part = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
    part.sample_rate, part.pts, part.time_base = rate, start, Fraction(1, rate)
    return part


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray | Image.Image],
    fps: float,
    waveform: np.ndarray | None = None,
    sampling_rate: int = SAMPLING_RATE,
) -> Path:
    """Write pictures and mono sound as mp4.

    Args:
        path: mp4 to write; appears only when complete.
        frames: `(H, W, 3)` uint8 arrays or PIL images of one size, read one at a time.
        fps (`float`): pictures per second.
        waveform (`np.ndarray` of shape `(N,)`, *optional*): float sound in [-1, 1].
        sampling_rate (`int`): Hz, a rate of AAC (8000 to 96000).

    Raises:
        ValueError: no frames, frames of other shapes, or unusable sound.
    """
    path = _target(path)
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}.")
    sound = np.zeros(0, np.float32) if waveform is None else _check_sound(waveform, sampling_rate)
    rate = Fraction(fps).limit_denominator(1001)
    with container(path, lambda reason: MediaError(f"{path.name}: {reason}")) as output:
        pictures = output.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        pictures.pix_fmt = "yuv420p"
        voice = None if waveform is None else output.add_stream("aac", rate=sampling_rate, layout="mono")
        shape, sent = None, 0
        for index, frame in enumerate(frames):
            picture = np.asarray(frame)
            shape = shape or picture.shape
            _check_picture(picture, shape, index)
            if index == 0:
                pictures.height, pictures.width = (side + side % 2 for side in shape[:2])
            padded = av.VideoFrame.from_ndarray(even(picture), format="rgb24").reformat(format="yuv420p")
            padded.pts, padded.time_base = index, 1 / rate
            output.mux(pictures.encode(padded))
            until = min(len(sound), int((index + 1) / rate * sampling_rate))
            if voice is not None and until > sent:
                output.mux(voice.encode(_sound_frame(sound[None, sent:until], sent, sampling_rate, "mono")))
                sent = until
        if shape is None:
            raise ValueError("frames is empty; a video needs at least one picture.")
        output.mux(pictures.encode(None))
        if voice is not None:
            if len(sound) > sent:
                output.mux(voice.encode(_sound_frame(sound[None, sent:], sent, sampling_rate, "mono")))
            output.mux(voice.encode(None))
    return path


def _target(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path.name}: videos are written as mp4; use a name that ends in {', '.join(ENDINGS)}.")
    if not path.parent.is_dir():
        raise ValueError(f"{path.name}: the folder {path.parent.name!r} does not exist; create it.")
    if path.is_dir():
        raise ValueError(f"{path.name}: is a folder; pass the name of a file.")
    return path


@contextmanager
def container(path: Path, blame: Callable[[str], MediaError], kind: str = "mp4") -> Iterator[OutputContainer]:
    """A video file that appears at `path` once it is complete; `kind`: mp4, mov or webm.

    What FFmpeg says about it names temporary files, so only the reason is passed on, through `blame`.
    """
    with replacing(path) as temporary:
        try:
            options = {} if kind == "webm" else {"movflags": "+faststart"}
            with av.open(f"file:{temporary}", "w", format=kind, options=options) as output:
                yield output
        except av.error.FFmpegError as error:
            raise blame(f"the video cannot be written: {error.strerror or type(error).__name__}.") from None


def _check_picture(picture: np.ndarray, shape: tuple[int, ...], index: int) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or picture.shape != shape:
        raise ValueError(
            f"frames[{index}] must be (H, W, 3) uint8 of the size of the first frame {shape}, "
            f"got {picture.shape} {picture.dtype}."
        )


def _check_sound(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    sound = np.asarray(waveform)
    if sound.ndim != 1 or sound.dtype.kind != "f" or not np.isfinite(sound).all():
        raise ValueError(f"waveform must be finite float samples of shape (N,), got {sound.shape} {sound.dtype}.")
    if sampling_rate not in AAC_RATES:
        raise ValueError(f"sampling_rate must be one of {AAC_RATES}, got {sampling_rate}.")
    return sound.astype(np.float32)
