"""Own videos with masks (see `own_layout`) -> a data set that `load_dataset(output, "own")` reads, and what is wrong.

    <output>/README.md                                   card; its `configs:` make `load_dataset(output, "own")` work
    <output>/data/own/<split>-00000-of-000NN.parquet     rows
    <output>/build-own.json                              settings

Clips without any mask are left out. Which videos a file holds depends on the folder and the settings only, so a build
that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from combo_hf.data.findings import Finding
from combo_hf.data.own_card import OWN_RECORD, write_own_card
from combo_hf.data.own_layout import OwnFolder
from combo_hf.data.own_masks import CocoMask, IndexMask, OwnVideo
from combo_hf.data.own_rows import OwnSettings, rows_of_video
from combo_hf.data.row_format import row_features
from combo_hf.data.shards import check_folder, cut
from combo_hf.data.subsets import OWN, SPLITS
from combo_hf.files.atomic import remove_leftovers, replacing, write_text
from combo_hf.files.folder_lock import only_run
from combo_hf.files.pool import run_tasks
from combo_hf.files.progress import Progress


GENERATION = 1  # raise when the same folder starts to give other rows
VIDEOS_PER_FILE = 16


@dataclass(frozen=True)
class OwnReport:
    """What a build left: rows of each split, (video, reason) of those left out, files written and kept."""

    folder: Path
    rows: dict[str, int]
    skipped: tuple[tuple[str, str], ...]
    written: int
    kept: int


@dataclass(frozen=True)
class _Shard:
    path: Path
    videos: tuple[OwnVideo, ...]
    classes: tuple[str, ...]
    settings: OwnSettings
    on_error: str


def build_own(
    root: str | Path,
    output: str | Path,
    settings: OwnSettings | None = None,
    num_processes: int = 1,
    on_error: str = "raise",
    resume: bool = True,
    progress: bool | None = None,
) -> OwnReport:
    """Write a folder of own videos and masks as parquet.

    Args:
        root (`str` or `Path`): the folder, see `combo_hf.data.own_layout`.
        output (`str` or `Path`): folder to write to; one with other files is refused.
        settings ([`OwnSettings`], *optional*)
        num_processes (`int`, defaults to 1): above 1, a script needs the `if __name__ == "__main__"` guard.
        on_error (`str`): "raise": stop at the first fault; "skip": leave out the videos that have one.
        resume (`bool`): keep the complete files of an earlier call with the same settings. Off: start anew.
        progress (`bool`, *optional*): show how far it has come (default), see [`Progress`]; off: nothing.

    Raises:
        ValueError: a fault of the folder, or an output folder of others or begun otherwise.
        ImportError: `datasets` is missing.
        FileExistsError: another process builds in the output folder.
        OSError: no room.
    """
    if on_error not in ("raise", "skip") or num_processes < 1:
        raise ValueError(f"wanted on_error 'raise' or 'skip' and processes, got {on_error!r}, {num_processes}.")
    settings, output, folder = settings or OwnSettings(), Path(output), OwnFolder(root)
    _refuse(folder.findings, on_error)
    videos = list(folder.annotated())
    if not videos or len(folder.classes) < 2:
        raise ValueError(f"{root}: no video with masks of known classes is left; see `combo-hf data check {root}`.")
    row_features(folder.classes)  # says early if `datasets` is missing
    check_folder(output, [OWN_RECORD], "build of own videos")
    with only_run(output):
        record = _record(folder, videos, settings)
        place = _prepare(output, record, resume)
        shards = _plan(videos, tuple(folder.classes), place, settings, on_error)
        missing = [shard for shard in shards if not shard.path.is_file()]
        total = sum(len(shard.videos) for shard in missing)
        with Progress("build", "video", total, shown=progress is not False) as bar:
            for count in run_tasks(_write_shard, missing, num_processes):
                bar.advance(count)
        write_own_card(output)
    rows, skipped = _count(shards)
    return OwnReport(output, rows, skipped, len(missing), len(shards) - len(missing))


def _refuse(findings: Sequence[Finding], on_error: str) -> None:
    serious = [finding for finding in findings if finding.serious]
    if serious and on_error == "raise":
        more = f" (and {len(serious) - 1} more, see `combo-hf data check`)" if len(serious) > 1 else ""
        raise ValueError(f"{serious[0].where}: {serious[0].message.rstrip('.')}{more}.")


def _record(folder: OwnFolder, videos: Sequence[OwnVideo], settings: OwnSettings) -> dict[str, Any]:
    """Everything the rows depend on."""
    digest = hashlib.sha256()
    for video in videos:
        digest.update(f"{video.name}\t{video.split}\t{_stamp(video.path)}\n".encode())
        for annotation in video.annotations:
            mask = annotation.mask
            facts = _stamp(mask.path) if isinstance(mask, IndexMask) and mask.path else json.dumps(_plain(mask))
            digest.update(f"{annotation.time}\t{annotation.is_frame}\t{facts}\n".encode())
    counts = Counter(video.split for video in videos)
    return {
        **asdict(settings),
        "classes": folder.classes,
        "videos": {split: counts[split] for split in SPLITS if counts[split]},
        "digest": digest.hexdigest(),
        "generation": GENERATION,
    }


def _plain(mask: IndexMask | CocoMask) -> Any:
    return [mask.size, mask.objects] if isinstance(mask, CocoMask) else None


def _stamp(path: Path) -> str:
    return f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"


def _prepare(output: Path, record: dict[str, Any], resume: bool) -> Path:
    """Clean up after a killed run, and note the settings.

    Raises:
        ValueError: a folder begun with other settings.
    """
    path, place = output / OWN_RECORD, output / "data" / OWN
    if path.is_file() and resume:
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path.name} is damaged; start anew (--restart) or choose another folder.") from error
        changed = sorted(key for key in record if begun.get(key) != record[key])
        if changed:
            raise ValueError(
                f"{output} was begun otherwise ({', '.join(changed)} changed); start anew (--restart), or choose "
                "another folder."
            )
    for table in () if resume else place.glob("*.parquet"):
        table.unlink()
    remove_leftovers(output, deep=True)
    write_text(path, json.dumps(record, indent=2) + "\n")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _plan(
    videos: Sequence[OwnVideo], classes: tuple[str, ...], place: Path, settings: OwnSettings, on_error: str
) -> list[_Shard]:
    shards = []
    for split in SPLITS:
        chosen = [video for video in videos if video.split == split]
        for name, part in cut(split, chosen, VIDEOS_PER_FILE):
            shards.append(_Shard(place / f"{name}.parquet", tuple(part), classes, settings, on_error))
    return shards


def _write_shard(shard: _Shard) -> int:
    import pyarrow
    import pyarrow.parquet

    schema, skipped = row_features(shard.classes).arrow_schema, []
    with replacing(shard.path) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        for video in shard.videos:
            rows = rows_of_video(video, shard.classes, shard.settings)
            try:
                for row in rows if shard.on_error == "raise" else list(rows):  # a video as a whole or not at all
                    writer.write_table(pyarrow.Table.from_pylist([row], schema=schema))
            except ValueError as error:
                if shard.on_error == "raise":
                    raise ValueError(f"{video.path.name}: {error}") from error
                skipped.append((video.name, str(error)))
        writer.add_key_value_metadata({b"combo_hf.skipped": json.dumps(skipped).encode()})
    return len(shard.videos)


def _count(shards: Sequence[_Shard]) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    import pyarrow.parquet

    rows, skipped = Counter[str](), []
    for shard in shards:
        metadata = pyarrow.parquet.read_metadata(shard.path)
        rows[shard.videos[0].split] += metadata.num_rows
        skipped += json.loads((metadata.metadata or {}).get(b"combo_hf.skipped", b"[]"))
    return dict(rows), tuple((name, reason) for name, reason in skipped)
