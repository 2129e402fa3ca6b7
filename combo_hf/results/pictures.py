"""Pictures of a result: overlays, heat maps, contact sheets and a sentence that says what sounds when.

Everything here takes what [`AudioVisualSegmentationPipeline`] returns (with `return_maps=True` for heat maps and
contact sheets) and needs Pillow and numpy only. H W are the height and width of the source.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont


BACKGROUND = (24, 26, 31)
INK = (232, 234, 238)
FAINT = (134, 140, 150)
# Dark violet over red to pale yellow: lightness grows steadily, so the map also reads in grey.
HEAT_ANCHORS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)
GREY_ALPHA = 0.65  # share of the colour over a grey picture
GOLDEN_RATIO = 0.618033988749895
ROWS = (("frame", "image"), ("Maskige", "maskige"), ("heat map", "heat_map"), ("mask", "label_map"))


def class_colors(num_labels: int) -> np.ndarray:
    """Colour of every class, uint8 `(num_labels, 3)`: black for the background, neighbours far apart in hue.

    Raises:
        ValueError: fewer than one label.
    """
    if num_labels < 1:
        raise ValueError(f"num_labels is {num_labels}; at least the background is needed.")
    colors = [(0.0, 0.0, 0.0)]
    for index in range(1, num_labels):
        hue = (0.95 + (index - 1) * GOLDEN_RATIO) % 1.0
        saturation, value = ((0.95, 0.75), (0.80, 1.0), (0.55, 0.95))[index % 3]
        colors.append(colorsys.hsv_to_rgb(hue, saturation, value))
    return np.rint(255 * np.array(colors)).astype(np.uint8)


def overlay(
    image: Image.Image, label_map: np.ndarray, colors: np.ndarray | None = None, alpha: float = 0.5
) -> Image.Image:
    """The picture with every non-background pixel tinted in the colour of its class.

    Args:
        image: the frame.
        label_map: `(H, W)` class indices at the size of the frame.
        colors: `(K, 3)` uint8; default [`class_colors`].
        alpha: share of the colour, 0 to 1.

    Raises:
        ValueError: sizes differ, a class without a colour, or alpha out of range.
        TypeError: `image` is none.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"image: wanted a PIL image, got {type(image).__name__}; Image.fromarray makes one.")
    label_map = np.asarray(label_map)
    if label_map.dtype.kind not in "iu" or label_map.min(initial=0) < 0:
        raise ValueError(f"label_map: wanted class indices (H, W) from 0, got {label_map.dtype}.")
    if label_map.shape != (image.height, image.width):
        raise ValueError(f"label_map {label_map.shape} must be (H, W) = {(image.height, image.width)} of the image.")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; use 0 (picture only) to 1 (colour only).")
    highest = int(label_map.max(initial=0))
    colors = class_colors(highest + 1) if colors is None else np.asarray(colors)
    if highest >= len(colors):
        raise ValueError(f"label_map holds class {highest}, but there are only {len(colors)} colours.")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    share = np.where(label_map > 0, np.float32(alpha), np.float32(0))[..., None]  # (H, W, 1)
    tinted = pixels * (1 - share) + colors[label_map].astype(np.float32) * share
    return Image.fromarray(tinted.round().astype(np.uint8))


def overlay_on_grey(image: Image.Image, label_map: np.ndarray, colors: np.ndarray | None = None) -> Image.Image:
    """The picture in grey, what sounds in the colour of its class: figures are read by their colours.

    Args, Raises: as [`overlay`].
    """
    return overlay(image.convert("L").convert("RGB"), label_map, colors, GREY_ALPHA)


