"""What is made of the lines of an evaluation: tables of classes and a picture of the best and the worst videos."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from combo_hf.evaluation.prepare import Evaluation
from combo_hf.evaluation.scores import predict_class_maps
from combo_hf.files.atomic import replacing, write_text
from combo_hf.label_maps_combo import leading_class
from combo_hf.results.pictures import BACKGROUND, FAINT, INK, class_colors, overlay_on_grey


TILE, GAP, LEFT, HEAD, MAX_COLUMNS = 112, 4, 76, 42, 5
TITLE = 30
ROWS = ("frame", "truth", "prediction")


def class_table(
    labels: Sequence[str], records: Sequence[dict[str, Any]], scores: dict[str, Any], semantic: bool
) -> list[dict[str, Any]]:
    """One entry per class (semantic), or per category (M_J and M_F; a video of several
    categories counts in each, "all" stands for none).

    Args:
        labels: names of the K classes.
        records: lines of the videos.
        scores: of the data set.
        semantic (`bool`)
    """
    if not semantic:
        return _category_table(records)
    areas = np.array([row for record in records for row in record["areas"]], dtype=np.int64).reshape(-1, 6)
    table = []
    for index, label in enumerate(labels):
        rows = areas[areas[:, 1] == index]
        table.append(
            {
                "class": index,
                "label": label,
                "iou": scores["per_class_iou"][index],
                "fscore": scores["per_class_fscore"][index],
                "frames_present": int((rows[:, 5] > 0).sum()),
                "frames_predicted": int((rows[:, 3] > 0).sum()),
                "pixels": int(rows[:, 5].sum()),
            }
        )
    return table


def _category_table(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    categories: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        for name in (record.get("category") or "all").split(","):
            categories.setdefault(name, []).append(record)
    return [
        {
            "category": name,
            "videos": len(videos),
            "M_J": math.fsum(video["M_J"] for video in videos) / len(videos),
            "M_F": math.fsum(video["M_F"] for video in videos) / len(videos),
        }
        for name, videos in sorted(categories.items())
    ]


def write_tables(output: Path, table: Sequence[dict[str, Any]]) -> None:
    """Write per_class.json, and per_class.md with percentages."""
    write_text(output / "per_class.json", json.dumps(list(table), indent=2) + "\n")
    names = list(table[0])
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += [f"| {' | '.join(_cell(row[name]) for name in names)} |" for row in table]
    write_text(output / "per_class.md", "\n".join(lines) + "\n")


def _cell(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if isinstance(value, float) else str(value).replace("|", "/")


def write_sheet(evaluation: Evaluation, records: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the best and the worst videos: frame, truth and prediction, at most five frames of each.

    Args:
        evaluation ([`Evaluation`])
        records: lines of the videos that have scores.
        path: .png file.
    """
    key = "iou" if evaluation.semantic else "M_J"
    order = sorted(records, key=lambda record: (record[key], record["video_id"]))
    count = min(evaluation.options.sheet, len(order))
    index = {name: position for position, name in enumerate(evaluation.video_ids)}
    chosen = [("best", order[::-1][:count]), ("worst", order[:count])]
    columns = []
    for title, videos in chosen:
        strips = [_strip(evaluation, index[video["video_id"]], video) for video in videos]
        columns.append((title, strips))
    width = max(strip.width for _, strips in columns for strip in strips)
    height = max(sum(strip.height for strip in strips) for _, strips in columns)
    sheet = Image.new("RGB", (2 * width + 3 * GAP, TITLE + height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for position, (title, strips) in enumerate(columns):
        x, y = GAP + position * (width + GAP), TITLE
        draw.text((x + 4, 6), f"{title} {len(strips)} of {len(records)}", fill=INK, font=_font(17))
        for strip in strips:
            sheet.paste(strip, (x, y))
            y += strip.height
    with replacing(path) as temporary:
        sheet.save(temporary)
    return path


def _strip(evaluation: Evaluation, index: int, record: dict[str, Any]) -> Image.Image:
    """One video: three rows of pictures under its name, scores and classes."""
    example = evaluation.clips[index]
    (class_maps,) = predict_class_maps(evaluation.model, [example])
    prediction, truth = _label_maps(evaluation, class_maps, example.masks)
    frames = example.frames[example.label_frames]
    shown = _chosen_frames((truth > 0).sum((1, 2)) + (prediction > 0).sum((1, 2)))
    colors = class_colors(len(evaluation.labels) if evaluation.semantic else 2)
    size = (LEFT + MAX_COLUMNS * (TILE + GAP), HEAD + len(ROWS) * (TILE + GAP) + 8)
    strip = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(strip)
    _write_head(draw, evaluation, record, truth[shown], prediction[shown], colors)
    for column, frame in enumerate(shown):
        image = Image.fromarray(frames[frame].permute(1, 2, 0).numpy())
        pictures = (image, *(overlay_on_grey(image, labels[frame], colors) for labels in (truth, prediction)))
        for row, picture in enumerate(pictures):
            strip.paste(picture.resize((TILE, TILE)), (LEFT + column * (TILE + GAP), HEAD + row * (TILE + GAP)))
        place = (LEFT + column * (TILE + GAP) + 3, HEAD + 1)
        draw.text(place, f"{frame + 1}", fill=INK, font=_font(11), stroke_width=1, stroke_fill=BACKGROUND)
    return strip


def _write_head(
    draw: ImageDraw.ImageDraw,
    evaluation: Evaluation,
    record: dict[str, Any],
    truth: np.ndarray,
    prediction: np.ndarray,
    colors: np.ndarray,
) -> None:
    """Name and scores; below them the category, what was predicted, and the colours of all classes to be seen."""
    scores = f"M_J {100 * record['M_J']:.1f}  M_F {100 * record['M_F']:.1f}"
    if evaluation.semantic:
        scores = f"IoU {100 * record['iou']:.1f}  {scores}"
    name = record["video_id"] if len(record["video_id"]) <= 48 else record["video_id"][:45] + "..."
    draw.text((4, 4), f"{name}   {scores}", fill=INK, font=_font(13))
    for row, title in enumerate(ROWS):
        draw.text((4, HEAD + row * (TILE + GAP) + TILE // 2 - 8), title, fill=FAINT, font=_font(13))
    line = f"{record['category'] or 'no category'}, predicted: {predicted_names(evaluation, prediction)}"
    draw.text((4, 24), line, fill=INK, font=_font(12))
    x = 16 + int(_font(12).getlength(line))
    classes = np.union1d(truth, prediction)
    for index in classes[classes > 0].tolist() if evaluation.semantic else ():
        draw.rectangle((x, 27, x + 9, 36), fill=tuple(colors[index].tolist()))
        draw.text((x + 13, 24), evaluation.labels[index], fill=FAINT, font=_font(12))
        x += 25 + int(_font(12).getlength(evaluation.labels[index]))


def predicted_names(evaluation: Evaluation, prediction: np.ndarray) -> str:
    """The classes of a label map by size, the largest first, in words."""
    classes, areas = np.unique(prediction[prediction > 0], return_counts=True)
    if not evaluation.semantic:
        return "something" if len(classes) else "nothing"
    order = classes[np.argsort(-areas, kind="stable")]
    return ", ".join(evaluation.labels[index] for index in order.tolist()) or "nothing"


def _chosen_frames(areas: np.ndarray) -> np.ndarray:
    """All frames, or, of a longer video, those in which most is to be seen, in order of time."""
    return np.sort(np.argsort(-areas, kind="stable")[:MAX_COLUMNS])


def _label_maps(
    evaluation: Evaluation, class_maps: torch.Tensor, masks: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth (A, H, W); without classes, sounding or not."""
    prediction, truth = leading_class(class_maps, 1)[0].cpu().numpy(), masks.numpy()
    truth = np.where(truth == 255, 0, truth)
    return (prediction, truth) if evaluation.semantic else (np.minimum(prediction, 1), np.minimum(truth, 1))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
