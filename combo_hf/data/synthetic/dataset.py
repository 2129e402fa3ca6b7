"""Synthetic data sets: the clips of [`synthesize_clip`] as data set rows, parquet shards and mp4 files.

This is the module to import from; `clip` makes one clip, `scenes` draws it and `sounds` lets it sound.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from combo_hf.data.row_format import UNLABELLED, picture_entry, png_bytes, row_features, sound_entry
from combo_hf.data.rows import MaskigeMaker
from combo_hf.data.shards import check_folder, cut, write_table
from combo_hf.data.synthetic.clip import (
    CATEGORIES,
    ID2LABEL,
    KINDS,
    SPLITS,
    SyntheticClip,
    plan_clip,
    synthesize_clip,
)
from combo_hf.files.atomic import remove_leftovers, write_text
from combo_hf.files.folder_lock import only_run
from combo_hf.files.pool import run_tasks
from combo_hf.files.progress import Progress


__all__ = [
    "CATEGORIES",
    "ID2LABEL",
    "KINDS",
    "SPLITS",
    "SyntheticClip",
    "plan_clip",
    "synthesize_clip",
    "to_row",
    "write_dataset",
]
GENERATION = 1  # raise when the same seed starts to give other clips, so that old data sets are written anew
SHARD_CLIPS = 64
FORMATS = ("rows", "mp4")
LABELS = ("auto", "binary", "semantic")
SETTINGS_FILE = "synthetic.json"  # also the sign that a folder is ours to write in
CARD = """---
pretty_name: Synthetic audio-visual segmentation ({kind})
license: apache-2.0
tags: [audio-visual-segmentation, synthetic]
{configs}---

# Synthetic audio-visual segmentation, kind "{kind}"

Drawn and synthesised by `combo_hf.data.synthetic`; no recording, photograph or AVSBench file is in it. In every clip
some objects sound and others, of the same eight categories, are only visible. The masks hold the visible part of what
sounds.

