"""What all makers of data sets do alike: parquet files of one naming, in a folder that is theirs alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from combo_hf.files.atomic import is_partial, replacing
from combo_hf.files.folder_lock import MARKER


ROW_GROUP = 16  # what a streaming reader fetches at once, and what a process holds in memory
Item = TypeVar("Item")


def cut(split: str, items: Sequence[Item], size: int) -> Iterator[tuple[str, Sequence[Item]]]:
    """A split in pieces of `size` items: (`train-00000-of-00002`, the first of them), ..."""
    starts = range(0, len(items), size)
    for number, start in enumerate(starts):
        yield f"{split}-{number:05d}-of-{len(starts):05d}", items[start : start + size]


def check_folder(output: Path, records: Iterable[str], what: str) -> None:
    """Raise `ValueError` where a folder holds files of others: something, but none of the records of `what`."""
    if output.exists() and not any((output / name).is_file() for name in records):
        if not output.is_dir() or any(not is_partial(path) and path.name != MARKER for path in output.iterdir()):
            raise ValueError(f"{output} holds files that are no {what}; choose a new or empty folder.")


def write_table(path: Path, rows: list[dict[str, Any]], features: Any) -> None:
    """Write rows as one parquet file, whole or not at all.

    Args:
        path: file to write.
        rows, features: as of `combo_hf.data.row_format.row_features`.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary, row_group_size=ROW_GROUP)
