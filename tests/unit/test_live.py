"""Pictures and sound pushed as they come give what the pipeline gives for the file, within the stated delay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import combo_hf
from combo_hf.media_combo import load_audio
from combo_hf.media_combo_source import choose_tracks, open_media
from combo_hf.media_combo_tracks import picture_track


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "live.py"


def play(live: combo_hf.LiveSegmenter, film: Path, chunk: float = 0.1) -> list[tuple[float, dict[str, Any]]]:
    """Push a file in the order of time; (time of the push, frame) of all results."""
    found: list[tuple[float, dict[str, Any]]] = []
    sound, rate = load_audio(film)
    with open_media(film) as media, media.open() as container:
        pushed, track = 0, picture_track(media, container, choose_tracks(media))
        for now, frame in track:
            while pushed < len(sound) and pushed / rate < now:
                part = sound[pushed : pushed + int(chunk * rate)]
                pushed += len(part)
                found += [(pushed / rate, entry) for entry in live.push_sound(part)]
            found += [(now, entry) for entry in live.push_picture(now, track.image(frame))]
        found += [(track.end, entry) for entry in live.push_sound(sound[pushed:])]
    return found + [(track.end, entry) for entry in live.close()]


@pytest.mark.parametrize("fps", [1, 2])
@pytest.mark.parametrize("layout", ["per_frame", "official"])
def test_live_results_are_those_of_the_file(
    tiny_pipe: Any, film: Path, fps: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_pipe.model.config, "audio_query_layout", layout)
    wanted = tiny_pipe(str(film), fps=fps, return_maps=True)["frames"]
    live = combo_hf.LiveSegmenter(tiny_pipe, fps, return_maps=True)
    assert live.delay == (1 if layout == "per_frame" else tiny_pipe.model.config.num_frames)
    found = play(live, film)
    assert [frame["timestamp"] for _, frame in found] == [frame["timestamp"] for frame in wanted]
    for (now, frame), same in zip(found, wanted, strict=True):
        np.testing.assert_allclose(frame["scores"], same["scores"], atol=1e-5)
        assert (frame["label_map"] != same["label_map"]).mean() < 0.001  # ties may turn
        assert now - frame["timestamp"] <= live.delay + 0.15  # the sound comes in pieces of 0.1 s


def blind(clip: Any, **options: Any) -> dict[str, Any]:
    return {"frames": [{"timestamp": time} for time in clip.times]}


def test_memory_is_flat_and_pictures_count_to_the_end() -> None:
    config = SimpleNamespace(audio_query_layout="per_frame", num_frames=5)
    blind.model = SimpleNamespace(config=config)  # type: ignore[attr-defined]
    live, frames = combo_hf.LiveSegmenter(blind, 2, 8000), []  # type: ignore[arg-type]
    for k in range(12 * 600 + 8):
        frames += live.push_sound(np.zeros(8000 // 12, np.float32))
        frames += live.push_picture(k / 12, np.zeros((4, 4, 3), np.uint8))
        assert len(live._taken) <= 4 and len(live._sound) <= 6 * 8000
    frames += live.close()
    times = [frame["timestamp"] for frame in frames]
    assert times == [(k + 15 / 16) / 2 for k in range(1202)]  # two thirds of a second count as one


@pytest.mark.parametrize(
    ("push", "message"),
    [
        (lambda live: [live.push_picture(0, np.zeros((4, 4, 3), np.uint8))] * 2 and live.push_picture(0, 0), "time: "),
        (lambda live: live.push_picture(0, "a.png"), "picture"),
        (lambda live: live.push_sound(np.full(9, np.nan)), "NaN"),
        (lambda live: live.push_sound(np.zeros(16000 * 16)), "the sound is 10 s ahead of the pictures"),
        (
            lambda live: [live.push_picture(k, np.zeros((4, 4, 3), np.uint8)) for k in range(20)],
            "the pictures are 10 s ahead of the sound; push it, or say has_audio=False",
        ),
        (lambda live: combo_hf.LiveSegmenter(live._pipe, 0.5), "a whole number of frames per second"),
    ],
    ids=range(6),
)
def test_what_cannot_be_pushed(tiny_pipe: Any, push: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        push(combo_hf.LiveSegmenter(tiny_pipe))


def test_without_anything(tiny_pipe: Any) -> None:
    assert combo_hf.LiveSegmenter(tiny_pipe).close() == []


def test_the_example_reads_a_pipe(film: Path, tiny_folder: str) -> None:
    command = [sys.executable, str(EXAMPLE), "-", "--model", tiny_folder, "--fast"]
    with open(film, "rb") as source:
        done = subprocess.run(command, stdin=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.startswith("a result comes at most 1 s after its picture")
    assert [line.partition(" s, told at ")[0] for line in lines] == ["0.94", "1.94", "2.94"]
