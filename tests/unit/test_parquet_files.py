"""Parquet files of strangers: what a few kB would unpack to is known before anything is unpacked."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


pa = pytest.importorskip("pyarrow", reason="pip install 'combo-hf[train]'")
pq = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

from combo_hf.data.loading import load_avsbench  # noqa: E402
from combo_hf.data.row_format import count_rows  # noqa: E402
from combo_hf.files.parquet import open_parquet  # noqa: E402
from combo_hf.proposals.parquet import rewrite_rows  # noqa: E402


CARD = "---\nconfigs:\n- config_name: s4\n  data_files:\n  - split: train\n    path: ['{}']\n---\n"
MEGABYTE = b"\0" * 1_000_000


def again(count: int, value: bytes = MEGABYTE) -> pa.Array:
    """One value, any number of times."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([value]))


def in_a_list(values: pa.Array) -> pa.Array:
    pictures = pa.StructArray.from_arrays([values, pa.nulls(len(values), pa.string())], ["bytes", "path"])
    return pa.ListArray.from_arrays([0, len(values)], pictures)


BOMBS: dict[str, Callable[[], pa.Array]] = {
    "one value, 3000 rows": lambda: again(3000),
    "one picture, 3000 times in a row": lambda: in_a_list(again(3000)),
    "70 million rows of nothing": lambda: pa.nulls(70_000_000, pa.int8()),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_few_kB_do_not_unpack_to_gigabytes(tmp_path: Path, name: str) -> None:  # noqa: N802
    column = BOMBS[name]()
    path = tmp_path / "s4" / "train-0.parquet"
    path.parent.mkdir()
    (tmp_path / "README.md").write_text(CARD.format("s4/train-*.parquet"))
    table = pa.table({"label_frames": column})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False)
    del column, table
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (open_parquet, count_rows, lambda path: rewrite_rows(path, tmp_path / "new", lambda row: None)):
        with pytest.raises(ValueError, match=r"train-0.parquet has \d+ bytes and would unpack to"):
            read(path)
    for streaming in (False, True):
        with pytest.raises(ValueError, match="would unpack to"):
            load_avsbench(tmp_path, "train", streaming=streaming, cache_dir=tmp_path / "cache")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert path.stat().st_size < 200_000 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_ordinary_files_are_read(tmp_path: Path, compression: str, version: str) -> None:
    """Also one mask ten thousand times, which pays for itself many times over."""
    draw = np.random.default_rng(0)
    pictures = [draw.bytes(3000) for _ in range(300)]
    table = pa.table({"frames": pictures * 2, "masks": [b"the same mask"] * 600, "flags": [True] * 600})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression=compression, data_page_version=version)
    with open_parquet(path) as file:
        assert file.read().equals(table)


@pytest.mark.parametrize("head", [b"", b"\x15\xff\xff\xff", b"\x15\x00\x15\x01\x15\x01", b"\x1c" * 5000])
def test_damaged_heads_are_a_value_error(tmp_path: Path, head: bytes) -> None:
    """Nothing, numbers without end, sizes below zero, thousands of structs in each other."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [np.random.default_rng(0).bytes(9000)]}), path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + head + bytes(40) + data[44 + len(head) :])
    with pytest.raises(ValueError, match="a.parquet is damaged or no parquet file"):
        open_parquet(path)


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.1:9/x.parquet",
        "../a.parquet",
        "/etc/*.parquet",
        "hf://datasets/a/b/c.parquet",
        "zip://a::http://b",
    ],
)
@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
def test_a_card_has_nothing_fetched(tmp_path: Path, place: str, file: str) -> None:
    """A data set of a stranger names its files in its card; `datasets` would read and fetch any."""
    (tmp_path / "s4").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "s4" / "train-0.parquet")
    card = CARD.format(place)
    (tmp_path / file).write_text(card if file == "README.md" else card.replace("---\n", ""))
    with pytest.raises(ValueError, match="names files that are not in its folder"):
        load_avsbench(tmp_path, "train", cache_dir=tmp_path / "cache")
