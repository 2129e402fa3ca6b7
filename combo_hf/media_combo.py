"""Videos -> windows of pictures and sound, as AVSBench cuts them.

Second k of a video is represented by the picture shown at k + 15/16 s (the last one whose time stamp is not later), so
at 25 pictures a second by picture 23 of each second, as in AVSBench. Its sound is the 16000 samples from k s on. A
video of d seconds has max(1, ceil(d - 0.5)) such seconds: a last second counts if more than half of it is there. The
pictures decide; sound beyond them is not read, missing sound is silence. Memory does not grow with the length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from PIL import Image

from .media_combo_shown import FRAME_OFFSET, Sampler, ShownPicture, Timed, check_fps, seconds_between
from .media_combo_source import (
    MAX_SECONDS,
    SAMPLING_RATE,
    MediaError,
    MediaFile,
    MediaSource,
    TrackChoice,
    choose_tracks,
    open_media,
)
from .media_combo_tracks import PictureTrack, SoundTrack, packets_of, picture_track, sound_track


try:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
except ImportError:  # the model itself needs no media files
    pass


__all__ = [
    "FRAME_OFFSET",
    "SAMPLING_RATE",
    "Clip",
    "MediaError",
    "MediaInfo",
    "MediaSource",
    "iter_clips",
    "load_audio",
    "probe_media",
    "read_clip",
]


@dataclass
class MediaInfo:
    """What a video holds.

    Attributes:
        name (`str`): file name.
        path (`str`, *optional*): path; None for bytes and URLs.
        width, height (`int`): pixels as shown (rotation applied).
        fps (`float`): average pictures per second.
        num_frames (`int`): pictures in the file; a damaged one counts.
        duration (`float`): length of the pictures in s.
        seconds (`int`): seconds that [`iter_clips`] gives (more than a damaged video does).
        has_audio (`bool`): has a sound track.
        audio_channels, audio_rate (`int`): channels and Hz of the sound track, 0 without one.
        warnings (`list[str]`): damage found.
    """

    name: str
    path: str | None
    width: int
    height: int
    fps: float
    num_frames: int
    duration: float
    seconds: int
    has_audio: bool
    audio_channels: int
    audio_rate: int
    warnings: list[str] = field(default_factory=list)


@dataclass
class Clip:
    """Some seconds of a video.

    Attributes:
        frames (`list[PIL.Image.Image]`): T pictures, RGB, upright, of one size. A picture shown for several seconds is
            one object, several times.
        waveform (`np.ndarray`): float32 `(N,)`, mono, 16000 samples for each second of the clip.
        sampling_rate (`int`): 16000 Hz.
        times (`np.ndarray`): float64 `(T,)`, s from the first picture of the video.
        start (`float`): where the clip begins, in s.
        index (`int`): number of the window.
        is_last (`bool`): no window follows.
        has_audio (`bool`): the video has a sound track.
        warnings (`list[str]`): damage met so far.
    """

    frames: list[Image.Image]
    waveform: np.ndarray
    sampling_rate: int
    times: np.ndarray
    start: float
    index: int
    is_last: bool
    has_audio: bool
    warnings: list[str] = field(default_factory=list)


def probe_media(source: MediaSource, video_track: int | None = None, audio_track: int | None = None) -> MediaInfo:
    """Size, length and tracks of a video. Reads the file through, decodes only its first picture.

    Args:
        source: path, bytes or http(s) URL.
        video_track, audio_track (`int`, *optional*): as in [`iter_clips`].

    Raises:
        MediaError: unreadable, or no picture in it.
        TypeError: another kind of source.
    """
    with open_media(source) as media, media.open() as container, media.open() as again:
        choice = choose_tracks(media, video_track, audio_track)
        track = picture_track(media, container, choice)
        next(iter(track))
        end, count = _timing(track, again, choice)
        sound = sound_track(media, container, choice, None)
        codec = None if sound is None else sound.stream.codec_context
        track.end = end
        rate = track.stream.average_rate
        return MediaInfo(
            name=media.name,
            path=media.path,
            width=track.size[0],
            height=track.size[1],
            fps=float(rate) if rate else count / end,
            num_frames=count,
            duration=end,
            seconds=_whole_seconds(end),
            has_audio=sound is not None,
            audio_channels=0 if codec is None else codec.channels,
            audio_rate=0 if codec is None else codec.sample_rate,
            warnings=track.warnings(complete=True),
        )


def _timing(started: PictureTrack, unread: InputContainer, choice: TrackChoice) -> tuple[float, int]:
    """End in s and number of pictures, from the packets."""
    end, count = started.end, 0
    again = packets_of(started, unread, choice)
    for packet in again.packets():
        if packet.size and not packet.is_discard:
            count += 1
            if packet.pts is not None:
                end = max(end, started.seconds(packet.pts + (packet.duration or started.step)))
            else:
                end = max(end, started.seconds(count * started.step))
    started.damaged += again.damaged
    return min(end, float(MAX_SECONDS)), max(1, count)


def _whole_seconds(duration: float) -> int:
    return max(1, math.ceil(duration - 0.5))


def iter_clips(
    source: MediaSource,
    frames_per_clip: int = 5,
    fps: float | str = 1,
    start: float | None = None,
    stop: float | None = None,
    max_seconds: float | None = None,
    video_track: int | None = None,
    audio_track: int | None = None,
) -> Iterator[Clip]:
    """Windows of a video, one after the other, without overlap. The waveforms put together are the video's.

    Args:
        source: path, bytes or http(s) URL.
        frames_per_clip (`int`): seconds of a window (at less than one picture per second: pictures); the last one is
            shorter.
        fps: pictures per second n, a whole number; picture j of second k is the one shown at k + (j + 15/16) / n. Or
            below 1: the picture at k + 15/16 of every (nearest whole number to 1/fps)th second. Or `"auto"`: the
            picture at k + 15/16 of every second, where something moves also those 1/2, or 1/4, 1/2 and 3/4 s before;
            at most 2 per second on average over any beginning of the video.
        start, stop (`float`, *optional*): part of the video, in s. What lies before `start` is decoded and dropped.
        max_seconds (`float`, *optional*): a longer video is refused when the reading gets there, whatever its header
            says.
        video_track, audio_track (`int`, *optional*): number of the track among those of its kind, from 1; default:
            what a player would take.

    Raises:
        ValueError: an impossible window, fps, part or limit; `MediaError` (while reading): an unusable file, one that
            is too long, or no such track.
        TypeError: another kind of source.
    """
    if isinstance(frames_per_clip, bool) or not isinstance(frames_per_clip, (int, np.integer)) or frames_per_clip < 1:
        raise ValueError(f"frames_per_clip must be an integer of at least 1, got {frames_per_clip!r}.")
    begin = 0.0 if start is None else float(start)
    end = math.inf if stop is None else float(stop)
    if not 0 <= begin < end:
        raise ValueError(f"start and stop must satisfy 0 <= start < stop, got {start} and {stop}.")
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be above 0, got {max_seconds!r}.")
    limit = math.inf if max_seconds is None else float(max_seconds)
    return _windows(source, int(frames_per_clip), check_fps(fps), (begin, end, limit), (video_track, audio_track))


def read_clip(
    source: MediaSource,
    fps: float | str = 1,
    max_seconds: int = 600,
    video_track: int | None = None,
    audio_track: int | None = None,
) -> Clip:
    """The whole video as one [`Clip`]; for videos of a few seconds. All its pictures are in memory at once.

    Args:
        source, fps, video_track, audio_track: as in [`iter_clips`].
        max_seconds (`int`): a longer video is refused (600 s of 1080p take 3.7 GB); [`iter_clips`] reads any length.

    Raises:
        MediaError: too long; and as in [`iter_clips`].
        ValueError, TypeError: as in [`iter_clips`].
    """
    clip = next(iter_clips(source, max_seconds, fps, video_track=video_track, audio_track=audio_track))
    if not clip.is_last:
        raise MediaError(f"the video is longer than {max_seconds} s; read it in windows by iter_clips.")
    return clip


def _windows(
    source: MediaSource,
    length: int,
    fps: float | str,
    part: tuple[float, float, float],
    numbers: tuple[int | None, int | None],
) -> Iterator[Clip]:
    begin, end, limit = part
    with ExitStack() as stack:
        media = stack.enter_context(open_media(source))
        choice = choose_tracks(media, *numbers)
        track = picture_track(media, stack.enter_context(media.open()), choice)
        seconds = _seconds(media, _limited(media, track, limit), track, Sampler(fps), begin, end)
        following: list[Timed] | None = next(seconds)
        sound = sound_track(media, stack.enter_context(media.open()), choice, track.origin)
        # sound and pictures are two passes: in one, an ill-interleaved file would pile up in memory
        first, length = 0, length * seconds_between(fps)
        while following is not None:
            window: list[list[Timed]] = []
            while following is not None and len(window) < length:
                window.append(following)
                following = next(seconds, None)
            begin_sample = round(begin * SAMPLING_RATE) + first * SAMPLING_RATE
            count = len(window) * SAMPLING_RATE
            pictures = [picture for second in window for picture in second]
            yield Clip(
                frames=[image for _, image in pictures],
                waveform=np.zeros(count, np.float32)
                if sound is None
                else sound.take(begin_sample, begin_sample + count),
                sampling_rate=SAMPLING_RATE,
                times=np.array([time for time, _ in pictures]),
                start=begin + first,
                index=first // length,
                is_last=following is None,
                has_audio=sound is not None,
                warnings=_warnings(track, sound, complete=following is None and end == math.inf),
            )
            first += len(window)


def _warnings(track: PictureTrack, sound: SoundTrack | None, complete: bool) -> list[str]:
    notes = track.warnings(complete)
    if sound is not None and sound.damaged:
        notes.append(f"damaged packets skipped in the sound: {sound.damaged}.")
    if sound is not None and len(sound.forms) > 1:
        notes.append(f"the form of the sound changes on the way: {', '.join(sound.forms)}.")
    if sound is not None and complete and not sound.samples:
        notes.append("nothing of the sound can be decoded; it is silence.")
    return notes


def _limited(media: MediaFile, track: PictureTrack, limit: float) -> Iterator[tuple[float, VideoFrame]]:
    """The pictures of a track that must not go on for more than `limit` seconds."""
    for now, frame in track:
        if track.end - 0.5 > limit:  # half a second more does not count as another one
            raise media.error(f"is longer than {limit:g} s.")
        yield now, frame


def _seconds(
    media: MediaFile,
    pictures: Iterator[tuple[float, VideoFrame]],
    track: PictureTrack,
    sampler: Sampler,
    begin: float,
    end: float,
) -> Iterator[list[Timed]]:
    """The pictures of each second after `begin` with their times; a second is given once it is known to count."""
    limit = math.inf if end == math.inf else _whole_seconds(end - begin)
    shown: ShownPicture | None = None
    second: list[ShownPicture] = []
    done = 0
    for now, frame in pictures:
        while done < limit and now > begin + done + sampler.offsets[len(second)]:
            assert shown is not None, "a picture is asked for before the first one was shown"
            second.append(shown)
            if len(second) == len(sampler.offsets):
                yield sampler.take(begin, done, second)
                second = []
                done += 1
        if done >= limit:
            return
        shown = ShownPicture(frame, track.image)
    if track.end <= begin:
        raise media.error(f"ends at {track.end:.2f} s, before the wanted start at {begin:.2f} s.")
    assert shown is not None, "a track has at least one picture"
    for index in range(done, int(min(limit, _whole_seconds(track.end - begin)))):
        second.extend([shown] * (len(sampler.offsets) - len(second)))
        yield sampler.take(begin, index, second)
        second = []


def load_audio(
    source: MediaSource, max_seconds: float = 3600, audio_track: int | None = None
) -> tuple[np.ndarray, int]:
    """The whole sound of a file as 16 kHz mono.

    Args:
        source: path, bytes or http(s) URL of a sound or a video. In a video the time counts from its first picture.
        max_seconds (`float`): a longer sound is refused, whatever its header says (an hour takes 230 MB, and 1 MB of
            flac can hold a day of silence).
        audio_track (`int`, *optional*): as in [`iter_clips`].

    Returns:
        `tuple[np.ndarray, int]`: float32 `(N,)`, the mean of the channels, not clipped to [-1, 1]; and 16000 Hz.

    Raises:
        MediaError: unreadable, no sound track, no samples, too long, NaN or infinite samples.
        TypeError: another kind of source.
    """
    with open_media(source) as media, media.open() as container, media.open() as again:
        choice = choose_tracks(media, None, audio_track)
        sound = sound_track(media, again, choice, _first_picture(media, container, choice))
        if sound is None:
            raise media.error("has no sound track.")
        waveform = sound.take_rest(max_seconds)
        if not len(waveform):
            raise media.error("the sound track holds no samples.")
        return waveform, SAMPLING_RATE


def _first_picture(media: MediaFile, container: InputContainer, choice: TrackChoice) -> Fraction | None:
    """Time stamp of the first picture in s, None if there is none."""
    try:
        return picture_track(media, container, choice).origin
    except MediaError:
        return None
