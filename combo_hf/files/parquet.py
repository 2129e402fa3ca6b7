"""Parquet files of strangers: a few kB may stand for any number of rows, and for any number of the same large value.

What a file unpacks to is found from the heads of its pages, before pyarrow makes the room. Source: the specification
of the format (PageHeader in parquet.thrift, Thrift's compact protocol).
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from combo_hf.files.wording import first_line


MOST_UNPACKED = 100  # bytes for each of the file; pictures and sounds are packed already
SPARE_BYTES = 1 << 30  # that a small file may unpack to
VALUE_BYTES = 16  # of memory for a value's place, whatever it is
HEAD_BYTES = 1 << 16  # of a page; those with long statistics are refused
LARGEST_DICTIONARY = 1 << 26  # bytes; a larger one counts as one value
STANDS_ALONE = (0, 6)  # encodings of bytes that spell out every value: PLAIN, DELTA_LENGTH_BYTE_ARRAY
DICTIONARY_PAGE, DATA_PAGES = 2, {0: 5, 3: 8}  # kinds of pages; of data: the field of the head that tells of them
BOOLS, BYTE, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, 7, 8, (9, 10), 12  # types of Thrift's fields


def open_parquet(path: Path) -> Any:
    """The file as `pyarrow.parquet.ParquetFile`, once it is known that it unpacks to no more than its bytes pay for.

    Raises:
        ValueError: damaged, no parquet file, or one that unpacks to far more than it holds.
        ImportError: pyarrow (with `datasets`) is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("data sets need `datasets`: pip install 'combo-hf[train]'") from error
    try:
        opened = pyarrow.parquet.ParquetFile(path)
        with open(path, "rb") as file:
            unpacked = _unpacked_bytes(file, opened.metadata)
    except Exception as error:  # whatever a damaged file does to the parsers
        raise ValueError(f"{path.name} is damaged or no parquet file ({first_line(error, 100)}).") from error
    size = path.stat().st_size
    if unpacked > SPARE_BYTES + MOST_UNPACKED * size:
        opened.close()
        raise ValueError(f"{path.name} has {size} bytes and would unpack to up to {unpacked}, which is not read.")
    return opened


def _unpacked_bytes(file: IO[bytes], metadata: Any) -> int:
    total = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            total += _of_column(file, metadata.row_group(group).column(number))
    return total


def _of_column(file: IO[bytes], column: Any) -> int:
    """Bytes to which the pages of one column of one row group unpack, at most."""
    starts = [column.data_page_offset, column.dictionary_page_offset if column.has_dictionary_page else None]
    place = min(start for start in starts if start)
    end, total, largest = place + column.total_compressed_size, 0, 0
    while place < end:
        file.seek(place)
        head, length = _struct(file.read(HEAD_BYTES), 0)
        kind, unpacked, packed = head[1], head[2], head[3]
        count = head[DATA_PAGES[kind]][1] if kind in DATA_PAGES else 0
        if min(unpacked, packed, count) < 0:
            raise ValueError("a page of negative size")
        if kind == DICTIONARY_PAGE:
            file.seek(place + length)
            largest = max(largest, _largest_value(file.read(packed), unpacked, column))
        if kind in DATA_PAGES:
            encoding = head[DATA_PAGES[kind]][2 if kind == 0 else 4]
            again = column.physical_type.endswith("BYTE_ARRAY") and encoding not in STANDS_ALONE
            total += count * (VALUE_BYTES + (largest or unpacked if again else 0))
        total += unpacked
        place += length + packed
    return total


def _largest_value(page: bytes, unpacked: int, column: Any) -> int:
    """Length of the longest value of a dictionary, or that of the dictionary."""
    import pyarrow

    if column.physical_type != "BYTE_ARRAY" or unpacked > LARGEST_DICTIONARY:
        return unpacked
    codec = {"LZ4": "lz4_raw", "UNCOMPRESSED": None}.get(column.compression, column.compression.lower())
    values = page if codec is None else pyarrow.decompress(page, unpacked, codec, asbytes=True)
    place, largest = 0, 1
    while place < len(values):
        length = int.from_bytes(values[place : place + 4], "little")
        place, largest = place + 4 + length, max(largest, length)
    return largest


def _struct(data: bytes, place: int) -> tuple[dict[int, Any], int]:
    """Numbers and structs of a Thrift struct by the number of their field, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while data[place]:
        kind, step = data[place] & 15, data[place] >> 4
        place += 1
        if step:
            number += step
        else:
            number, place = _number(data, place)
        fields[number], place = _value(data, place, kind)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind in BOOLS:
        return kind == 1, place
    if kind == STRUCT:
        return _struct(data, place)
    if kind in (BYTE, DOUBLE):
        return None, place + (1 if kind == BYTE else 8)
    if kind == BINARY:
        length, place = _plain_number(data, place)
        return None, place + length
    if kind in LISTS or kind > STRUCT:
        raise ValueError("a head of a page that is of another kind")
    return _number(data, place)


def _plain_number(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while data[place] & 128:
        value |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1


def _number(data: bytes, place: int) -> tuple[int, int]:
    value, place = _plain_number(data, place)
    return (value >> 1) ^ -(value & 1), place
