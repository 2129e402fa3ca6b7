"""AVSBench folders -> sharded parquet and a data set card, resumable to the byte.

    <output>/README.md                                      card; its `configs:` make `load_dataset(output, "s4")` work
    <output>/data/<subset>/<split>-00000-of-000NN.parquet   rows sorted by video_id
    <output>/build-<subset>.json                            settings

Which clips a shard holds depends on the csv file and the settings only, and a shard gets its name when it is complete.
So whatever is killed, and when: the next run writes the missing shards, and the result is the same to the byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from combo_hf.data.avsbench_card import write_card
from combo_hf.data.avsbench_layout import ClipEntry, find_home, read_entries
from combo_hf.data.avsbench_rows import RowOptions, entry_to_row
from combo_hf.data.row_format import row_features
from combo_hf.data.shards import ROW_GROUP, check_folder, cut
from combo_hf.data.subsets import SPLITS, SUBSETS, subset_rule
from combo_hf.files.atomic import remove_leftovers, replacing, write_text
from combo_hf.files.folder_lock import only_run
from combo_hf.files.pool import run_tasks
from combo_hf.files.progress import Progress


GENERATION = 1  # raise when the same folders start to give other bytes
ON_ERROR = ("raise", "skip")
SKIPPED_KEY = b"combo_hf.skipped"


@dataclass(frozen=True)
class BuildSettings:
    """Everything the shards depend on, as build-<subset>.json holds it.

    Attributes:
        clips: number of clips for each split, those skipped included.
        clips_digest: SHA-256 over their names, folders and labels.
        clips_with_maskiges: how many had Maskiges when the build began (0 where none are wanted).
    """

    subset: str
    splits: tuple[str, ...]
    rows_per_shard: int
    maskiges: str
    processed: bool
    clips: dict[str, int]
    clips_digest: str
    clips_with_maskiges: int
    generation: int = GENERATION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Shard:
    """One unit of work, and one file."""

    path: Path
    home: Path
    entries: tuple[ClipEntry, ...]
    options: RowOptions
    on_error: str


@dataclass(frozen=True)
class BuildReport:
    """What a build left.

    Attributes:
        folder: the output folder.
        subset: its name.
        rows: number of rows for each split.
        skipped: (video_id, reason) of the clips that could not be read.
        written, kept: number of shards written now, and found complete.
    """

    folder: Path
    subset: str
    rows: dict[str, int]
    skipped: tuple[tuple[str, str], ...]
    written: int
    kept: int


def build_dataset(
    root: str | Path,
    subset: str,
    output: str | Path,
    splits: Sequence[str] = SPLITS,
    num_processes: int = 1,
    rows_per_shard: int | None = None,
    maskiges: str = "auto",
    processed: bool = False,
    on_error: str = "raise",
    resume: bool = True,
    progress: bool | None = None,
) -> BuildReport:
    """Write a subset of AVSBench as parquet. Several subsets may go into one folder, one after the other.

    Args:
        root (`str` or `Path`): the folder of AVSBench, or of the subset.
        subset (`str`): "s4", "ms3" or "avss".
        output (`str` or `Path`): folder to write to; one with other files is refused.
        splits (defaults to all): "train", "val", "test".
        num_processes (`int`, defaults to 1): above 1, a script needs the `if __name__ == "__main__"` guard.
        rows_per_shard (`int`, *optional*): clips per file; default 512 (S4) or 128.
        maskiges, processed: see [`RowOptions`].
        on_error (`str`): "raise": stop at a damaged clip; "skip": leave it out and list it in card and report (a later
            call with "raise" writes the shards that lack one again).
        resume (`bool`, defaults to `True`): keep the complete shards of an earlier call with the same settings. Off:
            start anew.
        progress (`bool`, *optional*): show how far it has come (default), see [`Progress`]; off: nothing.

    Returns:
        [`BuildReport`]

    Raises:
        ValueError: an unknown name, a damaged csv file or clip, other settings than those the folder was begun with,
            or a folder of others.
        ImportError: `datasets` is missing.
        FileExistsError: another process builds in the folder.
        OSError: a process was killed, or the disk is full.
    """
    rows_per_shard = rows_per_shard if rows_per_shard is not None else subset_rule(subset).rows_per_shard
    _check_arguments(splits, num_processes, rows_per_shard, on_error)
    options, output = RowOptions(maskiges, processed), Path(output)
    splits = tuple(split for split in SPLITS if split in splits) if set(splits) <= set(SPLITS) else tuple(splits)
    entries = read_entries(root, subset, splits)
    home = find_home(root, subset)
    settings = _settings(entries, home, subset, splits, rows_per_shard, options)
    row_features()  # says early if `datasets` is missing
    check_folder(output, (f"build-{subset}.json" for subset in SUBSETS), "build")
    with only_run(output):
        folder = _prepare(settings, output, resume)
        shards = plan_shards(settings, entries, home, folder, options, on_error)
        missing = [shard for shard in shards if not _is_complete(shard)]
        done = sum(len(shard.entries) for shard in shards) - sum(len(shard.entries) for shard in missing)
        with Progress(subset, "clip", len(entries), done, shown=progress is not False) as bar:
            for count in run_tasks(write_shard, missing, num_processes):
                bar.advance(count)
        rows, skipped = _verify(shards, splits)
        write_card(output)
    return BuildReport(output, subset, rows, skipped, len(missing), len(shards) - len(missing))


def _check_arguments(splits: Sequence[str], num_processes: int, rows_per_shard: int, on_error: str) -> None:
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be one of {list(ON_ERROR)}, got {on_error!r}.")
    if not splits or len(set(splits)) != len(splits):
        raise ValueError(f"splits must be different ones of {list(SPLITS)}, got {list(splits)}.")
    if rows_per_shard < 1 or num_processes < 1:
        raise ValueError(
            f"wanted rows_per_shard and num_processes of 1 or more, got {rows_per_shard}, {num_processes}."
        )


def plan_shards(
    settings: BuildSettings,
    entries: Sequence[ClipEntry],
    home: Path,
    folder: Path,
    options: RowOptions,
    on_error: str = "raise",
) -> list[Shard]:
    """Cut every split, sorted by name, into shards."""
    shards = []
    for split in settings.splits:
        chosen = sorted((entry for entry in entries if entry.split == split), key=lambda entry: entry.name)
        for name, part in cut(split, chosen, settings.rows_per_shard):
            shards.append(Shard(folder / f"{name}.parquet", home, tuple(part), options, on_error))
    return shards


def write_shard(shard: Shard) -> int:
    """Write one shard under a temporary name and give it its own when it is complete; returns its number of clips."""
    import pyarrow
    import pyarrow.parquet

    schema = row_features().arrow_schema
    skipped: list[tuple[str, str]] = []
    with replacing(shard.path) as partial:
        with pyarrow.parquet.ParquetWriter(partial, schema) as writer:
            for rows in _row_groups(shard, skipped):
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema), row_group_size=ROW_GROUP)
            writer.add_key_value_metadata({SKIPPED_KEY: json.dumps(skipped).encode()})
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
    return len(shard.entries)


def _row_groups(shard: Shard, skipped: list[tuple[str, str]]) -> Iterator[list[dict[str, Any]]]:
    rule = subset_rule(shard.entries[0].subset, shard.options.processed)
    rows: list[dict[str, Any]] = []
    for entry in shard.entries:
        try:
            rows.append(entry_to_row(entry, shard.home, rule, shard.options))
        except ValueError as error:
            if shard.on_error == "raise":
                raise
            skipped.append((entry.name, str(error)))
        if len(rows) == ROW_GROUP:
            yield rows
            rows = []
    if rows:
        yield rows


def _settings(
    entries: Sequence[ClipEntry],
    home: Path,
    subset: str,
    splits: tuple[str, ...],
    rows_per_shard: int,
    options: RowOptions,
) -> BuildSettings:
    counts = {split: sum(entry.split == split for entry in entries) for split in splits}
    empty = [split for split, count in counts.items() if not count]
    if empty:
        raise ValueError(f"{subset_rule(subset).meta} lists no clip of {empty}; build the other splits only.")
    identity = "\n".join(f"{e.split}\t{e.name}\t{e.category}\t{e.label}" for e in entries)
    rule = subset_rule(subset, options.processed)
    with_maskiges = (
        0 if options.maskiges == "no" else sum(entry.maskige_place(home, rule) is not None for entry in entries)
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return BuildSettings(
        subset, splits, rows_per_shard, options.maskiges, options.processed, counts, digest, with_maskiges
    )


def _prepare(settings: BuildSettings, output: Path, resume: bool) -> Path:
    """Clean up after a killed run, and note the settings.

    Raises:
        ValueError: a folder begun with other settings, or tables of unknown origin.
    """
    record, folder = output / f"build-{settings.subset}.json", output / "data" / settings.subset
    if record.is_file() and resume:
        _compare(json.loads(settings.to_json()), record, output)
    for path in () if resume else folder.glob("*.parquet"):
        path.unlink(missing_ok=True)
    remove_leftovers(output, deep=True)
    strangers = [] if record.is_file() else sorted(path.name for path in folder.glob("*.parquet"))
    if strangers:
        raise ValueError(f"{folder} holds {strangers[0]} and no record of a build; move it away first.")
    output.mkdir(parents=True, exist_ok=True)
    write_text(record, settings.to_json())
    folder.mkdir(parents=True, exist_ok=True)  # after the record: a kill in between leaves no folder of unknown origin
    return folder


def _compare(wanted: dict[str, Any], record: Path, output: Path) -> None:
    try:
        begun = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{record.name} is damaged; start anew (--restart) or choose another folder.") from error
    if begun.get("log_mel") is False:  # a column that earlier builds could have
        del begun["log_mel"]
    changed = sorted(key for key in wanted.keys() | begun.keys() if wanted.get(key) != begun.get(key))
    if not changed:
        return
    names = {"clips_digest": "the clips of the csv file", "generation": "the version of the builder"}
    texts = [names.get(key) or f"{key} (was {begun.get(key)}, now {wanted.get(key)})" for key in changed]
    raise ValueError(
        f"{output} was begun with other settings: {', '.join(texts)}; use the same, start anew (--restart), or choose "
        "another folder."
    )


def _is_complete(shard: Shard) -> bool:
    """Whether the file is there, ends as parquet files do, and leaves out no clip where none may be left out."""
    import pyarrow
    import pyarrow.parquet

    if not shard.path.is_file():
        return False
    try:
        metadata = pyarrow.parquet.read_metadata(shard.path).metadata or {}
    except (pyarrow.ArrowException, OSError):
        return False
    return shard.on_error == "skip" or not json.loads(metadata.get(SKIPPED_KEY, b"[]"))


def _verify(shards: Sequence[Shard], splits: Sequence[str]) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Read the ids back: every clip must be in its shard once, or be listed as skipped there.

    Raises:
        OSError: it is not.
    """
    import pyarrow.parquet

    rows, skipped = dict.fromkeys(splits, 0), []
    for shard in shards:
        with pyarrow.parquet.ParquetFile(shard.path) as file:
            ids = file.read(columns=["video_id"])["video_id"].to_pylist()
            left_out = json.loads((file.metadata.metadata or {}).get(SKIPPED_KEY, b"[]"))
        names = {name for name, _ in left_out}
        if ids != [entry.name for entry in shard.entries if entry.name not in names]:
            raise OSError(f"{shard.path.name} does not hold its {len(shard.entries)} clips; delete it, run again.")
        rows[shard.entries[0].split] += len(ids)
        skipped += [(name, reason) for name, reason in left_out]
    return rows, tuple(skipped)
