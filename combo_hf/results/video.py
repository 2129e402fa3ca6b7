"""Label maps painted over a film, and films from pictures: H.264 and AAC in mp4, written whole or not at all.

H.264 with 4:2:0 colour needs even sizes: an odd width or height is padded by one pixel, a copy of the edge, on the
right or at the bottom. The colours are mixed in YUV, so what the maps leave alone goes to the encoder as it came.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from combo_hf.files.atomic import replacing
from combo_hf.maskige_combo import PALETTE
from combo_hf.media_combo_source import MediaFile, PictureTrack, even, even_picture, open_media, plane_values


try:
    import av
except ImportError:  # the model itself needs no media files
    av = None


ENDINGS = (".mp4", ".m4v", ".mov")
X264_OPTIONS = {"preset": "veryfast"}
# superfast with macroblock trees over ten pictures: size and quality of veryfast for two thirds of its time
OVERLAY_OPTIONS = {"preset": "superfast", "x264-params": "rc-lookahead=10:mbtree=1"}
CONTOUR_ALPHA = 0.35  # added to alpha on the contour of a segment
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_LUMA = {"bt601": (0.299, 0.587, 0.114), "bt709": (0.2126, 0.7152, 0.0722)}  # shares of R, G, B (ITU-R)
_BT709 = 1  # number of the BT.709 matrix in H.273; 0 is RGB, 2 unknown
_FULL_RANGE = 2  # of AVColorRange: Y, Cb, Cr use 0..255 (Motion JPEG, some phones), not 16..235 and 16..240


def write_overlay_video(
    source: Any,
    path: str | os.PathLike[str],
    label_maps: Iterable[tuple[float, np.ndarray]],
    colors: np.ndarray | None = None,
    fps: float = 1,
    alpha: float = 0.5,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Paint label maps over a film, at its resolution and with its time stamps and sound.

    A picture shown at t takes the map of its slot floor(t * fps), else the latest one before it; pictures before the
    first map stay as they are.

    Args:
        source: path, bytes or http(s) URL of the film.
        path: mp4 to write (.mp4, .m4v or .mov); appears only when complete.
        label_maps: in order of time, `(timestamp in s, (H, W) integer map)`, H and W as shown; 0 is left alone. Read
            one at a time, when the film gets there.
        colors (`np.ndarray` of shape `(K, 3)`, *optional*): uint8 RGB of each class; default the ADE20K colours.
        fps (`float`): maps per second, as they were predicted.
        alpha (`float`): share of the colour, 0 to 1; the contour gets a little more.
        progress: called as `progress(pictures written, pictures in all or None)`.

    Returns:
        `Path`: what was written. Sound in AAC or MP3 is copied, other sound encoded as AAC.

    Raises:
        ValueError: impossible alpha, fps, colours, path, or a map that does not fit; `MediaError`: an unusable film.
    """
    path = _target(path)
    colors = np.asarray(PALETTE if colors is None else colors)
    if colors.ndim != 2 or colors.shape[1] != 3 or colors.dtype != np.uint8:
        raise ValueError(f"colors must be (K, 3) uint8, got {colors.shape} {colors.dtype}.")
    if not 0 <= alpha <= 1 or not fps > 0:
        raise ValueError(f"alpha must lie in 0..1 and fps above 0, got alpha={alpha} and fps={fps}.")
    if isinstance(source, (str, os.PathLike)) and path.exists() and os.path.exists(source):
        if os.path.samefile(source, path):
            raise ValueError(f"{path.name} is the film itself; write the overlay to another file.")
    with open_media(source) as media, media.open() as film, media.open() as sound_film, replacing(path) as partial:
        track = media.pictures(film)
        # one shift for both tracks keeps the sound where it was
        shift = Fraction(film.start_time or 0, 1_000_000)
        with _mp4(partial, media) as output:
            pictures = _picture_stream(output, track)
            sound = _sound_packets(media, sound_film, output, shift)
            painter = _Painter(label_maps, colors, fps, alpha, track)
            durations: dict[int, int] = {}
            ticks = round(shift / track.stream.time_base)
            due = next(sound, None)
            for count, (now, frame) in enumerate(track, start=1):
                if count == 1:
                    pictures.width, pictures.height = (side + side % 2 for side in track.size)
                painted = painter.paint(now, frame)
                painted.pts, painted.time_base = frame.pts - ticks, track.stream.time_base
                durations[painted.pts] = frame.duration
                _mux(output, pictures.encode(painted), durations)
                # interleaved, so that the muxer holds no long queue of either
                while due is not None and due[0] <= now:
                    output.mux(due[1])
                    due = next(sound, None)
                if progress is not None:
                    progress(count, track.stream.frames or None)
            _mux(output, pictures.encode(None), durations)
            while due is not None:
                output.mux(due[1])
                due = next(sound, None)
    return path


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[Any],
    fps: float,
    waveform: np.ndarray | None = None,
    sampling_rate: int = 16000,
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
    sound = None if waveform is None else _check_sound(waveform, sampling_rate)
    rate = Fraction(fps).limit_denominator(1001)
    media = MediaFile(path.name, str(path))
    with replacing(path) as partial, _mp4(partial, media) as output:
        pictures = output.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        pictures.pix_fmt = "yuv420p"
        voice = None if sound is None else output.add_stream("aac", rate=sampling_rate, layout="mono")
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
            until = 0 if sound is None else min(len(sound), int((index + 1) / rate * sampling_rate))
            sent = _send_sound(output, voice, sound, sent, until, sampling_rate)
        if shape is None:
            raise ValueError("frames is empty; a film needs at least one picture.")
        output.mux(pictures.encode(None))
        if sound is not None:
            _send_sound(output, voice, sound, sent, len(sound), sampling_rate)
            output.mux(voice.encode(None))
    return path


