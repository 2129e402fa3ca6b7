"""Maskiges made in advance: for videos, folders, AVSBench as downloaded and built data sets (`combo-hf maskige`).

A file gets its name when it is complete, so a run may be killed at any time and started again; and the work may be cut
into shards (`index::number` of the sorted clips) for several processes or machines that share a folder.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combo_hf.data.avsbench_card import refresh_card
from combo_hf.files.atomic import make_below, remove_leftovers, write_below, write_bytes
from combo_hf.maskige_combo import PALETTE
from combo_hf.proposals.cache import identity_of
from combo_hf.proposals.clip import clip_indices
from combo_hf.proposals.parquet import count_rows, rewrite_rows
from combo_hf.proposals.sources import Group, find_groups
from combo_hf.proposals_combo import get_proposal_generator


RECORD = "maskige.json"


@dataclass(frozen=True)
class Job:
    """What a process needs to make the Maskiges of one group or of one parquet file; may be sent to it.

    Attributes:
        work: a group, or a parquet file below `source`.
        generator: JSON of the generator's dict, or the generator itself within one process.
        tick: called after every frame (data set: row), within one process only.
    """

    work: Any
    source: Path
    output: Path
    generator: Any
    stable: bool
    resume: bool
    tick: Callable[[], None] | None = None

    def size(self) -> int:
        """Frames (data set: rows), of a video about so many."""
        if isinstance(self.work, Group):
            return self.work.count()
        return count_rows(self.work)


@dataclass
class MaskigeReport:
    """What became of the frames (for a data set: of the rows).

    Attributes:
        folder: where the Maskiges went.
        written, kept: made now, and found from before.
        failed: (name, reason) of what could not be done.
    """

    folder: Path
    written: int = 0
    kept: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def pregenerate(
    source: str | Path,
    generator: Any,
    output: str | Path,
    *,
    size: tuple[int, int] | None = None,
    fps: int = 1,
    stable: bool = False,
    num_shards: int = 1,
    shard_index: int = 0,
    num_processes: int = 1,
    resume: bool = True,
    progress: Callable[[int, int | None], None] | None = None,
) -> MaskigeReport:
    """Make the Maskiges of a source; a damaged picture or video does not keep the others from being made.

    Args:
        source: video, folder of pictures and videos, AVSBench as downloaded (the official layout is written), or a
            folder of `combo-hf data build` (its parquet files are written anew with the column `maskiges` filled).
        generator: name, dict, or generator, see [`get_proposal_generator`].
        output: folder; for AVSBench it may be the source itself.
        size: height and width; default: 224 x 224, for AVSBench that of the frame (as for data sets in any case).
        fps: frames per second taken from videos.
        stable: colours kept from frame to frame of a clip instead of given by area rank.
        num_shards, shard_index: do number index, index + num_shards, ... of the frames (with stable colours: clips;
            data set: parquet files; videos are not cut).
        num_processes: above 1, a script needs the `if __name__ == "__main__"` guard, and every process loads the
            generator.
        resume: keep what is there; off: make it again.
        progress: called with (frames done, about how many there are); for a data set with rows.

    Raises:
        ValueError: nothing to do, impossible numbers, a folder begun with other settings.
        TypeError: several processes, and a generator that has no `to_dict()`.
    """
    _check_numbers(size, fps, num_shards, shard_index, num_processes)
    source, output = Path(source), Path(output)
    tables = parquet_files(source) if source.is_dir() else []
    work: list[Any] = list(tables) or find_groups(source, fps, size)
    if not tables and not stable:
        work = [single for group in work for single in group.singles()]
    if tables and size is not None:
        raise ValueError("size: the Maskiges of a data set have the size of its frames; leave it out.")
    if tables and output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{output} is in the data set itself; choose another output folder.")
    generator = get_proposal_generator(generator)
    settings = {"size": size, "fps": fps, "stable": stable}
    known = callable(getattr(generator, "to_dict", None))
    _check_record(output, settings | {"generator": identity_of(generator) if known else None}, resume)
    remove_leftovers(output, deep=True)
    if tables and shard_index == 0:
        copy_rest(source, output, tables)
    sent = generator if num_processes == 1 else _to_json(generator)
    jobs = [Job(item, source, output, sent, stable, resume) for item in work[shard_index::num_shards]]
    report = _run(jobs, output, num_processes, progress)
    if tables and all((output / table.relative_to(source)).is_file() for table in tables):
        refresh_card(output)
    return report


def _check_numbers(size: Any, fps: int, num_shards: int, shard_index: int, num_processes: int) -> None:
    if num_shards < 1 or not 0 <= shard_index < num_shards or num_processes < 1 or fps < 1:
        raise ValueError(
            "wanted num_shards, num_processes and fps of at least 1 and shard_index from 0 to num_shards - 1, got "
            f"{num_shards}, {num_processes}, {fps} and {shard_index}."
        )
    if size is not None and min(size) < 1:
        raise ValueError(f"size: wanted (height, width) of at least 1 pixel, got {size}.")


def _run(jobs: list[Job], output: Path, num_processes: int, progress: Any) -> MaskigeReport:
    from combo_hf.files.pool import run_tasks

    report, total, done = MaskigeReport(output), sum(job.size() for job in jobs) if progress else 0, 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, max(done, total))

    if progress is not None and num_processes == 1:
        jobs = [dataclasses.replace(job, tick=tick) for job in jobs]
    for part in run_tasks(run_job, jobs, num_processes):
        report.written += part.written
        report.kept += part.kept
        report.failed += part.failed
        if progress is not None and num_processes > 1:
            done = report.written + report.kept + len(report.failed)
            progress(done, max(done, total))
    return report


def _to_json(generator: Any) -> str:
    """The generator's dict with its device, for another process.

    Raises:
        TypeError: it has none.
    """
    if not callable(getattr(generator, "to_dict", None)):
        raise TypeError(f"{type(generator).__name__} has no to_dict(), so other processes cannot build it.")
    description = generator.to_dict()
    inner, target = generator, description
    while isinstance(target.get("generator"), dict):
        inner, target = inner.generator, target["generator"]
    if hasattr(inner, "adapter"):
        target["device"] = str(next(inner.adapter.model.parameters()).device)
    return json.dumps(description)


def run_job(job: Job) -> MaskigeReport:
    """Do one job; what is damaged is reported, not raised."""
    if isinstance(job.generator, str):
        generator = _generator_of(job.generator)
    else:
        generator = job.generator
    if isinstance(job.work, Group):
        return make_group(job.work, generator, job)
    return make_rows(job.work, generator, job)


@functools.lru_cache(maxsize=1)
def _generator_of(description: str) -> Any:
    return get_proposal_generator(json.loads(description))


def make_group(group: Group, generator: Any, job: Job) -> MaskigeReport:
    """Maskiges of one clip. With stable colours a clip is made as a whole or not at all, else frame by frame."""
    output, report, tick = job.output, MaskigeReport(job.output), job.tick or (lambda: None)
    complete = output / group.name / ".complete"  # of a video nobody knows beforehand how many frames it has
    found = complete.is_file() if group.fps else all((output / target).is_file() for target in group.targets)
    keep = job.resume and (found or not job.stable)
    targets: list[tuple[Path, tuple[int, int]]] = []

    def masks_of_missing() -> Iterator[np.ndarray]:
        for target, read in group.read():
            if keep and (output / target).is_file():
                report.kept += 1
            else:
                try:
                    frame = read()
                    masks = generator([frame])[0]
                except (ValueError, OSError) as error:
                    report.failed.append((str(target), str(error)))
                else:
                    targets.append((target, group.size or (frame.height, frame.width)))
                    yield masks
            tick()

    try:
        for index in clip_indices(masks_of_missing(), None, job.stable):
            target, size = targets[-1]
            write_below(output, target, maskige_png(index, size))
            report.written += 1
    except ValueError as error:  # of the video: frames are dealt with above
        report.failed.append((group.name, str(error)))
    if job.stable and group.fps and not report.failed:
        write_below(output, complete.relative_to(output), b"")
    return report


def make_rows(path: Path, generator: Any, job: Job) -> MaskigeReport:
    """Copy a parquet file with the Maskiges of every row made from its frames, of their size.

    A row whose frames are damaged keeps what it had, and is reported.
    """
    report, target = MaskigeReport(job.output), job.output / path.relative_to(job.source)
    if job.resume and target.is_file():
        report.kept += count_rows(path)
        return report

    from combo_hf.files.pictures import open_image

    def fill(row: dict[str, Any]) -> None:
        try:
            frames = [open_image(entry["bytes"] or b"", "a frame").convert("RGB") for entry in row["frames"]]
            indices = clip_indices((generator([frame])[0] for frame in frames), None, job.stable)
            sizes = [(frame.height, frame.width) for frame in frames]
            pictures = [maskige_png(index, size) for index, size in zip(indices, sizes, strict=True)]
        except (ValueError, OSError, TypeError, KeyError) as error:
            report.failed.append((str(row["video_id"]), str(error)))
        else:
            row["maskiges"] = [{"bytes": data, "path": None} for data in pictures]
            report.written += 1
        if job.tick is not None:
            job.tick()

    make_below(job.output, target.parent)
    rewrite_rows(path, target, fill)
    return report


def maskige_png(index: np.ndarray, size: tuple[int, int]) -> bytes:
    """Colour numbers (H, W) as a palette PNG of the given height and width."""
    picture = Image.fromarray(index).resize(size[::-1], Image.Resampling.NEAREST)
    picture.putpalette(PALETTE.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def parquet_files(source: Path) -> list[Path]:
    """Parquet files of a built data set, sorted; none where the folder is something else."""
    if not (source / "data").is_dir() and not any(source.glob("*.parquet")):
        return []
    return sorted(path for path in source.rglob("*.parquet") if not path.name.startswith("."))


def copy_rest(source: Path, output: Path, tables: list[Path]) -> None:
    """Copy card and settings, which belong to the data set like its tables."""
    for path in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        if path.is_file() and not hidden and path not in tables and path.suffix in (".md", ".json", ".jsonl"):
            write_below(output, path.relative_to(source), path.read_bytes())


def _check_record(output: Path, settings: dict[str, Any], resume: bool) -> None:
    """Note what the folder is made with, and refuse to mix.

    Raises:
        ValueError: begun with other settings.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; choose a folder.")
    record, text = output / RECORD, json.dumps(settings, indent=1, sort_keys=True) + "\n"
    if resume and record.is_file() and record.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{output} was begun with another generator or other settings (see {RECORD}); start anew with "
            "--no-resume, or choose another folder."
        )
    if not resume or not record.is_file():
        output.mkdir(parents=True, exist_ok=True)
        write_bytes(record, text.encode())
