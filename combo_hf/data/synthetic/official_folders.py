"""Synthetic clips in the folders of AVSBench, so that whatever reads the official data can be tried without them.

The folders are those of `combo_hf.data.subsets`: csv files, frames, masks, wav files, and on request Maskiges and the
pictures that the official AVSS script makes. Names look like ids of YouTube.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combo_hf.data.avsbench_layout import ClipEntry, label_colors
from combo_hf.data.rows import MaskigeMaker
from combo_hf.data.subsets import AVSS_CLASSES, RULES, SubsetRule, subset_rule
from combo_hf.data.synthetic.clip import CATEGORIES, SyntheticClip, plan_clip, synthesize_clip
from combo_hf.files.atomic import remove_leftovers, write_below
from combo_hf.files.folder_lock import only_run
from combo_hf.files.pool import run_tasks
from combo_hf.files.progress import Progress


PROCESSED_SIZE = 224


@dataclass(frozen=True)
class _Task:
    """One clip to write."""

    home: Path
    subset: str
    split: str
    index: int
    seed: int
    size: int
    maskiges: str | None
    processed: bool


def write_official(
    output: str | Path,
    subset: str,
    num_clips: Mapping[str, int],
    seed: int = 0,
    size: int = 224,
    maskiges: str | None = None,
    processed: bool = False,
    num_processes: int = 1,
    progress: bool | None = None,
) -> Path:
    """Write synthetic clips in the official folders of a subset; several subsets may share `output`.

    Args:
        output (`str` or `Path`): plays the folder of all AVSBench.
        subset (`str`): "s4", "ms3" or "avss".
        num_clips: number of clips for each split ("train", "val", "test").
        seed (`int`, defaults to 0): other seeds give other clips.
        size (`int`, defaults to 224): height and width in pixels; the official S4 and MS3 have 224.
        maskiges (`str`, *optional*): name of a proposal generator, whose Maskiges are written too.
        processed (`bool`): AVSS: also the 224 x 224 pictures.
        num_processes (`int`, defaults to 1): above 1, a script needs the `if __name__ == "__main__"` guard.
        progress (`bool`, *optional*): show how far it has come (default), see [`Progress`]; off: nothing.

    Returns:
        `Path`: the folder of the subset.

    Raises:
        ValueError: an unknown name, a number out of range, or a folder that holds the subset already.
        FileExistsError: another process writes in the folder.
    """
    subset_rule(subset, processed)
    if not num_clips or min(num_clips.values()) < 1 or size < 32:
        raise ValueError(f"wanted at least one clip for each split and size >= 32, got {dict(num_clips)} and {size}.")
    for split in num_clips:
        plan_clip(subset, seed, 0, split)  # refuses bad names before any file is touched
    home = Path(output) / RULES[subset].folder
    meta = home / RULES[subset].meta
    if meta.exists():
        raise ValueError(f"{meta} is there already; choose a new folder.")
    tasks = [
        _Task(home, subset, split, index, seed, size, maskiges, processed)
        for split, count in num_clips.items()
        for index in range(count)
    ]
    rows = {}
    with only_run(home), Progress(subset, "clip", len(tasks), shown=progress is not False) as bar:
        remove_leftovers(home, deep=True)
        for number, row in run_tasks(_write_clip, tasks, num_processes):
            rows[number] = row
            bar.advance()
        _write_tables(home, subset, [row for _, row in sorted(rows.items())])
    return home


def _write_tables(home: Path, subset: str, rows: list[dict[str, Any]]) -> None:
    if subset == "avss":
        indices = {name: number + 1 for number, name in enumerate(AVSS_CLASSES)}  # the official file counts from 1
        write_below(home, "label2idx.json", (json.dumps(indices, indent=4) + "\n").encode())
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, RULES[subset].columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_below(home, RULES[subset].meta, text.getvalue().encode())  # last: its being there says that the clips are


def _entry(task: _Task, clip: SyntheticClip) -> ClipEntry:
    """The csv line of a clip: a name like the ids of YouTube, the category of what sounds, and the part of AVSS."""
    digest = hashlib.sha256(f"{task.subset} {task.seed} {task.split} {task.index}".encode()).digest()
    video = base64.urlsafe_b64encode(digest).decode()[:11]
    sounding = sorted({name for second in clip.sounding for name in second})
    if task.subset == "s4":
        return ClipEntry("s4", task.split, video, sounding[0], "", video, 0)
    if task.subset == "ms3":
        return ClipEntry("ms3", task.split, f"{video}_0", "", "", video, 0)
    seconds = len(clip.frames)
    label = "v2" if seconds == 10 else "v1s" if len(sounding) == 1 else "v1m"
    name = f"{video}_0" if label == "v1m" else f"{video}_0_{seconds * 1000}"
    return ClipEntry("avss", task.split, name, "_".join(sounding), label, video, 0)


def _write_clip(task: _Task) -> tuple[tuple[str, int], dict[str, Any]]:
    """Write the files of a clip; returns its place in the csv file, and its line."""
    clip = synthesize_clip(task.subset, task.seed, task.index, task.split, task.size)
    entry, rule = _entry(task, clip), subset_rule(task.subset)
    masks = [_official_mask(mask, rule) for mask in clip.masks]
    _write_pictures(task, entry, rule, clip.frames, masks, clip)
    if task.processed:
        side = (PROCESSED_SIZE, PROCESSED_SIZE)
        frames = [frame.resize(side, Image.Resampling.BILINEAR) for frame in clip.frames]
        small = [np.asarray(Image.fromarray(mask).resize(side, Image.Resampling.NEAREST)) for mask in masks]
        _write_pictures(task, entry, subset_rule(task.subset, True), frames, small, clip)
    _write(task, entry.path(task.home, rule, rule.wav), _wav(clip))
    row = {
        "name": entry.name,
        "uid": entry.name,
        "vid": entry.youtube_id + ("_0" if entry.label == "v1m" else ""),
        "start": 0,
        "s_min": 0,
        "s_sec": 0,
        "category": entry.category,
        "a_obj": entry.category,
        "split": entry.split,
        "label": entry.label,
    }
    return (task.split, task.index), {column: row[column] for column in rule.columns}


def _write_pictures(
    task: _Task, entry: ClipEntry, rule: SubsetRule, frames: list[Image.Image], masks: list[np.ndarray], clip: Any
) -> None:
    for k, (frame, mask, known) in enumerate(zip(frames, masks, entry.label_frames, strict=True)):
        data = _encoded(frame, "JPEG" if rule.semantic else "PNG")
        _write(task, entry.path(task.home, rule, rule.frame, k), data)
        if known:
            _write(task, entry.path(task.home, rule, rule.mask, k), _encoded(Image.fromarray(mask)))
        if known and rule.label_rgb:
            colors = Image.fromarray(label_colors()[mask])
            _write(task, entry.path(task.home, rule, rule.label_rgb, k), _encoded(colors))
    if task.maskiges:
        for k, maskige in enumerate(_maskige_maker(task.maskiges)(frames)):
            _write(task, entry.path(task.home, rule, rule.maskiges[-1], k), _encoded(maskige))


@functools.lru_cache(maxsize=1)
def _maskige_maker(name: str) -> MaskigeMaker:
    return MaskigeMaker(name)


def _official_mask(mask: np.ndarray, rule: SubsetRule) -> np.ndarray:
    if not rule.semantic:
        return np.where(mask > 0, 255, 0).astype(np.uint8)
    indices = np.array([0, *(AVSS_CLASSES.index(name) for name in CATEGORIES)], np.uint8)
    return indices[mask]


def _encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 95} if kind == "JPEG" else {"compress_level": 3}))
    return buffer.getvalue()


def _wav(clip: SyntheticClip) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, clip.waveform, clip.sampling_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _write(task: _Task, path: Path, data: bytes) -> None:
    write_below(task.home, path.relative_to(task.home), data)
