"""Composed clips as a data set: parquet rows that `datasets.load_dataset(folder)` reads, and mp4 files.

    <output>/data/<split>-00000-of-000NN.parquet   rows as `combo-hf data build` writes them
    <output>/videos/<split>/<video_id>.mp4         on request
    <output>/classes.txt                           one class a line; line 0 is the background
    <output>/clips.jsonl                           what is seen and heard in each clip, and how it was made
    <output>/compose.json                          settings, by which a later call goes on or starts anew

A shard depends on the settings and the parts only, and gets its name when it is whole: whatever is stopped, the next
call writes what is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combo_hf.data.compose import ComposedClip, ComposeRules, Parts, compose_clip, read_parts
from combo_hf.data.row_format import SAMPLING_RATE, count_rows, row_features, sound_entry
from combo_hf.data.shards import check_folder, cut, write_table
from combo_hf.files.atomic import remove_leftovers, write_text
from combo_hf.files.folder_lock import only_run
from combo_hf.files.pool import run_tasks
from combo_hf.files.progress import Progress


GENERATION = 2  # raise when the same settings and parts start to give other clips
SHARD_CLIPS = 128
SETTINGS_FILE = "compose.json"  # also the sign that a folder is ours to write in
JPEG_QUALITY = 92
FPS = 25.0
BACKGROUND = "background"
CARD = """---
pretty_name: Composed audio-visual segmentation ({kind})
task_categories: [image-segmentation]
tags: [audio-visual-segmentation, composed]
configs:
- config_name: {kind}
  default: true
  data_files:
{files}---

# Composed audio-visual segmentation, kind "{kind}"

Made by `combo-hf data compose` from photographs with masks, sounds and backgrounds. No photograph belongs to a sound.
The terms of the parts hold for these clips, and for weights trained on them.

| split | clips | annotated frames |
|---|---|---|
{counts}
```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", "{kind}", split="{first}")
```

