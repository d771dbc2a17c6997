"""Rows of local files, JSONL and parquet, as data that others made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastrl import strict_json
from fastrl.errors import UsageError

Row = tuple[int, str, Mapping[str, Any]]  # stable id, where it stands, its columns

PACKED = 200  # times that a parquet file's rows may be larger than it is
PLENTY = 2**28  # bytes that its rows may take in any case


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl or .parquet file, by their line or row.

    Raises UsageError for a file that is not there or cannot be read, naming the line or row.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give a .jsonl or .parquet file")
    if path.suffix == ".parquet":
        for i, row in enumerate(_parquet(path)):
            yield i, f"{path} row {i}", row
        return
    try:
        lines = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give another file") from None
    with lines:
        for i, line in enumerate(lines):
            if line.strip():
                where = f"{path} line {i + 1}"
                yield i, where, _json_object(where, line)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file. UsageError for one that swells beyond all measure."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            # looks through all that is there, in little memory; what pyarrow says of a damaged
            # column without it ends the process
            file.scan_contents()
            size, read = path.stat().st_size, 0
            for group in range(file.num_row_groups):
                at_once = _rows_at_once(file.metadata.row_group(group), size)
                for batch in file.iter_batches(at_once, row_groups=[group]):
                    for row in batch.to_pylist():
                        read += _characters(row)
                        if read > PACKED * size + PLENTY:
                            raise ValueError(f"its rows are more than {PACKED} times as large")
                        yield row
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{path} is no readable parquet file: {' '.join(str(error).split())[:300]}; "
            "write it again"
        ) from None


def _rows_at_once(group: Any, size: int) -> int:
    """Of a row group of a parquet file of `size` bytes, as many as memory is sure to hold.

    Runs and dictionaries can say a cell, or a list, as often as they like in a few bytes.
    """
    columns = [group.column(i) for i in range(group.num_columns)]
    values = max((column.num_values for column in columns), default=0)
    plain = sum(max(0, column.total_uncompressed_size) for column in columns)
    if group.num_rows > size or values > PACKED * size + 10**6 or plain > PACKED * size + 10**6:
        raise ValueError(
            f"it says that it holds {group.num_rows:,} rows of {values:,} values in {plain:,}"
            f" bytes, itself {size:,} bytes long"
        )
    return 100 if plain <= 5 * size else max(1, min(100, PLENTY // plain))


def _characters(value: Any) -> int:
    """Of the texts in a value, and one for each number."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 1


def _json_object(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = strict_json.parse(line.rstrip().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is no JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is no UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise UsageError(f"{where} cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where} is no object; give one with prompt and answer")
    return row
