"""The `maskiges` column of a built data set: a parquet file read row group by row group and written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from combo_hf.files.atomic import replacing
from combo_hf.proposals.clip import clip_indices
from combo_hf.proposals.pregenerate import Job, MaskigeReport, maskige_png


def count_rows(path: Path) -> int:
    """Rows of a parquet file.

    Raises:
        ValueError: damaged.
    """
    with _open(path) as table:
        return table.metadata.num_rows


def rewrite_parquet(path: Path, generator: Any, job: Job) -> MaskigeReport:
    """Copy a parquet file with the Maskiges of every row made from its frames, of their size.

    A row whose frames are damaged keeps what it had, and is reported. The file appears when it is complete.

    Raises:
        ValueError: no data set of clips.
        ImportError: pyarrow (with `datasets`) is missing.
    """
    with _open(path) as table:
        import pyarrow
        import pyarrow.parquet

        report, target = MaskigeReport(job.output), job.output / path.relative_to(job.source)
        schema = table.schema_arrow
        missing = [name for name in ("video_id", "frames", "maskiges") if name not in schema.names]
        if missing:
            raise ValueError(f"{path.name} is no table of clips, it has no column {missing[0]}.")
        if job.resume and target.is_file():
            report.kept += table.metadata.num_rows
            return report
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as writer:
            for number in range(table.num_row_groups):
                rows = table.read_row_group(number).to_pylist()
                for row in rows:
                    _fill(row, generator, job.stable, report)
                    if job.tick is not None:
                        job.tick()
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema), row_group_size=len(rows) or 1)
    return report


def _fill(row: dict[str, Any], generator: Any, stable: bool, report: MaskigeReport) -> None:
    try:
        frames = [_frame(entry) for entry in row["frames"]]
        indices = clip_indices((generator([frame])[0] for frame in frames), None, stable)
        sizes = [(frame.height, frame.width) for frame in frames]
        pictures = [maskige_png(index, size) for index, size in zip(indices, sizes, strict=True)]
    except (ValueError, OSError, TypeError, KeyError) as error:
        report.failed.append((str(row["video_id"]), str(error)))
        return
    row["maskiges"] = [{"bytes": data, "path": None} for data in pictures]
    report.written += 1


def _frame(entry: dict[str, Any]) -> Image.Image:
    from combo_hf.files.pictures import open_image

    return open_image(entry["bytes"] or b"", "a frame").convert("RGB")


def _open(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("data sets need `datasets`: pip install 'combo-hf[train]'") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} is damaged or no parquet file ({str(error).splitlines()[0][:100]}).") from error