def _target(path: str | os.PathLike[str]) -> Path:
    if av is None:
        raise ImportError("reading and writing films needs PyAV: pip install av")
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path.name}: films are written as mp4; use a name that ends in {', '.join(ENDINGS)}.")
    if not path.parent.is_dir():
        raise ValueError(f"{path.name}: the folder {path.parent.name!r} does not exist; create it.")
    if path.is_dir():
        raise ValueError(f"{path.name}: is a folder; pass the name of a file.")
    return path


@contextmanager
def _mp4(partial: Path, media: MediaFile) -> Iterator[Any]:
    """An mp4 to write. What FFmpeg says about it names temporary files, so only the kind of error is passed on."""
    try:
        with av.open(f"file:{partial}", "w", format="mp4", options={"movflags": "+faststart"}) as output:
            yield output
    except av.error.FFmpegError as error:
        raise media.error(f"the film cannot be written ({type(error).__name__}).") from None


def _mux(output: Any, packets: list[Any], durations: dict[int, int]) -> None:
    for packet in packets:
        # without it the muxer guesses how long the last picture stays, and a film of one picture has no length
        packet.duration = durations.pop(packet.pts, packet.duration)
        output.mux(packet)


def _picture_stream(output: Any, track: PictureTrack) -> Any:
    source = track.stream
    stream = output.add_stream("libx264", rate=source.average_rate or 25, options=OVERLAY_OPTIONS)
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = source.time_base
    if source.codec_context.colorspace not in (0, 2):  # neither RGB nor unknown
        for name in ("colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, name, getattr(source.codec_context, name))
    if _is_full_range(track):
        stream.codec_context.color_range = _FULL_RANGE
    return stream


def _is_full_range(track: PictureTrack) -> bool:
    codec = track.stream.codec_context
    return codec.pix_fmt is not None and (
        codec.pix_fmt.startswith("yuvj") or (codec.pix_fmt.startswith("yuv") and codec.color_range == _FULL_RANGE)
    )


def _sound_packets(media: MediaFile, film: Any, output: Any, shift: Fraction) -> Iterator[tuple[float, Any]]:
    """Adds the sound track now, where there is one; then packets for it, each with its time in s."""
    track = media.sound(film, None)
    if track is None:
        return iter(())
    codec = track.stream.codec_context
    kind = codec.codec.canonical_name
    # AAC in a transport stream carries its description in every packet, not where mp4 wants it
    if kind == "mp3" or (kind == "aac" and codec.extradata):
        return _copied(track, output.add_stream_from_template(track.stream), shift)
    rate = codec.sample_rate if codec.sample_rate in AAC_RATES else 48000
    stream = output.add_stream("aac", rate=rate, layout="mono" if codec.channels == 1 else "stereo")
    return _encoded(track, stream, shift)


def _copied(track: Any, stream: Any, shift: Fraction) -> Iterator[tuple[float, Any]]:
    for packet in track.packets():
        if packet.dts is None or packet.pts is None:
            continue
        ticks = round(shift / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        packet.stream = stream
        yield float(packet.pts * packet.time_base), packet


def _encoded(track: Any, stream: Any, shift: Fraction) -> Iterator[tuple[float, Any]]:
    for frame in track.decode():
        if frame.pts is not None:
            frame.pts -= round(shift / frame.time_base)
        for packet in stream.encode(frame):
            yield float(packet.pts * packet.time_base), packet
    for packet in stream.encode(None):
        yield float(packet.pts * packet.time_base), packet


class _Painter:
    """Mixes the current map into pictures. Its weights are made once per map: (Y, Cb, Cr) * keep + add, / 256."""

    def __init__(self, maps: Iterable[Any], colors: np.ndarray, fps: float, alpha: float, track: PictureTrack) -> None:
        self._maps = iter(maps)
        self._fps, self._alpha, self._track = fps, alpha, track
        self._colors = colors
        matrix = "bt709" if track.stream.codec_context.colorspace == _BT709 else "bt601"
        self._yuv = _to_yuv(colors, matrix, _is_full_range(track))
        self._weights: list[tuple[tuple[slice, slice], np.ndarray, np.ndarray]] = []
        self._slot = -1
        self._next: tuple[int, np.ndarray] | None = None
        self._ended = False
        self._room = np.empty(0, np.uint16)  # for products; new memory for each picture costs more than to multiply

    def paint(self, now: float, frame: Any) -> Any:
        """The picture shown at `now` as a new, even, yuv420p frame."""
        self._advance(int(now * self._fps))
        picture = even_picture(self._track, frame)
        for plane, (box, keep, add) in zip(picture.planes, self._weights, strict=False):
            part = plane_values(plane)[box]
            mixed = np.multiply(part, keep, out=self._room[: part.size].reshape(part.shape))
            mixed += add
            np.right_shift(mixed, 8, out=part, casting="unsafe")
        return picture

    def _advance(self, slot: int) -> None:
        while self._slot < slot and not self._ended:
            if self._next is None:
                item = next(self._maps, None)
                if item is None:
                    self._ended = True
                    return
                self._next = (int(item[0] * self._fps), np.asarray(item[1]))
            if self._next[0] > slot:
                return
            self._slot, label_map = self._next
            self._next = None
            self._weights = self._prepare(label_map)

    def _prepare(self, label_map: np.ndarray) -> list[tuple[tuple[slice, slice], np.ndarray, np.ndarray]]:
        width, height = self._track.size
        if label_map.shape != (height, width) or label_map.dtype.kind not in "iu":
            raise ValueError(
                f"a label map must be ({height}, {width}) integers, as the film is shown, "
                f"got {label_map.shape} {label_map.dtype}."
            )
        if not label_map.any():
            return []
        if label_map.min() < 0 or label_map.max() >= len(self._colors):
            raise ValueError(
                f"a label map holds class {label_map.min()} to {label_map.max()}, "
                f"but there are {len(self._colors)} colours."
            )
        label_map = even(label_map)
        box = _even_box(label_map)
        label_map = label_map[box]
        share = np.where(label_map > 0, round(256 * self._alpha), 0).astype(np.uint16)
        share[_contour(label_map)] = round(256 * min(1.0, self._alpha + CONTOUR_ALPHA))
        weights = []
        for plane in range(3):
            step = 1 if plane == 0 else 2
            part, mixed = share[::step, ::step], self._yuv[label_map[::step, ::step], plane]
            place = tuple(slice(side.start // step, side.stop // step) for side in box)
            weights.append((place, 256 - part, part * mixed + np.uint16(128) * (part > 0)))
        if self._room.size < share.size:
            self._room = np.empty(share.size, np.uint16)
        return weights


def _to_yuv(colors: np.ndarray, matrix: str, full: bool) -> np.ndarray:
    """RGB `(K, 3)` to Y, Cb, Cr, uint16 `(K, 3)`."""
    red, green, blue = _LUMA[matrix]
    rgb = colors.astype(np.float64) / 255
    luma = rgb @ np.array([red, green, blue])
    half = (rgb[:, 2] - luma) / (1 - blue) / 2, (rgb[:, 0] - luma) / (1 - red) / 2  # -0.5 .. 0.5
    floor, light, tint = (0, 255, 255) if full else (16, 219, 224)
    yuv = np.stack([floor + light * luma, 128 + tint * half[0], 128 + tint * half[1]], axis=1)
    return np.rint(yuv).clip(0, 255).astype(np.uint16)


def _contour(label_map: np.ndarray) -> np.ndarray:
    """Pixels of a segment that touch another class, bool `(H, W)`; two pixels wide on 720 lines and more."""
    edge = np.zeros(label_map.shape, dtype=bool)
    reach = max(1, label_map.shape[0] // 360)
    for step in range(1, reach + 1):
        across = label_map[:, step:] != label_map[:, :-step]
        down = label_map[step:] != label_map[:-step]
        edge[:, step:] |= across
        edge[:, :-step] |= across
        edge[step:] |= down
        edge[:-step] |= down
    return edge & (label_map > 0)


def _even_box(label_map: np.ndarray) -> tuple[slice, slice]:
    """The smallest box around everything that is not background, on even coordinates."""
    sides = []
    for axis in (1, 0):
        found = np.flatnonzero(label_map.any(axis=axis))
        sides.append(slice(int(found[0]) // 2 * 2, int(found[-1]) // 2 * 2 + 2))
    return sides[0], sides[1]


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


def _send_sound(output: Any, stream: Any, sound: Any, start: int, stop: int, rate: int) -> int:
    """Encode samples `[start, stop)`; returns `stop`."""
    if sound is not None and stop > start:
        part = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None, start:stop]), format="fltp", layout="mono")
        part.sample_rate, part.pts, part.time_base = rate, start, Fraction(1, rate)
        output.mux(stream.encode(part))
    return stop