- clips: {clips}; {size} x {size} pixels; one frame a second, taken at k + 15/16 s; seed {seed}
- masks: {labels} ({classes}); 255 fills the frames without labels (see `label_frames`)
- `audio.bytes` is 16 kHz mono flac: `soundfile.read(io.BytesIO(row["audio"]["bytes"]))`
- `clips.jsonl` tells for each clip what sounds in which second
"""


def _is_semantic(kind: str, labels: str) -> bool:
    if labels not in LABELS:
        raise ValueError(f"unknown labels {labels!r}; use one of {list(LABELS)}")
    return labels == "semantic" or (labels == "auto" and KINDS[kind].semantic)


def to_row(clip: SyntheticClip, maskige_maker: MaskigeMaker | None = None, labels: str = "auto") -> dict[str, Any]:
    """Turn a clip into a data set row (bytes, never paths).

    Args:
        clip ([`SyntheticClip`])
        maskige_maker ([`MaskigeMaker`], *optional*): default: rows hold no Maskiges.
        labels (`str`, defaults to `"auto"`): "binary" (0 and 1), "semantic" (0..8) or "auto", semantic for "avss".

    Returns:
        `dict`: video_id, subset, split, category, frames, masks (T; filled with 255 where unlabelled), label_frames,
        maskiges (or `None`) and audio (16 kHz flac).

    Raises:
        ValueError: an unknown `labels`.
    """
    semantic = _is_semantic(clip.kind, labels)
    masks = [mask if semantic else np.minimum(mask, 1) for mask in clip.masks]
    masks = [m if known else np.full_like(m, UNLABELLED) for m, known in zip(masks, clip.label_frames, strict=True)]
    maskiges = None if maskige_maker is None else maskige_maker(clip.frames)

    def stored(picture: Any) -> dict[str, Any]:
        return picture_entry(png_bytes(picture, compress_level=3))

    return {
        "video_id": clip.video_id,
        "subset": clip.kind,
        "split": clip.split,
        "category": ",".join(sorted({name for second in clip.sounding for name in second})),
        "frames": [stored(frame) for frame in clip.frames],
        "masks": [stored(mask) for mask in masks],
        "label_frames": list(clip.label_frames),
        "maskiges": None if maskiges is None else [stored(image) for image in maskiges],
        "audio": sound_entry(clip.waveform, clip.video_id),
    }


@dataclass(frozen=True)
class _Settings:
    """Everything the written files depend on."""

    kind: str
    num_clips: dict[str, int]
    seed: int
    formats: tuple[str, ...]
    size: int
    labels: str
    num_frames: int | None
    maskiges: str | None
    fps: float
    generation: int = GENERATION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class _Shard:
    """Some clips of a split: one unit of work and one parquet file."""

    split: str
    clips: Sequence[int]
    name: str


def _write_shard(settings: _Settings, output: Path, shard: _Shard) -> int:
    """Write what is missing of one shard; returns its number of clips."""
    from combo_hf.results.video import write_video

    table_path = output / "data" / f"{shard.name}.parquet"
    rows_wanted = "rows" in settings.formats and not table_path.exists()
    maskiges = MaskigeMaker(settings.maskiges) if rows_wanted and settings.maskiges else None
    rows = []
    for index in shard.clips:
        plan = plan_clip(settings.kind, settings.seed, index, shard.split, settings.num_frames)
        video_path = output / "videos" / shard.split / f"{plan.video_id}.mp4"
        video_wanted = "mp4" in settings.formats and not video_path.exists()
        if not (rows_wanted or video_wanted):
            continue
        clip = synthesize_clip(settings.kind, settings.seed, index, shard.split, settings.size, settings.num_frames)
        if rows_wanted:
            rows.append(to_row(clip, maskiges, settings.labels))
        if video_wanted:
            write_video(video_path, clip.render_video(settings.fps), settings.fps, clip.waveform, clip.sampling_rate)
    if rows_wanted:
        write_table(table_path, rows, row_features())
    return len(shard.clips)


def _shards(num_clips: Mapping[str, int]) -> list[_Shard]:
    """Cut every split into shards of `SHARD_CLIPS` clips."""
    pieces = ((split, piece) for split, count in num_clips.items() for piece in cut(split, range(count), SHARD_CLIPS))
    return [_Shard(split, clips, name) for split, (name, clips) in pieces]


def _write_descriptions(settings: _Settings, output: Path) -> None:
    """Write clips.jsonl and, beside rows, the card with `configs:` that `datasets.load_dataset(folder)` reads."""
    lines = []
    for split, total in settings.num_clips.items():
        for index in range(total):
            plan = plan_clip(settings.kind, settings.seed, index, split, settings.num_frames)
            record = {"video_id": plan.video_id, "kind": settings.kind, "split": split, "seconds": plan.num_frames}
            record |= {"sounding": plan.sounding, "silent": plan.silent}
            if "mp4" in settings.formats:
                record["video"] = f"videos/{split}/{plan.video_id}.mp4"
            lines.append(json.dumps(record) + "\n")
    write_text(output / "clips.jsonl", "".join(lines))
    files = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in settings.num_clips)
    configs = f"configs:\n- config_name: {settings.kind}\n  default: true\n  data_files:\n{files}"
    semantic = _is_semantic(settings.kind, settings.labels)
    card = CARD.format(
        kind=settings.kind,
        configs=configs if "rows" in settings.formats else "",
        clips=", ".join(f"{split} {total}" for split, total in settings.num_clips.items()),
        size=settings.size,
        seed=settings.seed,
        labels="class indices" if semantic else "0 and 1",
        classes=", ".join(f"{k} {name}" for k, name in ID2LABEL.items()) if semantic else "0 background, 1 sounding",
    )
    write_text(output / "README.md", card)


def _prepare(settings: _Settings, output: Path) -> None:
    """Make the folders, and remove what an earlier call left there: unfinished, or with other settings."""
    record = output / SETTINGS_FILE
    remove_leftovers(output, deep=True)
    if record.exists() and record.read_text(encoding="utf-8") != settings.to_json():
        for path in (*output.glob("data/*-of-*.parquet"), *output.glob("videos/*/synthetic_*.mp4")):
            path.unlink()
    folders = [output]
    folders += [output / "data"] if "rows" in settings.formats else []
    folders += [output / "videos" / split for split in settings.num_clips] if "mp4" in settings.formats else []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    write_text(record, settings.to_json())


def _run(settings: _Settings, output: Path, shards: list[_Shard], num_processes: int, progress: bool) -> None:
    total, work = sum(settings.num_clips.values()), functools.partial(_write_shard, settings, output)
    with Progress(f"{settings.kind} clips", "clip", total, shown=progress) as bar:
        for count in run_tasks(work, shards, num_processes):
            bar.advance(count)


def write_dataset(
    kind: str,
    output: str | Path,
    num_clips: Mapping[str, int],
    seed: int = 0,
    formats: Sequence[str] = FORMATS,
    size: int = 224,
    labels: str = "auto",
    num_processes: int = 1,
    num_frames: int | None = None,
    maskiges: str | None = None,
    fps: float = 25,
    progress: bool = True,
) -> Path:
    """Write a data set that `datasets.load_dataset(folder)` reads, and its clips as mp4 files.

    Finished files of an earlier call with the same settings are kept; with other settings they are written anew.

    Args:
        kind (`str`): "s4", "ms3" or "avss".
        output (`str` or `Path`): folder for data/*.parquet, videos/<split>/<video_id>.mp4, clips.jsonl and README.md.
        num_clips: number of clips for each split ("train", "val", "test").
        seed (`int`, defaults to 0): see [`synthesize_clip`].
        formats (defaults to both): "rows" and / or "mp4".
        size (`int`, defaults to 224): height and width in pixels.
        labels (`str`, defaults to `"auto"`): see [`to_row`].
        num_processes (`int`, defaults to 1): above 1, the calling script needs the `if __name__ == "__main__"` guard.
        num_frames (`int`, *optional*): seconds per clip, see [`synthesize_clip`].
        maskiges (`str`, *optional*): name of a proposal generator; without it rows hold no Maskiges.
        fps (`float`, defaults to 25): of the mp4 files.
        progress (`bool`, defaults to `True`): show how far it has come, see [`Progress`].

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: an unknown kind, split, format or label rule, a number out of range, or a folder of others.
        ImportError: rows are wanted and `datasets` is missing.
        FileExistsError: another process writes in the folder.
    """
    if not formats or set(formats) - set(FORMATS):
        raise ValueError(f"formats must be chosen from {list(FORMATS)}, got {list(formats)}")
    if not num_clips or min(num_clips.values()) < 1:
        raise ValueError(f"num_clips needs at least one split, and one clip for each, got {dict(num_clips)}")
    if num_processes < 1 or size < 32 or fps <= 0:
        raise ValueError(f"wanted num_processes >= 1, size >= 32, fps > 0; got {num_processes}, {size}, {fps}")
    for split in num_clips:
        plan_clip(kind, seed, 0, split, num_frames)  # refuses bad names before any file is touched
    _is_semantic(kind, labels)
    if "rows" in formats:
        row_features()
    chosen = tuple(name for name in FORMATS if name in formats)
    settings = _Settings(kind, dict(num_clips), seed, chosen, size, labels, num_frames, maskiges, fps)
    output = Path(output)
    check_folder(output, [SETTINGS_FILE], "synthetic data set")
    with only_run(output):
        _prepare(settings, output)
        _run(settings, output, _shards(num_clips), num_processes, progress)
        _write_descriptions(settings, output)
    return output
