"""Figures out of clips and results: grids of labelled pictures, and videos that show several results side by side.

`examples/figures.py` draws the figures of the paper's appendix with them. Needs Pillow and numpy, PyAV for videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from combo_hf.media_combo_source import SAMPLING_RATE
from combo_hf.results.pictures import BACKGROUND, FAINT, INK, class_colors, heat_map, overlay_on_grey
from combo_hf.results.video import write_video


if TYPE_CHECKING:
    from combo_hf.pipeline_combo import AudioVisualSegmentationPipeline
    from combo_hf.results.folder import Prediction


class FramesAndSound(Protocol):
    """What [`clip_result`] reads of a clip."""

    frames: list[Image.Image]
    waveform: np.ndarray
    sampling_rate: int


GAP = 6
STILLS_RATE = 5  # pictures per second of a video of stills: players dislike less


def grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], captions: Sequence[str] = (), tile: int = 160, left: int = 130
) -> Image.Image:
    """Rows of pictures, a title before each row and a caption over each column.

    Args:
        rows: (title, pictures); all rows have the same number of pictures, a title may hold line breaks.
        captions: one per column, or none.
        tile: width of a picture in pixels; its height follows the first picture.
        left: width of the titles in pixels.

    Raises:
        ValueError: no pictures, rows of different lengths, or another number of captions.
    """
    lengths = {len(pictures) for _, pictures in rows}
    if len(lengths) != 1 or not min(lengths) or (captions and len(captions) not in lengths):
        raise ValueError(f"wanted rows of one length and a caption per picture, got {lengths} and {len(captions)}.")
    width, height = rows[0][1][0].size
    cell = (tile, max(1, round(tile * height / width)))
    columns, top = lengths.pop(), 26 if captions else GAP
    figure = Image.new("RGB", (left + columns * (tile + GAP), top + len(rows) * (cell[1] + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(figure)
    font = ImageFont.load_default(14)
    for column, caption in enumerate(captions):
        draw.text((left + column * (tile + GAP) + tile // 2, 6), caption, fill=FAINT, font=font, anchor="ma")
    for row, (title, pictures) in enumerate(rows):
        y = top + row * (cell[1] + GAP)
        draw.multiline_text((8, y + cell[1] // 2), title, fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            figure.paste(picture.convert("RGB").resize(cell), (left + column * (tile + GAP), y))
    return figure


def marked(frame: Image.Image, label_map: np.ndarray, num_labels: int) -> Image.Image:
    """The frame in grey, what sounds in the colour of its class. label_map: (H, W), of any size; 255 counts as 0."""
    picture = Image.fromarray(np.where(label_map == 255, 0, label_map).astype(np.uint8))
    resized = np.asarray(picture.resize(frame.size, Image.Resampling.NEAREST))
    return overlay_on_grey(frame, resized, class_colors(num_labels))


def comparison_video(
    path: str | Path, columns: Mapping[str, Sequence[Image.Image]], waveform: np.ndarray, seconds_per_frame: float = 1
) -> Path:
    """A video of several results side by side, with the sound of the clip.

    Args:
        path: mp4 to write.
        columns: title -> T pictures of one size.
        waveform: `(N,)` at 16 kHz; cut or followed by silence to the length of the pictures.
        seconds_per_frame: how long a picture is shown.

    Raises:
        ValueError: no pictures, or columns of different lengths.
    """
    lengths = {len(pictures) for pictures in columns.values()}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(f"wanted columns of one length, got {lengths or 'none'}.")
    count = lengths.pop()
    pictures = []
    for index in range(count):
        row = grid([("", [column[index] for column in columns.values()])], list(columns), tile=240, left=GAP)
        pictures.append(np.asarray(row.crop((0, 0, row.width // 2 * 2, row.height // 2 * 2))))
    repeats = max(1, round(STILLS_RATE * seconds_per_frame))
    wanted = round(count * seconds_per_frame * SAMPLING_RATE)
    sound = np.zeros(wanted, np.float32)
    sound[: min(wanted, len(waveform))] = waveform[:wanted]
    stills = (picture for picture in pictures for _ in range(repeats))
    return write_video(path, stills, STILLS_RATE, sound)


def clip_result(
    pipe: AudioVisualSegmentationPipeline, clip: FramesAndSound, silent: bool = False
) -> list[dict[str, Any]]:
    """The pipeline's frames, with maps, of one clip.

    Args:
        pipe: [`AudioVisualSegmentationPipeline`].
        clip: a [`Clip`] with one frame per second, or a synthetic one.
        silent: hear silence instead of the clip's sound.
    """
    audio = np.zeros_like(clip.waveform) if silent else clip.waveform
    inputs = {"frames": list(clip.frames), "audio": audio, "sampling_rate": clip.sampling_rate}
    frames: list[dict[str, Any]] = pipe(inputs, return_maps=True)["frames"]
    return frames


def prediction_gallery(prediction: Prediction) -> list[tuple[Image.Image, str]]:
    """Frame, Maskige (where there is one), heat map and mask of every frame kept by a `Prediction`, with captions."""
    pictures = []
    colors = class_colors(len(prediction.result["labels"]))
    for frame in prediction.kept:
        time, names = f"{frame['timestamp']:.1f} s", ", ".join(part["label"] for part in frame["segments"])
        mask = overlay_on_grey(frame["image"], frame["label_map"], colors)
        pictures.append((frame["image"], f"{time} frame"))
        if frame.get("maskige") is not None:
            pictures.append((frame["maskige"].resize(frame["image"].size), f"{time} Maskige"))
        pictures.append((heat_map(frame["image"], frame["heat_map"]), f"{time} heat map"))
        pictures.append((mask, f"{time} {names or 'nothing sounds'}"))
    return pictures