def heat_map(image: Image.Image | None, scores: np.ndarray, alpha: float = 0.7) -> Image.Image:
    """How much each pixel sounds: dark violet (0) over red to pale yellow (1).

    Args:
        image: the frame below, or `None` for the bare map.
        scores: `(H, W)` in 0..1; values outside are clipped, not-a-number counts as 0.
        alpha: share of the map where the score is 1; it fades with the score, so that quiet parts stay visible.

    Raises:
        ValueError: sizes differ, or no pixels.
        TypeError: `scores` are no numbers.
    """
    scores = np.asarray(scores)
    if scores.dtype.kind not in "biuf":
        raise TypeError(f"scores: wanted numbers (H, W), got {scores.dtype}.")
    scores = np.clip(np.nan_to_num(scores.astype(np.float64)), 0, 1)
    if not scores.size or scores.ndim != 2 or (image is not None and scores.shape != (image.height, image.width)):
        wanted = "(H, W)" if image is None else f"(H, W) = {(image.height, image.width)} of the image"
        raise ValueError(f"scores {scores.shape} must be {wanted}.")
    stops = np.linspace(0, 1, len(HEAT_ANCHORS))
    heat = np.stack([np.interp(scores, stops, HEAT_ANCHORS[:, channel]) for channel in range(3)], axis=-1)
    if image is not None:
        share = alpha * (0.35 + 0.65 * scores[..., None])  # (H, W, 1)
        heat = np.asarray(image.convert("L"), dtype=np.float64)[..., None] * (1 - share) + heat * share
    return Image.fromarray(heat.round().astype(np.uint8))


def timeline(frames: Sequence[Mapping[str, Any]], fps: float = 1) -> list[tuple[str, float, float]]:
    """Stretches of time in which a class sounds: `(label, start, end)` in seconds, in order of start.

    Args:
        frames: the `"frames"` of a result.
        fps: its `"fps"`; a frame stands for the slot `1 / fps` around it.
    """
    stretches: list[tuple[str, float, float]] = []
    running: dict[str, list[float]] = {}
    for frame in frames:
        start = np.floor(frame["timestamp"] * fps + 1e-6) / fps
        for label in {segment["label"] for segment in frame["segments"]}:
            if label in running and abs(running[label][1] - start) < 1e-3:
                running[label][1] = start + 1 / fps
            else:
                if label in running:
                    stretches.append((label, *running[label]))
                running[label] = [start, start + 1 / fps]
    stretches += [(label, start, end) for label, (start, end) in running.items()]
    return sorted(stretches, key=lambda stretch: (stretch[1], stretch[0]))


def summarize(result: Mapping[str, Any]) -> str:
    """What sounds when, as text: `"bell 0-2 s, car 3-5 s"`; `"nothing sounds"` where nothing was found.

    Where only some `"classes"` were asked for: `"no bell or car sounds"`.
    """
    stretches = timeline(result["frames"], result.get("fps", 1))
    nothing = f"no {' or '.join(result['classes'])} sounds" if result.get("classes") else "nothing sounds"
    return ", ".join(f"{label} {start:g}-{end:g} s" for label, start, end in stretches) or nothing


