"""What was found, as data: segments with boxes and COCO RLE, stretches of sound, subtitles and tables of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from combo_hf.results.pictures import class_colors, summarize, timeline


TIMELINES = ("srt", "vtt", "csv", "audacity")
Stretch = tuple[str, float, float]  # label, start and end in s


def result_record(result: Mapping[str, Any]) -> dict[str, Any]:
    """What was found as plain data, for the JSON file; `docs/results.md` says what is in it.

    Args:
        result: as the pipeline returns it, but the segments of its frames are records ([`segment_record`]).
    """
    facts = {key: result[key] for key in ("size", "fps", "has_audio", "labels", "warnings")}
    found = timeline(result["frames"], result["fps"])
    stretches = [{"label": label, "start": start, "end": end} for label, start, end in found]
    seen = {"summary": summarize(result), "stretches": stretches, "frames": list(result["frames"])}
    return {**facts, "colors": color_table(result["labels"]), **seen}


def segment_record(segment: Mapping[str, Any], index: int) -> dict[str, Any]:
    """One segment of a frame for the JSON file.

    Args:
        segment: as the pipeline returns it: label, score, mask.
        index: number of its class.
    """
    mask = np.asarray(segment["mask"]) > 0  # (H, W)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "label": segment["label"],
        "category_id": index,
        "score": round(segment["score"], 4),
        "area": int(mask.sum()),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "segmentation": encode_rle(mask),
    }


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """A boolean mask (H, W) as compressed COCO RLE: runs down the columns, zeros first, as pycocotools reads it."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0] if len(flat) and not flat[0] else [0, 0], changes, [len(flat)]])
    runs = np.diff(starts).tolist()
    text = []
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run  # the difference to the last run of the same kind
        while True:
            bits, value = value & 0x1F, value >> 5
            is_last = value == (-1 if bits & 0x10 else 0)
            text.append(chr((bits if is_last else bits | 0x20) + 48))
            if is_last:
                break
    return {"size": list(mask.shape), "counts": "".join(text)}


def color_table(labels: Mapping[int, str]) -> dict[str, str]:
    """Label -> `#rrggbb` of the overlay."""
    colors = class_colors(max(1, len(labels)))
    return {label: f"#{colors[index].tobytes().hex()}" for index, label in labels.items() if 0 < index < len(colors)}


def write_timeline(path: Path, kind: str, stretches: Sequence[Stretch]) -> None:
    """What sounds when, for players, tables and sound editors.

    Args:
        path: of the file.
        kind: one of `srt`, `vtt` (subtitles), `csv` (label, start, end), `audacity` (label track).
        stretches: in order of start.

    Raises:
        ValueError: another kind.
    """
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["label", "start", "end"])
            table.writerows([_cell(label), f"{start:.3f}", f"{end:.3f}"] for label, start, end in stretches)
        return
    if kind == "audacity":
        lines = [f"{start:.6f}\t{end:.6f}\t{_line(label)}\n" for label, start, end in stretches]
    elif kind == "srt":
        lines = [
            f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{_line(label)}\n\n"
            for number, (label, start, end) in enumerate(stretches, start=1)
        ]
    elif kind == "vtt":
        lines = ["WEBVTT\n\n"]
        for label, start, end in stretches:
            text = _line(label).replace("&", "&amp;").replace("<", "&lt;")
            lines.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n\n")
    else:
        raise ValueError(f"a timeline is one of {', '.join(TIMELINES)}, got {kind!r}.")
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _cell(label: str) -> str:
    """For a table: spreadsheets would compute what begins like a formula, and an apostrophe says that it is text."""
    return f"'{label}" if label.startswith(("=", "+", "-", "@", "\t", "\r")) else label


def _line(label: str) -> str:
    return " ".join(label.split())


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
