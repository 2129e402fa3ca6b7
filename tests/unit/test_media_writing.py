"""Overlays and films written: what changes, what stays, what is left of a failure."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fixtures_media import encode, maps, noise, numbered, pictures
from PIL import Image

from combo_hf.media_combo import (
    FRAME_OFFSET,
    SAMPLING_RATE,
    load_audio,
    probe_media,
)
from combo_hf.results.video import write_overlay_video, write_video


def test_overlay_paints_the_segment_and_nothing_else(film: Path, tmp_path: Path) -> None:
    colors = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [200, 40, 40]], np.uint8)
    done: list[tuple[int, int | None]] = []
    path = write_overlay_video(
        film, tmp_path / "out.mp4", maps(film), colors, alpha=0.25, progress=lambda *state: done.append(state)
    )
    assert path == tmp_path / "out.mp4" and [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]
    assert done == [(index, 75) for index in range(1, 76)]
    for before, after in zip(pictures(film), pictures(path), strict=True):
        assert np.abs(before[:, 40:] - after[:, 40:]).mean() < 3
        expected = before[:, 8:24] * 0.75 + colors[3] * 0.25
        assert np.abs(expected - after[:, 8:24]).mean() < 6
    assert np.array_equal(load_audio(film)[0], load_audio(path)[0])


@pytest.mark.parametrize(
    ("slots", "fps", "expected"),
    [
        ([0, 1, 2], 1, [0] * 10 + [1] * 10 + [2] * 10),
        ([0], 1, [0] * 30),  # the last map stays
        ([1], 1, [None] * 10 + [1] * 20),  # nothing before the first
        ([0, 2], 1, [0] * 20 + [2] * 10),
        ([0, 1, 2, 3, 4, 5], 2, [k // 5 for k in range(30)]),
        ([], 1, [None] * 30),
    ],
)
def test_which_map_a_picture_takes(tmp_path: Path, slots: list[int], fps: int, expected: list[int | None]) -> None:
    film = write_video(tmp_path / "grey.mp4", [np.full((48, 64, 3), 128, np.uint8)] * 30, 10)
    colors = np.array([[0, 0, 0], *([20 + 40 * k] * 3 for k in range(6))], np.uint8)
    labels = (((slot + FRAME_OFFSET) / fps, np.full((48, 64), slot + 1, np.uint8)) for slot in slots)
    path = write_overlay_video(film, tmp_path / "out.mp4", labels, colors, fps=fps, alpha=1.0)
    found = [picture.mean() for picture in pictures(path)]
    assert found == pytest.approx([128 if slot is None else 20 + 40 * slot for slot in expected], abs=4)


def test_maps_are_read_when_the_film_gets_there(film: Path, tmp_path: Path) -> None:
    taken: list[int] = []
    state: list[tuple[int, int]] = []

    def spy() -> Iterator[tuple[float, np.ndarray]]:
        for index, item in enumerate(maps(film)):
            taken.append(index)
            yield item

    write_overlay_video(film, tmp_path / "out.mp4", spy(), progress=lambda done, _: state.append((done, len(taken))))
    assert state[0] == (1, 1) and state[24] == (25, 1) and state[25] == (26, 2) and state[50] == (51, 3)


def test_overlay_keeps_uneven_times(tmp_path: Path) -> None:
    times = [0, 200, 240, 900, 930, 1700, 1720]
    film = encode(tmp_path / "a.mp4", times)
    path = write_overlay_video(film, tmp_path / "out.mp4", maps(film))
    with av.open(str(path)) as output:
        assert [round(1000 * frame.time) for frame in output.decode(video=0)] == times


@pytest.mark.parametrize("size", [(65, 48), (64, 47), (33, 31), (1, 1)])
def test_odd_sizes_are_padded(tmp_path: Path, size: tuple[int, int]) -> None:
    film = tmp_path / "a.gif"
    frames = [Image.new("RGB", size, (k, 90, 160)) for k in (10, 200)]
    frames[0].save(film, save_all=True, append_images=frames[1:], duration=500)
    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    path = write_overlay_video(film, tmp_path / "out.mp4", [(0.9, np.zeros(size[::-1], np.uint8))])
    info = probe_media(path)
    assert (info.width, info.height, info.num_frames) == (*even, 2)
    assert np.abs(pictures(path)[1] - (200, 90, 160)).max() < 12


@pytest.mark.parametrize("codec", ["pcm_s16le", "flac"])
def test_sound_mp4_does_not_hold_is_encoded(film: Path, tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output, av.open(str(film)) as source:
        stream = output.add_stream_from_template(source.streams.video[0])
        sound = output.add_stream(codec, rate=SAMPLING_RATE, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
        samples = (noise(3)[None] * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLING_RATE, 0, Fraction(1, SAMPLING_RATE)
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    waveform, _ = load_audio(write_overlay_video(path, tmp_path / "out.mp4", maps(film)))
    assert np.corrcoef(waveform[:47000], noise(3)[:47000])[0, 1] > 0.98


def _interrupted(film: Path) -> Iterator[tuple[float, np.ndarray]]:
    yield next(maps(film))
    raise KeyboardInterrupt("stop")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            lambda film: [(0.9, np.zeros((48, 63), np.uint8))],
            ValueError,
            r"must be \(48, 64\) integers, .* got \(48, 63",
        ),
        (lambda film: [(0.9, np.zeros((48, 64)))], ValueError, "got .* float64"),
        (lambda film: [(0.9, np.full((48, 64), 300))], ValueError, "class 300 to 300, but there are 256 colours"),
        (lambda film: [(0.9, np.full((48, 64), -1))], ValueError, "class -1"),
        (_interrupted, KeyboardInterrupt, "stop"),
    ],
)
@pytest.mark.parametrize("earlier", [None, b"an earlier film"])
def test_nothing_is_left_of_a_failure(
    film: Path, tmp_path: Path, labels: object, error: type[BaseException], message: str, earlier: bytes | None
) -> None:
    path = tmp_path / "out.mp4"
    if earlier:
        path.write_bytes(earlier)
    with pytest.raises(error, match=message):
        write_overlay_video(film, path, labels(film))
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([earlier] if earlier else [])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("out.avi", {}, r"out.avi: videos are written as mp4; use a name that ends in .mp4"),
        ("nowhere/out.mp4", {}, "the folder 'nowhere' does not exist; create it"),
        ("out.mp4", {"alpha": 1.5}, "alpha must lie in 0..1"),
        ("out.mp4", {"fps": 0}, "fps above 0"),
        ("out.mp4", {"colors": np.zeros((4, 3))}, r"colors must be \(K, 3\) uint8"),
    ],
)
def test_impossible_overlay(film: Path, tmp_path: Path, name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_overlay_video(film, tmp_path / name, [], **arguments)
    assert not list(tmp_path.iterdir())


def test_overlay_does_not_replace_its_film(film: Path) -> None:
    before = film.read_bytes()
    with pytest.raises(ValueError, match="film.mp4 is the video itself"):
        write_overlay_video(film, os.path.join(film.parent, ".", film.name), [])
    assert film.read_bytes() == before


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        ([], {}, "frames is empty"),
        ([np.zeros((8, 8), np.uint8)], {}, r"frames\[0\] must be \(H, W, 3\) uint8"),
        ([np.zeros((8, 8, 3))], {}, "got .* float64"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], {}, r"frames\[1\] must be"),
        ([np.zeros((8, 8, 3), np.uint8)], {"fps": 0}, "fps must be above 0"),
        ([np.zeros((8, 8, 3), np.uint8)], {"waveform": np.zeros((2, 9))}, r"of shape \(N,\), got \(2, 9\)"),
        ([np.zeros((8, 8, 3), np.uint8)], {"waveform": np.full(9, np.nan)}, "finite float samples"),
        ([np.zeros((8, 8, 3), np.uint8)], {"waveform": np.zeros(9), "sampling_rate": 7}, "sampling_rate must be one"),
    ],
)
def test_impossible_film(tmp_path: Path, frames: list[np.ndarray], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, **{"fps": 10, **arguments})
    assert not list(tmp_path.iterdir())


def test_written_film_starts_with_its_index(tmp_path: Path) -> None:
    """A browser can then play it while it loads."""
    path = write_video(tmp_path / "a.mp4", (Image.fromarray(picture) for picture in numbered(20)), 29.97, noise(1))
    data = io.BytesIO(path.read_bytes()).getvalue()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert probe_media(path).fps == pytest.approx(29.97, abs=0.01)
