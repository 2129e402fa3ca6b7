"""Parquet files of a built data set, read row group by row group and written anew with other Maskiges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from combo_hf.files.atomic import replacing
from combo_hf.files.parquet import open_parquet


def count_rows(path: Path) -> int:
    """Rows of a parquet file.

    Raises:
        ValueError: damaged.
    """
    with open_parquet(path) as table:
        return table.metadata.num_rows


def rewrite_rows(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a table of clips anew; the file appears when it is complete.

    Args:
        path: the table.
        target: where the new one goes.
        change: called with every row, which it may change.

    Raises:
        ValueError: damaged, or no table of clips.
        ImportError: pyarrow (with `datasets`) is missing.
    """
    with open_parquet(path) as table:
        import pyarrow
        import pyarrow.parquet

        schema = table.schema_arrow
        missing = [name for name in ("video_id", "frames", "maskiges") if name not in schema.names]
        if missing:
            raise ValueError(f"{path.name} is no table of clips, it has no column {missing[0]}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as writer:
            for number in range(table.num_row_groups):
                rows = table.read_row_group(number).to_pylist()
                for row in rows:
                    change(row)
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema), row_group_size=len(rows) or 1)
