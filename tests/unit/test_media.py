"""Films made here: which picture stands for a second, and what is heard with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures_media import SIZE, damage, encode, noise, number, numbered, remux

from combo_hf import media_combo_tracks
from combo_hf.media_combo import (
    FRAME_OFFSET,
    SAMPLING_RATE,
    MediaError,
    iter_clips,
    load_audio,
    probe_media,
    read_clip,
)
from combo_hf.results.video import write_video


@pytest.mark.parametrize(
    ("rate", "count", "fps", "expected"),
    [
        (25, 75, 1, [23, 48, 73]),  # as in AVSBench
        (25, 75, 2, [11, 24, 36, 49, 61, 74]),
        (25, 25, 25, list(range(25))),
        (10, 30, 1, [9, 19, 29]),
        (16, 32, 1, [15, 31]),  # a picture exactly at k + 15/16 counts
        (1, 3, 1, [0, 1, 2]),
        (1, 2, 3, [0, 0, 0, 1, 1, 1]),
        (30, 47, 1, [28, 46]),  # ends before 1.9375 s: the last picture
        (25, 1, 4, [0, 0, 0, 0]),
    ],
)
def test_which_picture_is_shown(tmp_path: Path, rate: int, count: int, fps: int, expected: list[int]) -> None:
    clip = read_clip(write_video(tmp_path / "a.mp4", numbered(count), rate), fps=fps)
    assert [number(frame) for frame in clip.frames] == expected
    assert np.allclose(clip.times, (np.arange(len(expected)) + FRAME_OFFSET) / fps, atol=1e-12)
    assert clip.waveform.shape == (len(expected) // fps * SAMPLING_RATE,)


def test_time_stamps_decide_not_numbers(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", [0, 900, 930, 940, 1000, 1500, 1940, 2900, 2950])
    assert [number(frame) for frame in read_clip(path).frames] == [2, 5, 7]


@pytest.mark.parametrize(
    ("count", "seconds"), [(1, 1), (5, 1), (10, 1), (15, 1), (16, 2), (20, 2), (25, 2), (26, 3), (30, 3)]
)
def test_seconds_of_a_film(tmp_path: Path, count: int, seconds: int) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(count), 10)
    info = probe_media(path)
    assert (info.num_frames, info.seconds, len(read_clip(path).frames)) == (count, seconds, seconds)
    assert info.duration == pytest.approx(count / 10, abs=1e-3) and info.fps == pytest.approx(10, abs=1e-6)


def test_what_a_film_holds(film: Path) -> None:
    info = probe_media(str(film))
    assert (info.name, info.path, info.width, info.height) == ("film.mp4", str(film), *SIZE)
    assert (info.has_audio, info.audio_channels, info.audio_rate, info.warnings) == (True, 1, SAMPLING_RATE, [])


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("fps", [1, 4])
def test_windows(film: Path, length: int, fps: int) -> None:
    whole, windows = read_clip(film, fps=fps), list(iter_clips(film, length, fps))
    assert [len(window.frames) for window in windows] == [min(length, 3 - k) * fps for k in range(0, 3, length)]
    assert [window.start for window in windows] == list(range(0, 3, length))
    assert [window.index for window in windows] == list(range(len(windows)))
    assert [window.is_last for window in windows] == [False] * (len(windows) - 1) + [True]
    assert np.array_equal(np.concatenate([window.waveform for window in windows]), whole.waveform)
    assert [number(f) for window in windows for f in window.frames] == [number(f) for f in whole.frames]


@pytest.mark.parametrize(
    ("start", "stop", "frames", "times"),
    [
        (1, None, [48, 73], [1.9375, 2.9375]),
        (None, 2, [23, 48], [0.9375, 1.9375]),
        (1, 2, [48], [1.9375]),
        (0.5, 2.5, [35, 60], [1.4375, 2.4375]),
        (0, 0.2, [23], [0.9375]),  # a part always has one second
        (2.9, None, [74], [3.8375]),
        (0, 99, [23, 48, 73], [0.9375, 1.9375, 2.9375]),
    ],
)
def test_part_of_a_film(
    film: Path, start: float | None, stop: float | None, frames: list[int], times: list[float]
) -> None:
    (clip,) = iter_clips(film, start=start, stop=stop)
    assert [number(frame) for frame in clip.frames] == frames and np.allclose(clip.times, times)
    begin = round((start or 0) * SAMPLING_RATE)
    whole = np.pad(load_audio(film)[0], (0, SAMPLING_RATE))
    assert np.array_equal(clip.waveform, whole[begin : begin + len(frames) * SAMPLING_RATE])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames_per_clip": 0}, "frames_per_clip must be an integer of at least 1, got 0"),
        ({"frames_per_clip": True}, "frames_per_clip must be an integer"),
        ({"fps": 1.5}, "fps must be a whole number from 1 on, got 1.5"),
        ({"fps": 0}, "fps must be a whole number, a number between 0 and 1, or 'auto'; got 0"),
        ({"fps": float("nan")}, "fps must be a whole number, a number between 0 and 1"),
        ({"fps": "often"}, "or 'auto'; got 'often'"),
        ({"start": -1}, "0 <= start < stop, got -1 and None"),
        ({"start": 2, "stop": 2}, "0 <= start < stop, got 2 and 2"),
        ({"start": float("nan")}, "0 <= start < stop"),
    ],
)
def test_impossible_windows(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iter_clips("never opened.mp4", **arguments)


@pytest.mark.parametrize(
    ("fps", "frames_per_clip", "numbers", "seconds"),
    [
        (0.5, 5, [[23, 73]], [3]),
        (0.4, 1, [[23], [73]], [2, 1]),  # the nearest is every second second
        (1 / 3, 1, [[23]], [3]),
        (0.01, 2, [[23]], [3]),
        (0.9, 5, [[23, 48, 73]], [3]),
    ],
)
def test_less_than_one_picture_per_second(
    film: Path, fps: float, frames_per_clip: int, numbers: list[list[int]], seconds: list[int]
) -> None:
    """Seconds are left out of what one picture per second gives; the sound is whole."""
    clips = list(iter_clips(film, frames_per_clip, fps))
    assert [[number(frame) for frame in clip.frames] for clip in clips] == numbers
    assert [len(clip.waveform) for clip in clips] == [SAMPLING_RATE * count for count in seconds]
    assert np.array_equal(np.concatenate([clip.waveform for clip in clips]), read_clip(film).waveform)
    for clip, row in zip(clips, numbers, strict=True):
        assert clip.times.tolist() == [value // 25 + 15 / 16 for value in row]


def test_more_pictures_where_something_moves(tmp_path: Path) -> None:
    """Three quiet seconds, then three of noise: one picture each, then four and two, as the budget allows."""
    quiet, rng = np.full((48, 64, 3), 90, np.uint8), np.random.default_rng(0)
    noisy = [rng.integers(0, 2, (6, 8, 1), np.uint8).repeat(8, 0).repeat(8, 1).repeat(3, 2) * 200 for _ in range(24)]
    path = write_video(tmp_path / "a.mp4", [quiet] * 24 + noisy, 8)
    clip = read_clip(path, fps="auto")
    counts = np.bincount(clip.times.astype(int))
    assert counts.tolist() == [1, 1, 1, 4, 2, 2]
    assert clip.times[2:9].tolist() == [2.9375, 3.1875, 3.4375, 3.6875, 3.9375, 4.4375, 4.9375]
    plain = read_clip(path)
    places = [clip.times.tolist().index(time) for time in plain.times]
    assert [clip.frames[place] for place in places] == plain.frames
    parts = list(iter_clips(path, 2, "auto"))
    assert np.concatenate([part.times for part in parts]).tolist() == clip.times.tolist()


def test_start_after_the_end(film: Path) -> None:
    with pytest.raises(MediaError, match=r"^film.mp4: ends at 3.00 s, before the wanted start at 7.00 s"):
        next(iter_clips(film, start=7))


def test_first_window_comes_before_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(300), 10)
    converted: list[int] = []
    image = media_combo_tracks.PictureTrack.image
    monkeypatch.setattr(
        media_combo_tracks.PictureTrack, "image", lambda self, frame: converted.append(1) or image(self, frame)
    )
    clips = iter_clips(path, frames_per_clip=2)
    next(clips)
    assert len(converted) == 3  # two, and one more to know that the window is not the last
    assert sum(1 for _ in clips) == 14 and len(converted) == 30


def test_sound_stays_where_it_was(film: Path, tmp_path: Path) -> None:
    heard = read_clip(film).waveform
    assert np.corrcoef(heard, noise(3))[0, 1] > 0.98
    late = read_clip(remux(film, tmp_path / "late.mp4", sound_delay=0.5)).waveform
    assert not late[: SAMPLING_RATE * 2 // 5].any()
    assert np.abs(late[9600:] - heard[1600 : 1600 + len(late) - 9600]).max() < 1e-4


def test_missing_sound_in_the_middle_is_silence(film: Path, tmp_path: Path) -> None:
    heard = read_clip(film).waveform
    gap = read_clip(remux(film, tmp_path / "gap.mkv", silent=(1.0, 2.0))).waveform
    second = SAMPLING_RATE
    assert not gap[round(1.2 * second) : round(1.9 * second)].any()
    delays = [gap[round(2.2 * second) + k : round(2.8 * second) + k] for k in range(-40, 41)]
    match = [np.corrcoef(part, heard[round(2.2 * second) : round(2.8 * second)])[0, 1] for part in delays]
    assert max(match) > 0.98 and abs(int(np.argmax(match)) - 40) <= SAMPLING_RATE // 1000  # Matroska has ticks of 1 ms


def test_film_without_sound_is_silent(tmp_path: Path) -> None:
    clip = read_clip(write_video(tmp_path / "a.mp4", numbered(20), 10))
    assert not clip.has_audio and clip.waveform.shape == (2 * SAMPLING_RATE,) and not clip.waveform.any()


def test_damaged_packets_are_skipped(film: Path, tmp_path: Path) -> None:
    clip = read_clip(damage(film, tmp_path / "hurt.mp4", range(30, 40)))
    assert len(clip.frames) == 3 and clip.waveform.shape == (3 * SAMPLING_RATE,)
    assert number(clip.frames[0]) == 23 and clip.warnings == ["damaged packets skipped in the video: 10."]


def test_no_picture_decodes(film: Path, tmp_path: Path) -> None:
    path = damage(film, tmp_path / "dead.mp4", range(75))
    for read in (probe_media, read_clip):
        with pytest.raises(MediaError, match=r"^dead.mp4: no picture can be decoded.$"):
            read(path)


@pytest.mark.parametrize("channels", [1, 2, 6, 8, 12])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_channels_are_averaged(tmp_path: Path, channels: int, rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    gains = np.linspace(0.2, 0.6, channels)
    soundfile.write(tmp_path / "a.wav", tone[:, None] * gains, rate, subtype="FLOAT")
    waveform, out = load_audio(tmp_path / "a.wav")
    expected = gains.mean() * np.sin(2 * np.pi * 440 * np.arange(SAMPLING_RATE) / SAMPLING_RATE)
    assert out == SAMPLING_RATE and waveform.shape == (SAMPLING_RATE,) and waveform.dtype == np.float32
    assert np.abs(waveform - expected)[200:-200].max() < 2e-3


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3"])
def test_kinds_of_sound(tmp_path: Path, ending: str) -> None:
    soundfile.write(tmp_path / f"a.{ending}", noise(2), SAMPLING_RATE)
    waveform, _ = load_audio(tmp_path / f"a.{ending}")
    assert (
        abs(len(waveform) - 2 * SAMPLING_RATE) <= 1152 and np.corrcoef(waveform[:30000], noise(2)[:30000])[0, 1] > 0.98
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    samples = noise(2)
    samples[24000] = value
    soundfile.write(tmp_path / "a.wav", samples, SAMPLING_RATE, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"^a.wav: the sound has NaN or infinite samples at 1.\d s"):
        load_audio(tmp_path / "a.wav")


def test_loud_samples_are_kept(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1) * 400, SAMPLING_RATE, subtype="FLOAT")
    assert np.allclose(load_audio(tmp_path / "a.wav")[0], noise(1) * 400, rtol=1e-6)