def draw_timeline(
    result: Mapping[str, Any], waveform: np.ndarray | None = None, duration: float | None = None, width: int = 720
) -> Image.Image:
    """The sound of a video, and below it a line per class with bars where it sounds.

    Large letters: on a telephone the picture is shown at half its width.

    Args:
        result: what the pipeline returned, or `Prediction.result`.
        waveform: `(N,)` samples or peaks, evenly spread over the duration; default the result's own.
        duration: of the video in seconds; default the number of frames / fps.
        width: of the picture in pixels, at least 320.

    Raises:
        ValueError: no frames, a duration that is not positive, or a width below 320.
    """
    frames, fps = result["frames"], result.get("fps", 1)
    duration = len(frames) / fps if duration is None else duration
    if not frames or not duration > 0 or width < 320:
        raise ValueError(f"wanted frames, a duration above 0 and a width of 320 or more, got {duration} and {width}.")
    waveform = result.get("waveform") if waveform is None else waveform
    names = _label_names(result)
    colors = {name: tuple(int(part) for part in color) for name, color in
              zip(names.values(), class_colors(max(1, len(names))), strict=False)}  # fmt: skip
    stretches = timeline(frames, fps)
    labels = list(dict.fromkeys(label for label, _, _ in stretches))
    left, row, wave, foot = 170, 32, 110, 34
    picture = Image.new("RGB", (width, wave + max(1, len(labels)) * row + foot + 16), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    span = width - left - 10

    def column(second: float) -> int:
        return left + round(span * min(max(second / duration, 0), 1))

    draw_waveform(draw, waveform, (left, 6, left + span, wave - 6), result.get("has_audio", True))
    draw_text(draw, (10, wave // 2), "sound", INK, 20, "lm")
    for line, label in enumerate(labels):
        y = wave + line * row
        draw_text(draw, (10, y + row // 2), fit_text(label, left - 16, 20), INK, 20, "lm")
        for name, start, end in stretches:
            if name == label:
                box = (column(start), y + 5, max(column(end) - 2, column(start) + 2), y + row - 5)
                draw.rounded_rectangle(box, 4, fill=colors.get(label, INK))
    if not labels:
        draw_text(draw, (left, wave + row // 2), "nothing sounds", FAINT, 20, "lm")
    y = wave + max(1, len(labels)) * row + 6
    step = next(step for step in (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, duration) if duration / step <= 8)
    for tick in np.arange(0, duration + 1e-6, step):
        draw.line((column(tick), y, column(tick), y + 6), fill=FAINT)
        anchor = "la" if tick == 0 else "ra" if column(tick) > left + span - 24 else "ma"
        draw_text(draw, (column(tick), y + 8), f"{tick:g} s", FAINT, 18, anchor)
    return picture


def contact_sheet(
    result: Mapping[str, Any], waveform: np.ndarray | None = None, tile: int = 200, summary: str | None = None
) -> Image.Image:
    """One picture of a clip: a column per frame (frame, Maskige, heat map, mask), the sound and its labels below.

    Args:
        result: what the pipeline returned with `return_maps=True`.
        waveform: `(N,)` the sound of these frames; default the result's own.
        tile: width of a picture in pixels.
        summary: the line at the foot; default what [`summarize`] says of these frames. A sheet of some frames of a
            longer video needs the video's.

    Raises:
        ValueError: no frames, or a result that was made without `return_maps=True`.
    """
    frames = result["frames"]
    if not frames or "image" not in frames[0]:
        raise ValueError("contact_sheet needs at least one frame and a result made with return_maps=True.")
    if waveform is None:
        waveform = result.get("waveform")
    names = _label_names(result)
    colors = class_colors(max(len(names), 1 + max(int(frame["label_map"].max()) for frame in frames)))
    rows = [(title, key) for title, key in ROWS if frames[0].get(key) is not None]
    width, height = frames[0]["image"].size
    cell = (tile, max(1, round(tile * height / width)))
    # A portrait video would give sheets of metres; a cell is never higher than one and a half times its width.
    cell = cell if cell[1] <= 1.5 * tile else (max(1, round(1.5 * tile * width / height)), round(1.5 * tile))
    gap, left, top, wave, labels = 6, 84, 30, 90, _label_lines(frames) * 18 + 8
    size = (left + len(frames) * (cell[0] + gap) + gap, top + len(rows) * (cell[1] + gap) + wave + gap + labels + 26)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, frame in enumerate(frames):
        x = left + column * (cell[0] + gap)
        draw_text(draw, (x + cell[0] // 2, 8), f"{frame['timestamp']:.2f} s", INK, 14, "ma")
        for row, (_, key) in enumerate(rows):
            sheet.paste(_cell(frame, key, colors).resize(cell), (x, top + row * (cell[1] + gap)))
    for row, (title, _) in enumerate(rows):
        draw_text(draw, (8, top + row * (cell[1] + gap) + cell[1] // 2), title, INK, 15, "lm")
    y = top + len(rows) * (cell[1] + gap)
    span = (left, left + len(frames) * (cell[0] + gap) - gap)
    draw_waveform(draw, waveform, (span[0], y, span[1], y + wave), result.get("has_audio", True))
    draw_text(draw, (8, y + wave // 2), "sound", INK, 15, "lm")
    _draw_labels(draw, frames, names, colors, (left, y + wave + gap), cell[0], gap)
    draw_text(draw, (8, y + wave + gap + 2), "sounding", INK, 15)
    summary = summarize(result) if summary is None else summary
    draw_text(draw, (8, size[1] - 22), fit_text(summary, size[0] - 16, 14), FAINT, 14)
    return sheet


def _label_names(result: Mapping[str, Any]) -> dict[int, str]:
    return {int(index): name for index, name in (result.get("labels") or {}).items()}


def _label_lines(frames: Sequence[Mapping[str, Any]]) -> int:
    return max(1, *(len(frame["segments"]) for frame in frames)) if frames else 1


def _cell(frame: Mapping[str, Any], key: str, colors: np.ndarray) -> Image.Image:
    if key == "heat_map":
        return heat_map(frame["image"], frame["heat_map"])
    if key == "label_map":
        return overlay_on_grey(frame["image"], frame["label_map"], colors)
    picture: Image.Image = frame[key]
    return picture.convert("RGB")


def draw_waveform(
    draw: ImageDraw.ImageDraw, waveform: np.ndarray | None, box: tuple[int, int, int, int], has_audio: bool
) -> None:
    """The sound as a band of its lowest and highest samples.

    Args:
        draw: of the picture.
        waveform: `(N,)` samples or peaks, evenly spread over the width; None or empty: no sound track.
        box: left, top, right, bottom in pixels.
        has_audio: False: say that there is no sound track.
    """
    left, top, right, bottom = box
    middle, half = (top + bottom) // 2, (bottom - top) // 2 - 2
    draw.rectangle(box, fill=(34, 37, 44))
    draw.line((left, middle, right, middle), fill=FAINT)
    if waveform is None or not has_audio or not len(waveform):
        draw_text(draw, ((left + right) // 2, middle), "no sound track: treated as silence", FAINT, 14, "mm")
        return
    samples = np.nan_to_num(np.asarray(waveform, dtype=np.float64))
    peak = max(float(np.abs(samples).max()), 1e-3)  # a whisper is drawn as tall as a shout, digital silence stays flat
    edges = np.linspace(0, len(samples), right - left + 1).astype(int)
    for column in range(right - left):
        part = samples[max(0, edges[column] - 1) : edges[column + 1] + 1]  # with its neighbours: a line without gaps
        if len(part):
            span = (middle - half * part.max() / peak, middle - half * part.min() / peak)
            draw.line((left + column, span[0], left + column, span[1]), fill=(110, 170, 220))


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    frames: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    colors: np.ndarray,
    origin: tuple[int, int],
    width: int,
    gap: int,
) -> None:
    indices = {name: index for index, name in names.items()}
    for column, frame in enumerate(frames):
        x = origin[0] + column * (width + gap)
        for line, segment in enumerate(frame["segments"]):
            y = origin[1] + line * 18
            color = tuple(int(part) for part in colors[indices.get(segment["label"], 0)])
            draw.rectangle((x, y + 3, x + 10, y + 13), fill=color)
            text = fit_text(f"{segment['label']} {segment['score']:.2f}", width - 15, 13)
            draw_text(draw, (x + 15, y), text, INK, 13)
        if not frame["segments"]:
            draw_text(draw, (x, origin[1]), "-", FAINT, 13)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_text(
    draw: ImageDraw.ImageDraw,
    position: tuple[float, float],
    text: str,
    fill: tuple[int, int, int],
    size: int,
    anchor: str = "la",
) -> None:
    """Text of `size` pixels; `anchor` as in Pillow, "la" is left and top."""
    draw.text(position, text, fill=fill, font=_font(size), anchor=anchor)


def fit_text(text: str, width: int, size: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
