"""Videos with an alpha channel and masks of every picture, opened again by PyAV and Pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from combo_hf.media_combo import MediaError
from combo_hf.results.folder import predict_to_folder
from combo_hf.results.mattes import FORMATS, Matte
from combo_hf.results.video import write_overlay_video


RATE, SECONDS = 10, 3


@pytest.fixture(scope="module", params=[(96, 64), (75, 41)], ids=str)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A video of even and one of odd size, and a label map for each of its seconds: 1, nothing, 1 and 2."""
    width, height = request.param
    shades = np.linspace(40, 200, width).astype(np.uint8)
    pictures = [np.repeat(np.tile(np.roll(shades, k), (height, 1))[..., None], 3, 2) for k in range(RATE * SECONDS)]
    maps = np.zeros((SECONDS, height, width), np.uint8)
    maps[::2, 4 : height // 2, 6:31], maps[2, 26:, 40:] = 1, 2
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return path, list(maps)


def opened(path: Path) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Times, luma and alpha (T, H, W) from 0 to 1 of all pictures."""
    times, lumas, alphas = [], [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = stream.codec_context
        if path.suffix == ".webm":  # FFmpeg's own decoder of VP9 leaves the alpha channel out
            assert stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1"
            decoder = av.CodecContext.create("libvpx-vp9", "r")
        for packet in container.demux(stream):
            for frame in decoder.decode(packet if packet.size else None):
                assert "yuva" in frame.format.name
                bits = frame.format.components[0].bits
                dtype = np.uint8 if bits == 8 else np.uint16
                planes = [
                    np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width] / (2**bits - 1)
                    for plane in (frame.planes[0], frame.planes[3])
                ]
                times.append(float(frame.pts * stream.time_base))
                lumas.append(planes[0])
                alphas.append(planes[1])
    return times, np.array(lumas), np.array(alphas)


def made(video: tuple[Path, list[np.ndarray]], matte: Matte, folder: Path) -> list[np.ndarray]:
    """Write a matte beside an overlay; returns the mask of every picture."""
    path, maps = video
    with matte:
        write_overlay_video(
            path, folder / "o.mp4", [(k + 15 / 16, entry) for k, entry in enumerate(maps)], sinks=[matte]
        )
    return [maps[k // RATE] for k in range(RATE * SECONDS)]


@pytest.mark.parametrize("kind", FORMATS)
def test_alpha_is_the_mask(video: tuple[Path, list[np.ndarray]], tmp_path: Path, kind: str) -> None:
    wanted = np.array(made(video, Matte(tmp_path / f"a.{kind}", kind), tmp_path)) > 0
    times, luma, alpha = opened(tmp_path / f"a.{kind}")
    height, width = wanted.shape[1:]
    assert times == pytest.approx([k / RATE for k in range(RATE * SECONDS)], abs=0.002)
    alpha, luma = alpha[:, :height, :width], luma[:, :height, :width]
    if kind == "mov":
        assert np.array_equal(alpha, wanted.astype(float))  # ProRes keeps alpha as it is
    assert ((alpha > 0.5) == wanted).mean() > 0.999
    with av.open(str(video[0])) as container:
        source = np.array([frame.to_ndarray(format="gray8") for frame in container.decode(video=0)])[
            :, :height, :width
        ]
    # limited to full range
    assert np.abs((luma * 255 - 16) * 255 / 219 - source)[wanted].mean() < 4


def test_a_file_for_each_class(video: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    labels = {0: "background", 1: "bell/../x", 2: "bell:..:x"}
    maps = np.array(made(video, Matte(tmp_path / "each", "mov", labels), tmp_path))
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == ["bell_.._x.mov", "bell_.._x_2.mov"]
    for index, name in ((1, "bell_.._x.mov"), (2, "bell_.._x_2.mov")):
        times, _, alpha = opened(tmp_path / "each" / name)
        assert len(times) == RATE * SECONDS and times[0] == 0
        assert np.array_equal(alpha[:, : maps.shape[1], : maps.shape[2]] > 0, maps == index)


def test_in_a_folder_of_results(tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"masks": True, "mask_rate": "video", "matte": "webm"}
    files = predict_to_folder(tiny_pipe, film, tmp_path, "a", **options).files
    assert {path.name for path in tmp_path.iterdir()} == {"a_overlay.mp4", "a_masks", "a_matte.webm"}
    masks = sorted(files["masks"].iterdir())
    assert [path.name for path in masks[:2]] == ["000000_0.000s.png", "000001_0.040s.png"] and len(masks) == 75
    times, _, alpha = opened(files["webm"])
    assert len(times) == 75
    wanted = np.array([np.asarray(Image.open(path)) > 0 for path in masks])
    assert ((alpha > 0.5) == wanted).mean() > 0.99
    files = predict_to_folder(tiny_pipe, film, tmp_path, "a", summary=True, matte="mov", matte_each=True).files
    assert {path.name for path in tmp_path.iterdir()} == {"a_overlay.mp4", "a.json", "a_mattes"}
    found = {entry["label"] for entry in json.loads(files["json"].read_text())["stretches"]}
    assert {path.stem for path in files["mattes"].iterdir()} == found


def test_nothing_is_left_of_what_fails(tiny_pipe: Any, film: Path, tmp_path: Path) -> None:
    for each in (False, True):
        with pytest.raises(MediaError, match="is longer than 1 s"):
            predict_to_folder(tiny_pipe, film, tmp_path / "out", max_seconds=1, matte="mov", matte_each=each)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matte": "avi"}, "matte: wanted one of mov, webm, got 'avi'"),
        ({"matte_each": True}, "matte_each: say which kind of matte"),
        ({"masks": True, "mask_rate": "every"}, "mask_rate: wanted one of network, video, got 'every'"),
    ],
)
def test_what_is_refused(tiny_pipe: Any, film: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict_to_folder(tiny_pipe, film, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="a matte is one of mov, webm, got 'avi'"):
        Matte(tmp_path / "a.avi", "avi")
    assert not list(tmp_path.iterdir())
