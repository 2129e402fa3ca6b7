"""Ordinary videos that once came out wrong (`../shared/data/films`): pictures, sound, notes and overlay of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from combo_hf import cli
from combo_hf.media_combo import MediaError, iter_clips, probe_media
from combo_hf.results.video import write_overlay_video


# name: (seconds, size as shown, seconds in which there is a beep, a word of the only note)
FILMS = {
    "base.mp4": (4, (320, 192), 4, None),
    "sar_64_45.mp4": (2, (256, 144), 2, None),
    "matrix_hflip.mp4": (4, (320, 192), 4, None),
    "matrix_transpose.mp4": (4, (192, 320), 4, None),
    "ts_concat_restart.ts": (6, (320, 192), 6, "clock"),
    "ts_jump_20s.ts": (6, (320, 192), 6, "clock"),
    "film.wmv": (4, (320, 192), 4, None),
    "channel_switch.ts": (4, (160, 96), 4, "form of the sound changes"),
    "bars_rgb.mp4": (2, (320, 192), 0, None),
    "bars_untagged_720p.mp4": (2, (1280, 720), 0, None),
    "hdr10_hevc.mp4": (2, (320, 192), 2, "HDR"),
    "interlaced.mp4": (2, (320, 192), 0, "interlaced"),
    "two_sounds_default2.mkv": (4, (320, 192), 4, "2 sound tracks"),
    "preview_first.mp4": (4, (320, 192), 4, "2 video tracks"),
    "slides.mp4": (8, (160, 96), 8, None),
}
SHOWN_AT = 0.92  # s; the network's first picture is the one that is on the screen then


def beeps(waveform: np.ndarray) -> list[bool]:
    """For each second, whether it begins with sound and goes on in silence."""
    seconds = np.abs(waveform[: len(waveform) // 16000 * 16000]).reshape(-1, 16000)
    return [bool(second[1000:3000].max() > 0.05 and second[5000:15000].max() < 0.05) for second in seconds]


def read(path: Path) -> tuple[list[Image.Image], np.ndarray, np.ndarray, list[str]]:
    clips = list(iter_clips(path))
    frames = [frame for clip in clips for frame in clip.frames]
    times = np.concatenate([clip.times for clip in clips])
    return frames, times, np.concatenate([clip.waveform for clip in clips]), clips[-1].warnings


def empty(frames: list[Image.Image], times: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    return ((time, np.zeros(frames[0].size[::-1], np.uint8)) for time in times)


@pytest.mark.parametrize("name", FILMS)
def test_as_a_player_shows_it(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "data" / "films" / name
    seconds, size, sounding, note = FILMS[name]
    frames, times, waveform, notes = read(source)
    info = probe_media(source)
    assert (len(frames), frames[0].size) == (seconds, size) == (info.seconds, (info.width, info.height))
    assert sum(beeps(waveform)) == sounding
    assert not notes if note is None else len(notes) == 1 and note in notes[0]
    with np.load(source.parent / "shown.npz") as shown:
        if name in shown:
            expected = shown[name].astype(int)
            small = frames[0].resize((expected.shape[1], expected.shape[0]), Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(small) - expected).mean() < 11  # 7.5 for base.mp4: another scaler made it
    overlay = write_overlay_video(source, tmp_path / "overlay.mp4", empty(frames, times))
    painted, _, sound, _ = read(overlay)
    assert len(painted) == seconds and painted[0].size == size
    assert sum(beeps(sound)) == sounding
    differences = [
        np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() for a, b in zip(frames, painted, strict=True)
    ]
    assert max(differences) < 7


def test_slides_change_their_mask_while_they_are_shown(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "films" / "slides.mp4"
    labels = ((k + 15 / 16, np.full((96, 160), 1 + k % 2, np.uint8)) for k in range(8))
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    overlay = write_overlay_video(source, tmp_path / "overlay.mp4", labels, colors, alpha=1.0)
    with av.open(str(overlay)) as video:
        red = [np.asarray(frame.to_image()).mean((0, 1)).argmax() == 0 for frame in video.decode(video=0)]
    assert red == [True, False, True, False, True, False, True, False, False][: len(red)] and len(red) >= 8


def test_encrypted(shared: Path, tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = shared / "data" / "films" / "encrypted.mp4"
    with pytest.raises(MediaError, match="is encrypted"):
        read(source)
    code = cli.main(["predict", str(source), "--output", str(tmp_path / "out"), "--model", tiny_folder])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.count("\n") == 1 and "encrypted" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("options", "expected"), [([], "nothing"), (["--audio-track", "1"], "nothing")])
def test_notes_on_the_command_line(
    shared: Path, tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], expected: str
) -> None:
    """The choice of tracks is said in one line, unless it was the user's."""
    source = shared / "data" / "films" / "two_sounds_default2.mkv"
    code = cli.main(["predict", str(source), "--output", str(tmp_path), "--model", tiny_folder, *options])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.count("  note ") == (0 if options else 1)
    assert options or "number 2 is used" in out
