"""Pictures of data: one row (frame, mask, Maskige, waveform), and what a data set holds as bars. Pillow only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from combo_hf.configuration_combo import IGNORE_INDEX
from combo_hf.data.row_format import to_class_ids
from combo_hf.data.sound import decode_sound
from combo_hf.data.subsets import OWN, subset_rule
from combo_hf.files.pictures import open_image
from combo_hf.results.pictures import (
    BACKGROUND,
    FAINT,
    INK,
    class_colors,
    draw_text,
    draw_waveform,
    fit_text,
    overlay_on_grey,
)


BAR = (110, 170, 220)
GAP, LEFT, TOP, WAVE = 6, 92, 34, 84
MAX_BARS = 80


def row_picture(row: Mapping[str, Any], class_names: Sequence[str] | None = None, tile: int = 160) -> Image.Image:
    """One row of a data set as a picture: a column per frame with frame, mask and Maskige, and the sound below.

    Args:
        row: as [`read_rows`] or `datasets` give it; pictures as PIL images or as `{"bytes": ...}`.
        class_names: names of the classes, background first; default those of the subset (the synthetic sets have
            others, see `combo_hf.data.synthetic.ID2LABEL`).
        tile (`int`): width of a picture in pixels, at least 48.

    Raises:
        ValueError: a row without frames, a picture or sound that cannot be read, or a tile that is too small.
    """
    if not row.get("frames") or tile < 48:
        raise ValueError(f"wanted a row with frames and a tile of 48 pixels or more, got {sorted(row)} and {tile}.")
    frames = [_image(frame).convert("RGB") for frame in row["frames"]]
    height = min(round(tile * frames[0].height / frames[0].width), round(1.5 * tile))
    cell = (tile, max(1, height))
    names = _names(row["subset"], class_names)
    columns, words = _columns(row, frames, names, cell)
    titles = ["frame", "mask"] + (["Maskige"] if row.get("maskiges") else [])
    lines = max(1, *(len(found) for found in words))
    wave_top = TOP + len(titles) * (cell[1] + GAP)
    size = (LEFT + len(frames) * (cell[0] + GAP), wave_top + WAVE + GAP + lines * 18 + GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    head = " · ".join(str(part) for part in (row["subset"], row["split"], row["video_id"], row["category"]) if part)
    draw_text(draw, (8, 8), fit_text(head, size[0] - 16, 16), INK, 16)
    for number, title in enumerate(titles):
        draw_text(draw, (8, TOP + number * (cell[1] + GAP) + cell[1] // 2), title, INK, 15, "lm")
        for column, pictures in enumerate(columns):
            sheet.paste(pictures[number], (LEFT + column * (cell[0] + GAP), TOP + number * (cell[1] + GAP)))
    draw_waveform(draw, _waveform(row), (LEFT, wave_top, size[0] - GAP, wave_top + WAVE), True)
    draw_text(draw, (8, wave_top + WAVE // 2), "sound", INK, 15, "lm")
    colors = class_colors(len(names))
    for column, found in enumerate(words):
        for line, (name, index) in enumerate(found):
            place = (LEFT + column * (cell[0] + GAP), wave_top + WAVE + GAP + line * 18)
            draw_text(draw, place, fit_text(name, cell[0], 14), tuple(colors[index]) if index else FAINT, 14)
    return sheet


@dataclass
class RowCounts:
    """What some rows hold.

    Attributes:
        clips, frames, annotated: numbers.
        empty: annotated frames in which nothing is marked.
        with_maskiges: clips; `None` where the rows came without that column.
        splits: clips for each split.
        categories: clips for each name in the category column.
        classes: annotated frames in which a class occurs.
        pixels: share of the pixels of all annotated frames for each class.
    """

    clips: int = 0
    frames: int = 0
    annotated: int = 0
    empty: int = 0
    with_maskiges: int | None = None
    splits: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    pixels: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        text = f"{self.clips} clips ({splits}), {self.frames} frames, {self.annotated} annotated"
        maskiges = "" if self.with_maskiges is None else f"; {self.with_maskiges} clips with Maskiges"
        return f"{text}, {self.empty} of them without anything marked{maskiges}"


def count_rows(rows: Iterable[Mapping[str, Any]], class_names: Sequence[str] | None = None) -> RowCounts:
    """Count clips, frames and classes; decodes the masks and nothing else.

    Args:
        rows: of one subset, as [`read_rows`] or `datasets` give them.
        class_names: see [`row_picture`].

    Raises:
        ValueError: a mask that cannot be read, or a class without a name.
    """
    counts, areas, total = RowCounts(), np.zeros(256), 0.0
    names: Sequence[str] = ()
    for row in rows:
        names = _names(row["subset"], class_names)
        counts.clips += 1
        counts.frames += len(row["label_frames"])
        if "maskiges" in row:
            counts.with_maskiges = (counts.with_maskiges or 0) + bool(row["maskiges"])
        counts.splits[row["split"]] += 1
        counts.categories.update(name for name in (row["category"] or "").split(",") if name)
        for mask, known in zip(row["masks"], row["label_frames"], strict=True):
            if not known:
                continue
            ids = to_class_ids(_image(mask), row["subset"])
            share = np.bincount(ids.ravel(), minlength=256) / ids.size
            share[IGNORE_INDEX] = 0
            present = np.flatnonzero(share).tolist()
            if present and present[-1] >= len(names):
                raise ValueError(f"clip {row['video_id']} holds class {present[-1]}; there are {len(names)} names.")
            counts.annotated += 1
            counts.empty += not share[1:].any()
            counts.classes.update(names[index] for index in present if index)
            areas, total = areas + share, total + share.sum()
    if total:
        counts.pixels = {names[index]: float(areas[index] / total) for index in np.flatnonzero(areas).tolist()}
    return counts


def draw_histogram(counts: Mapping[str, float], title: str, width: int = 720) -> Image.Image:
    """Bars, the longest on top.

    Args:
        counts: name -> number, none below 0; of more than 80 the largest are drawn, and the rest is counted.
        title (`str`): the line above.
        width (`int`): in pixels, at least 320.

    Raises:
        ValueError: nothing to draw, a negative number, or a width below 320.
    """
    if not counts or min(counts.values()) < 0 or width < 320:
        raise ValueError(f"wanted numbers of 0 or more and a width of 320 or more, got {len(counts)} and {width}.")
    bars = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown, row, left, right = bars[:MAX_BARS], 24, 190, 80
    foot = 30 if len(bars) > len(shown) else 10
    picture = Image.new("RGB", (width, 44 + len(shown) * row + foot), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw_text(draw, (12, 10), fit_text(title, width - 24, 18), INK, 18)
    longest = max(shown[0][1], 1e-12)
    for line, (name, number) in enumerate(shown):
        y = 44 + line * row
        draw_text(draw, (left - 10, y + row // 2), fit_text(name, left - 22, 15), INK, 15, "rm")
        end = left + round((width - left - right) * number / longest)
        draw.rectangle((left, y + 4, max(end, left + 1), y + row - 5), fill=BAR)
        text = f"{number:.1%}" if isinstance(number, float) else f"{number}"
        draw_text(draw, (max(end, left + 1) + 8, y + row // 2), text, FAINT, 15, "lm")
    if len(bars) > len(shown):
        draw_text(draw, (12, picture.height - 26), f"and {len(bars) - len(shown)} more", FAINT, 15)
    return picture


def _names(subset: str, class_names: Sequence[str] | None) -> Sequence[str]:
    if class_names is None and subset == OWN:
        raise ValueError("own data: pass class_names, which `class_names_of(dataset.features)` gives.")
    return subset_rule(subset).classes if class_names is None else class_names


def _columns(
    row: Mapping[str, Any], frames: list[Image.Image], names: Sequence[str], cell: tuple[int, int]
) -> tuple[list[list[Image.Image]], list[list[tuple[str, int]]]]:
    """Pictures of every frame, and the classes found in its mask; an index of 0 is a remark."""
    colors, columns, words = class_colors(len(names)), [], []
    for k, frame in enumerate(frames):
        if row["label_frames"][k]:
            ids = to_class_ids(_image(row["masks"][k]), row["subset"])
            present = [int(index) for index in np.unique(ids) if index not in (0, IGNORE_INDEX)]
            if present and present[-1] >= len(names):
                raise ValueError(f"clip {row['video_id']} holds class {present[-1]}; there are {len(names)} names.")
            mask = overlay_on_grey(frame, np.where(ids == IGNORE_INDEX, 0, ids), colors)
            words.append([(names[index], index) for index in present] or [("nothing", 0)])
        else:
            grey = frame.convert("L").convert("RGB")
            mask = Image.blend(grey, Image.new("RGB", grey.size, BACKGROUND), 0.75)
            words.append([("not annotated", 0)])
        pictures = [frame.resize(cell), mask.resize(cell)]
        if row.get("maskiges"):
            pictures.append(_image(row["maskiges"][k]).convert("RGB").resize(cell, Image.Resampling.NEAREST))
        columns.append(pictures)
    return columns, words


def _waveform(row: Mapping[str, Any]) -> np.ndarray | None:
    data = (row.get("audio") or {}).get("bytes")
    if not data:
        return None
    try:
        waveform, _ = decode_sound(data)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"clip {row['video_id']}: the sound cannot be read ({error}).") from error
    return waveform.mean(axis=1)


def _image(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, Mapping) or not isinstance(image.get("bytes"), bytes):
        raise ValueError("a picture of the row cannot be read (wanted its bytes).")
    return open_image(image["bytes"], "a picture of the row")
