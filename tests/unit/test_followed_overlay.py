"""Overlays of videos in which something moves: the colour lies on the thing in every picture."""

from pathlib import Path

import av
import numpy as np
import pytest
from test_follow import overlap, scene

from combo_hf.results import moments
from combo_hf.results.lettering import write_labels
from combo_hf.results.video import write_overlay_video, write_video


RATE, SECONDS = 10, 3
COLOURS = np.array([[0, 0, 0], [0, 255, 0]], np.uint8)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A video of a disc that crosses the picture, and where the disc is in each picture."""
    pictures, masks = map(list, zip(*[scene(60 + 6 * k) for k in range(RATE * SECONDS)], strict=True))
    grey = [np.repeat(picture.mean(2, keepdims=True), 3, 2).astype(np.uint8) for picture in pictures]
    return write_video(tmp_path_factory.mktemp("moving") / "disc.mp4", grey, RATE), masks


def painted(path: Path) -> list[np.ndarray]:
    """Where each picture of a grey video is green."""
    with av.open(str(path)) as video:
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
    return [picture[..., 1] > picture[..., 0] + 60 for picture in pictures]


@pytest.mark.parametrize(("follow", "least", "most"), [(False, 0.2, 0.6), (True, 0.75, 1.0)])
def test_the_colour_lies_on_what_moves(moving, tmp_path: Path, follow: bool, least: float, most: float) -> None:
    video, masks = moving
    maps = [(second + 15 / 16, masks[int((second + 15 / 16) * RATE)]) for second in range(SECONDS)]
    path = write_overlay_video(video, tmp_path / "out.mp4", maps, COLOURS, alpha=1.0, follow=follow)
    found = painted(path)
    assert len(found) == len(masks)
    assert least < np.mean([overlap(*pair) for pair in zip(found, masks, strict=True)]) <= most


def test_names_stay_on_their_object_and_do_not_jump() -> None:
    """A region of two wide parts, of which one is two pixels wider in the next picture, as outlines flicker."""
    places = []
    for width in (44, 46):
        label_map = np.zeros((120, 160), np.uint8)
        label_map[20:30, 40:90] = label_map[20:80, 60:70] = label_map[70:80, 40 : 40 + width] = 1
        (box, _, _), *_ = write_labels(label_map, {1: "a"}, COLOURS)
        middle = [(side.start + side.stop) // 2 for side in box]
        assert label_map[middle[0] - 2 : middle[0] + 3, middle[1] - 2 : middle[1] + 3].any()
        places.append(middle)
    assert np.abs(np.subtract(*places)).max() <= 2


class Noted:
    """A sink that keeps the label maps, and where the pictures are bright."""

    def __init__(self) -> None:
        self.written: list[tuple[int, np.ndarray, np.ndarray]] = []

    def open(self, track: object, zero: object) -> None:
        pass

    def write(self, frame: av.VideoFrame, label_map: np.ndarray, ticks: int) -> None:
        self.written.append((ticks, label_map, frame.to_ndarray(format="gray")))

    def finish(self, ticks: int) -> None:
        pass


def test_pictures_that_wait_are_kept_within_limits(moving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is painted does not depend on how many decoded pictures may wait; beyond that the video is decoded anew."""
    video, masks = moving
    maps = [(second + 15 / 16, masks[int((second + 15 / 16) * RATE)]) for second in range(SECONDS)]
    decoded, once_more = [], moments.picture_track
    monkeypatch.setattr(moments, "picture_track", lambda *given: decoded.append(1) or once_more(*given))
    runs = []
    for most, times in ((1 << 27, 0), (4 * 320 * 180 * 3 // 2, 1), (0, 1)):
        monkeypatch.setattr(moments, "HELD_BYTES", most)
        decoded.clear()
        runs.append(Noted())
        write_overlay_video(video, tmp_path / "out.mp4", maps, COLOURS, follow=True, sinks=[runs[-1]])
        assert len(decoded) == times
    for run in runs[1:]:
        for wanted, got in zip(runs[0].written, run.written, strict=True):
            assert wanted[0] == got[0] and all(map(np.array_equal, wanted[1:], got[1:]))


def test_a_still_picture_changes_with_the_seconds(moving, tmp_path: Path) -> None:
    """Followed or not, a picture that is shown for seconds has the mask of each of them."""
    _, masks = moving
    still = write_video(tmp_path / "still.mp4", [np.full((180, 320, 3), 128, np.uint8)] * 2, 0.5)
    maps = [(second + 15 / 16, masks[0] if second % 2 else 0 * masks[0]) for second in range(4)]
    for follow in (False, True):
        path = write_overlay_video(still, tmp_path / "out.mp4", maps, COLOURS, alpha=1.0, follow=follow)
        assert [bool(mask.any()) for mask in painted(path)] == [False, True, False, True]
