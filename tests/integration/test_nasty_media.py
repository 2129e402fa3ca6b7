"""Every awkward media file of the sample: the right result, or one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from combo_hf.media_combo import SAMPLING_RATE, MediaError, iter_clips, load_audio, probe_media, read_clip
from combo_hf.results.video import write_overlay_video


# name: (pictures, size as shown, seconds, has sound)
FILMS = {
    "ok_5s_320x240_25fps.mp4": (125, (320, 240), 5, True),
    "no_audio_track.mp4": (125, (320, 240), 5, False),
    "one_frame.mp4": (1, (320, 240), 1, True),
    "variable_frame_rate.mp4": (60, (320, 240), 5, True),
    "odd_size_321x187.mp4": (50, (321, 187), 2, True),
    "portrait_240x426.mp4": (50, (240, 426), 2, True),
    "rotated_90_metadata.mp4": (125, (240, 320), 5, True),
    "eight_channels_48k.mp4": (50, (320, 240), 2, True),
    "long_60s_160x120_10fps.mp4": (600, (160, 120), 60, True),
    "hi_fps_60.mp4": (120, (320, 240), 2, True),
    "low_fps_1.mp4": (5, (320, 240), 5, True),
    "sound_shorter_than_film.mp4": (125, (320, 240), 5, True),
    "sound_longer_than_film.mp4": (50, (320, 240), 2, True),
    "vp9_opus.webm": (50, (320, 240), 2, True),
    "mjpeg_mp3.mkv": (25, (320, 240), 1, True),
    "name with spaces, ümläut and 音.mp4": (125, (320, 240), 5, False),
    "animated.gif": (7, (120, 90), 6, False),
}
UNREADABLE = "cannot be read as a video"
BROKEN = {
    "zero_bytes.mp4": "empty",
    "truncated_moov_lost.mp4": UNREADABLE,
    "text_named.mp4": UNREADABLE,
    "audio_only.mp4": "has no pictures",
    "zero_bytes.wav": "empty",
    "alpha.png": UNREADABLE,
    "bomb_header_only.png": UNREADABLE,
}
# name: seconds of sound
SOUNDS = {
    "mono_8k_u8.wav": 5.0,
    "eight_channels_48k.wav": 0.5,
    "silence_5s.wav": 5.0,
    "too_short_0.1s.wav": 0.1,
    "short_4.7s.wav": 4.7,
    "dc_full_scale.wav": 1.0,
    "loud_float_x40.wav": 2.0,
    "stereo_44k1_24bit.wav": 2.0,
    "header_lies.wav": 4.7,
    "audio_only.mp4": 5.0,
}
BROKEN_SOUNDS = {
    "zero_bytes.wav": "empty",
    "no_samples.wav": "no samples",
    "nan_float.wav": "NaN or infinite",
    "inf_float.wav": "NaN or infinite",
    "no_audio_track.mp4": "no sound track",
    "text_named.mp4": UNREADABLE,
}


@pytest.fixture(scope="module")
def nasty(avs_sample: Path) -> Path:
    return avs_sample / "nasty"


def _painted(film: Path, folder: Path) -> Path:
    clip = read_clip(film)
    width, height = clip.frames[0].size
    maps = [(time, np.full((height, width), 3, np.uint8)) for time in clip.times]
    return write_overlay_video(film, folder / "out.mp4", maps)


def test_every_media_file_is_in_a_table(nasty: Path) -> None:
    known = {*FILMS, *BROKEN, *SOUNDS, *BROKEN_SOUNDS, "truncated_faststart.mp4"}
    expected = json.loads((nasty / "EXPECTED.json").read_text())
    media = {name for name in expected if name.endswith((".mp4", ".webm", ".mkv", ".gif", ".wav"))}
    assert media - known == set()
    stated = {name: fact["frames"] for name, fact in expected.items() if "frames" in fact}
    assert stated == {name: FILMS[name][0] for name in stated}


@pytest.mark.parametrize("name", FILMS)
def test_film(nasty: Path, name: str) -> None:
    frames, size, seconds, has_audio = FILMS[name]
    info, clip = probe_media(nasty / name), read_clip(nasty / name)
    assert (info.num_frames, (info.width, info.height), info.seconds, info.has_audio) == FILMS[name]
    assert info.name == name and info.warnings == clip.warnings == []
    assert len(clip.frames) == seconds and {frame.size for frame in clip.frames} == {size}
    assert clip.waveform.shape == (seconds * SAMPLING_RATE,) and clip.waveform.dtype == np.float32
    assert clip.has_audio is has_audio and bool(clip.waveform.any()) is has_audio


@pytest.mark.parametrize("name", FILMS)
def test_windows_of_a_film_are_the_film(nasty: Path, name: str) -> None:
    whole, windows = read_clip(nasty / name), list(iter_clips(nasty / name, frames_per_clip=2))
    assert np.array_equal(np.concatenate([window.waveform for window in windows]), whole.waveform)
    assert np.array_equal(np.concatenate([window.times for window in windows]), whole.times)
    parts = [frame for window in windows for frame in window.frames]
    assert [part.tobytes() for part in parts] == [frame.tobytes() for frame in whole.frames]
    assert [window.is_last for window in windows] == [False] * (len(windows) - 1) + [True]


@pytest.mark.parametrize("name", FILMS)
def test_overlay_keeps_pictures_times_and_sound(nasty: Path, tmp_path: Path, name: str) -> None:
    before, after = probe_media(nasty / name), probe_media(_painted(nasty / name, tmp_path))
    assert (after.width, after.height) == (before.width + before.width % 2, before.height + before.height % 2)
    assert after.num_frames == before.num_frames
    assert after.duration == pytest.approx(before.duration, abs=2e-3)
    assert after.has_audio is before.has_audio
    if before.has_audio:
        (old, _), (new, _) = load_audio(nasty / name), load_audio(tmp_path / "out.mp4")
        length = min(len(old), len(new)) - SAMPLING_RATE // 20  # the ends differ by codec padding
        if length > SAMPLING_RATE // 4:
            # 0.1 ms apart would be 0.8 here: Matroska's ticks of 1 ms move the copy by 0.05 ms, others agree exactly
            assert np.corrcoef(old[:length], new[:length])[0, 1] > 0.95


@pytest.mark.parametrize(("name", "reason"), BROKEN.items())
def test_not_a_film(nasty: Path, tmp_path: Path, name: str, reason: str) -> None:
    def overlay(path: Path) -> None:
        write_overlay_video(path, tmp_path / "out.mp4", [])

    for read in (probe_media, read_clip, overlay):
        with pytest.raises(MediaError, match=f"^{name}: .*{reason}") as caught:
            read(nasty / name)
        assert "\n" not in str(caught.value) and str(nasty) not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "seconds"), SOUNDS.items())
def test_sound(nasty: Path, name: str, seconds: float) -> None:
    waveform, rate = load_audio(nasty / name)
    padding = 1024 / 44100 if name.endswith("mp4") else 1e-4  # AAC comes in frames of 1024
    assert rate == SAMPLING_RATE and waveform.ndim == 1 and waveform.dtype == np.float32
    assert len(waveform) / rate == pytest.approx(seconds, abs=padding)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("silence_5s.wav", 0.0, 0.0),
        ("stereo_44k1_24bit.wav", 0.0, 1e-6),  # right = -left
        ("dc_full_scale.wav", 0.999, 1.0),
        ("loud_float_x40.wav", 20.0, 40.0),
    ],
)
def test_level_of_a_sound(nasty: Path, name: str, low: float, high: float) -> None:
    assert low <= np.abs(load_audio(nasty / name)[0]).max() <= high


@pytest.mark.parametrize(("name", "reason"), BROKEN_SOUNDS.items())
def test_not_a_sound(nasty: Path, name: str, reason: str) -> None:
    with pytest.raises(MediaError, match=f"^{name}: .*{reason}"):
        load_audio(nasty / name)


def test_film_cut_short_gives_what_is_there(nasty: Path, tmp_path: Path) -> None:
    clip = read_clip(nasty / "truncated_faststart.mp4")
    assert len(clip.frames) == 2 and clip.waveform.any()
    assert any("breaks off at 2.28 s" in note for note in clip.warnings)
    assert any("breaks off" in note for note in probe_media(nasty / "truncated_faststart.mp4").warnings)
    assert probe_media(_painted(nasty / "truncated_faststart.mp4", tmp_path)).num_frames == 57


def test_sound_shorter_than_the_film_ends_in_silence(nasty: Path) -> None:
    waveform = read_clip(nasty / "sound_shorter_than_film.mp4").waveform
    assert waveform[SAMPLING_RATE : SAMPLING_RATE * 3 // 2].any() and not waveform[SAMPLING_RATE * 8 // 5 :].any()


def test_uneven_times_choose_by_time_stamp(nasty: Path) -> None:
    name = "variable_frame_rate.mp4"
    stamps = json.loads((nasty / "EXPECTED.json").read_text())[name]["pts_ms"]
    wanted = [max(i for i, stamp in enumerate(stamps) if stamp <= 1000 * second + 937.5) for second in range(5)]
    with av.open(str(nasty / name)) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    clip = read_clip(nasty / name)
    assert [np.array_equal(np.asarray(shown), frames[i]) for shown, i in zip(clip.frames, wanted, strict=True)] == [
        True
    ] * 5


def test_rotated_film_stands_upright(nasty: Path) -> None:
    """Coded like the plain film; the display matrix turns it clockwise."""
    plain, turned = (read_clip(nasty / name).frames[0] for name in ("no_audio_track.mp4", "rotated_90_metadata.mp4"))
    expected = np.rot90(np.asarray(plain).astype(int), -1)
    assert np.abs(np.asarray(turned) - expected).mean() < 8 < np.abs(np.asarray(turned) - np.rot90(expected, 2)).mean()


def test_frames_of_the_sample_films(avs_sample: Path) -> None:
    for film in json.loads((avs_sample / "videos" / "videos.json").read_text()):
        path = avs_sample / "videos" / film["file"]
        clip = read_clip(path)
        with av.open(str(path)) as container:
            shown = {i: f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0))}
        for frame, index in zip(clip.frames, film["frames"], strict=True):
            assert np.array_equal(np.asarray(frame), shown[index]), (film["file"], index)
        assert clip.waveform.shape == (film["secs"] * SAMPLING_RATE,)