- {size} x {size} pixels, {frames} frame(s) a clip, one a second at k + 15/16 s; seed {seed}
- classes: {classes}{column}
- masks: {labels}; `clips.jsonl` tells what is seen and heard, and how each clip was made
- stages {stages}; cases {cases}; motion {motion}, microphone {microphone}, grading {grading}
"""


@dataclass(frozen=True)
class ComposeSettings:
    """Everything the files depend on.

    Attributes:
        objects, sounds, backgrounds, splits_from: see [`read_parts`].
        kind, seed, size, num_frames, rules: see [`compose_clip`].
        clips: number for each split.
        video_height: of mp4 files in pixels; 0: none.
    """

    objects: str
    sounds: str
    backgrounds: str | None
    splits_from: str | None
    kind: str
    clips: dict[str, int]
    seed: int = 0
    size: int = 224
    num_frames: int = 5
    video_height: int = 0
    rules: ComposeRules = ComposeRules()
    generation: int = GENERATION

    def parts(self, split: str) -> Parts:
        """Of one split."""
        return read_parts(self.objects, self.sounds, self.backgrounds, split, self.splits_from)

    def make(self, parts: Parts, split: str, index: int) -> ComposedClip:
        """One clip of a split."""
        return compose_clip(parts, self.kind, self.seed, index, split, self.size, self.num_frames, self.rules)

    def to_json(self, parts: Mapping[str, Parts]) -> str:
        """The settings, and a digest of the names and sizes of the parts."""
        digest = hashlib.sha256()
        for split in sorted(parts):
            of = parts[split]
            paths = [p for objects in of.objects.values() for part in objects for p in (part.picture, part.mask)]
            for path in [*paths, *(p for sounds in of.sounds.values() for p in sounds), *of.backgrounds]:
                digest.update(f"{split} {path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
        values = {**asdict(self), "parts": digest.hexdigest()}
        for folder in ("objects", "sounds", "backgrounds", "splits_from"):  # moved parts are the same parts
            values.pop(folder)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class _Shard:
    settings: ComposeSettings
    output: Path
    split: str
    clips: Sequence[int]
    name: str


def class_names(settings: ComposeSettings, parts: Parts) -> tuple[str, ...] | None:
    """The names that rows carry, background first; `None` where masks tell no classes ("s4", "ms3")."""
    return (BACKGROUND, *parts.classes) if settings.kind == "avss" else None


def to_row(clip: ComposedClip, names: Sequence[str] | None = None) -> dict[str, Any]:
    """A composed clip as a data set row: frames as JPEG, masks as PNG (0 and 255 for "s4" and "ms3", class indices for
    "avss"; 255 everywhere where a frame is not annotated), sound as flac; with `names` (see [`class_names`]) also the
    column `classes`."""
    sounding = sorted({name for second in clip.sounding for name in second})
    masks = [mask if clip.kind == "avss" else np.where(mask > 0, 255, 0).astype(np.uint8) for mask in clip.masks]
    masks = [m if known else np.full_like(m, 255) for m, known in zip(masks, clip.label_frames, strict=True)]
    return {
        "video_id": clip.video_id,
        "subset": clip.kind,
        "split": clip.split,
        "category": ",".join(sounding),
        "frames": [_encoded(frame, "JPEG", quality=JPEG_QUALITY) for frame in clip.frames],
        "masks": [_encoded(Image.fromarray(mask), "PNG") for mask in masks],
        "label_frames": list(clip.label_frames),
        "maskiges": None,
        "audio": sound_entry(clip.waveform, clip.video_id),
        **({} if names is None else {"classes": [names.index(name) for name in sounding]}),
    }


def compose_dataset(
    settings: ComposeSettings, output: str | Path, num_processes: int = 1, progress: bool | None = None
) -> Path:
    """Write a composed data set; finished shards of an earlier call with the same settings and parts are kept.

    Args:
        settings ([`ComposeSettings`])
        output (`str` or `Path`): new folder, empty, or of an earlier call.
        num_processes (`int`): above 1, a script needs the `if __name__ == "__main__"` guard.
        progress (`bool`, *optional*): show how far it has come, see [`Progress`]; off: nothing.

    Raises:
        ValueError: settings out of range, parts that are missing or damaged, or a folder of others.
        FileNotFoundError: no such folder of parts.
        FileExistsError: another process writes in the folder.
        ImportError: `datasets` is missing.
    """
    output = Path(output)
    if not settings.clips or min(settings.clips.values()) < 1:
        raise ValueError(f"wanted at least one clip of each split, got {settings.clips}.")
    parts = {split: settings.parts(split) for split in settings.clips}
    for split, of in parts.items():
        settings.make(of, split, 0)  # refuses bad values before any file is touched
    row_features()
    check_folder(output, [SETTINGS_FILE], "composed data set")
    with only_run(output):
        _prepare(output, settings.to_json(parts))
        shards, lines = _shards(settings, output), {}
        with Progress("compose", "clip", sum(settings.clips.values()), shown=progress is not False) as bar:
            for shard, records in run_tasks(_write_shard, shards, num_processes):
                lines[shard.name] = records
                bar.advance(len(shard.clips))
        write_text(output / "clips.jsonl", "".join(lines[shard.name] for shard in shards))
        _describe(settings, parts, output)
    return output


def _shards(settings: ComposeSettings, output: Path) -> list[_Shard]:
    shards = []
    for split, total in settings.clips.items():
        for name, part in cut(split, range(total), SHARD_CLIPS):
            shards.append(_Shard(settings, output, split, part, name))
    return shards


def _write_shard(shard: _Shard) -> tuple[_Shard, str]:
    """Write one shard unless it is there; returns it and its lines of clips.jsonl."""
    table_path, notes = (shard.output / "data" / f"{shard.name}.{ending}" for ending in ("parquet", "jsonl"))
    if table_path.exists() and notes.exists():
        return shard, notes.read_text(encoding="utf-8")
    settings, rows, lines = shard.settings, [], []
    parts = settings.parts(shard.split)
    names = class_names(settings, parts)
    for index in shard.clips:
        clip = settings.make(parts, shard.split, index)
        rows.append(to_row(clip, names))
        record = {name: getattr(clip, name) for name in ("video_id", "split", "stage", "case", "visible", "heard")}
        record["sounding"] = clip.sounding
        if settings.video_height:
            record["video"] = f"videos/{shard.split}/{clip.video_id}.mp4"
            _write_video(clip, shard.output / record["video"], settings.video_height)
        lines.append(json.dumps(record) + "\n")
    write_text(notes, "".join(lines))
    write_table(table_path, rows, row_features(names))
    return shard, "".join(lines)


def _write_video(clip: ComposedClip, path: Path, height: int) -> None:
    from combo_hf.results.video import write_video

    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, clip.render_video(FPS, height), FPS, clip.waveform, SAMPLING_RATE)


def _prepare(output: Path, settings: str) -> None:
    """Make the folders, and remove what an earlier call left there: unfinished, or with other settings."""
    record = output / SETTINGS_FILE
    remove_leftovers(output, deep=True)
    if record.exists() and record.read_text(encoding="utf-8") != settings:
        for path in (*output.glob("data/*-of-*.*"), *output.glob("videos/*/composed_*.mp4")):
            path.unlink()
    (output / "data").mkdir(parents=True, exist_ok=True)
    write_text(record, settings)


def _describe(settings: ComposeSettings, parts: Mapping[str, Parts], output: Path) -> None:
    """classes.txt, and the card with `configs:` that `datasets.load_dataset(folder)` reads."""
    names = (BACKGROUND, *next(iter(parts.values())).classes)
    rules, counts = settings.rules, ""
    for split in settings.clips:
        tables = [count_rows(path) for path in (output / "data").glob(f"{split}-*-of-*.parquet")]
        counts += f"| {split} | {sum(clips for clips, _ in tables)} | {sum(frames for _, frames in tables)} |\n"
    card = CARD.format(
        kind=settings.kind,
        files="".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in settings.clips),
        counts=counts,
        first=next(iter(settings.clips)),
        size=settings.size,
        frames=settings.num_frames,
        seed=settings.seed,
        classes=", ".join(f"{number} {name}" for number, name in enumerate(names)),
        column='; `rows.features["classes"].feature.names`' if settings.kind == "avss" else "",
        labels="class indices" if settings.kind == "avss" else "0 and 255",
        stages=dict(rules.stages),
        cases=dict(rules.cases),
        motion=rules.motion,
        microphone=rules.microphone,
        grading=rules.grading,
    )
    for name, text in (("classes.txt", "".join(f"{name}\n" for name in names)), ("README.md", card)):
        write_text(output / name, text)


def _encoded(image: Image.Image, kind: str, **options: Any) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}
