"""Grids and comparison films."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from combo_hf.media_combo import read_clip
from combo_hf.results.figures import clip_result, comparison_video, grid, marked


def flat(color, size=(40, 30)):
    return Image.new("RGB", size, color)


def test_grid_places_pictures_in_order():
    figure = np.asarray(
        grid([("a", [flat("red"), flat("lime")]), ("b", [flat("blue"), flat("white")])], tile=40, left=50)
    )
    assert figure.shape == (6 + 2 * 36, 50 + 2 * 46, 3)
    centres = [figure[6 + 15 + 36 * row, 50 + 20 + 46 * column].tolist() for row in range(2) for column in range(2)]
    assert centres == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize(
    ("rows", "captions"),
    [([], ()), ([("a", [])], ()), ([("a", [flat("red")]), ("b", [])], ()), ([("a", [flat("red")])], ("x", "y"))],
)
def test_grid_refuses(rows, captions):
    with pytest.raises(ValueError, match="wanted rows"):
        grid(rows, captions)


def test_marked_resizes_the_map_and_leaves_out_ignored_pixels():
    label_map = np.zeros((15, 20), np.uint8)
    label_map[:, :10], label_map[:, 15:] = 1, 255
    picture = np.asarray(marked(flat((90, 90, 90)), label_map, 2)).astype(int)
    assert (picture[:, 20:] == 90).all() and (picture[:, :20] != 90).any(-1).all()


def test_comparison_video(tmp_path):
    columns = {"one": [flat("red"), flat("blue")], "two": [flat("black"), flat("white")]}
    sound = np.sin(np.arange(40000) / 10).astype(np.float32)
    clip = read_clip(comparison_video(tmp_path / "film.mp4", columns, sound))
    assert len(clip.frames) == 2 and clip.has_audio and np.abs(clip.waveform).max() > 0.5
    first, second = (np.asarray(frame).astype(int) for frame in clip.frames)
    middle = (first.shape[0] + 26) // 2
    assert first[middle, 120, 0] > 200 and second[middle, 120, 2] > 200 and second[middle, 360].min() > 200
    with pytest.raises(ValueError, match="one length"):
        comparison_video(tmp_path / "no.mp4", {"a": [flat("red")], "b": []}, sound)
    assert not (tmp_path / "no.mp4").exists()


def test_silence_takes_the_place_of_the_sound():
    heard = []

    def pipe(inputs, return_maps):
        heard.append(inputs["audio"])
        return {"frames": [1]}

    clip = SimpleNamespace(frames=[flat("red")], waveform=np.ones(4, np.float32), sampling_rate=16000)
    assert clip_result(pipe, clip) == clip_result(pipe, clip, silent=True) == [1]
    assert heard[0].all() and not heard[1].any()
