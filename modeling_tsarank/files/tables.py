"""Comma- and tab-separated files with a header, and Parquet: rows with their place, errors in one line."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modeling_tsarank.files.extras import require
from modeling_tsarank.files.reading import open_stream, text_lines
from modeling_tsarank.ranking_errors import InputError, TSARankError


def arrow(extra: str = "bulk") -> Any:
    """pyarrow with its Parquet module.

    Raises:
        ResourceError: It is not installed; the message names the extra.
    """
    require("pyarrow.parquet", extra, "A Parquet file")
    return require("pyarrow")


def read_csv(path: str | os.PathLike[str], delimiter: str | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (place, row by the header's names); place is `FILE, line N`.

    Args:
        path: Compressed or not, see `open_stream`.
        delimiter: By default a tab for names ending in `.tsv`, else a comma.

    Raises:
        InputError: A row has too few or many fields, or a quotation mark is wrong (with the line number).
    """
    path = Path(path)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = delimiter or ("\t" if ".tsv" in path.suffixes else ",")
    with open_stream(path) as stream:
        reader = csv.DictReader((line for _, line in text_lines(stream, str(path))), delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(f"{path}, line {reader.line_num}: the number of fields differs from the header's")
                yield f"{path}, line {reader.line_num}", row
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num + 1}: {error}") from error


@contextmanager
def parquet_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Converts pyarrow's errors for a damaged file to one line.

    Raises:
        InputError: The file is not Parquet, is damaged, or has values that Python cannot represent.
    """
    try:
        yield
    except TSARankError:
        raise
    except (arrow().ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{os.fspath(path)} cannot be read as Parquet: {reason[:200]}") from error


def open_parquet(path: str | os.PathLike[str], columns: Sequence[str] = ()) -> Any:
    """A `pyarrow.parquet.ParquetFile`, checked to be a regular file with these columns.

    Raises:
        InputError: There is no such file, it is not Parquet, or a column is missing.
        ResourceError: pyarrow is missing.
    """
    pyarrow = arrow()
    with open_stream(path), parquet_errors(path):
        opened = pyarrow.parquet.ParquetFile(path)
    names = opened.schema_arrow.names
    for column in columns:
        if column not in names:
            raise InputError(f"{os.fspath(path)} has no column {column!r}; its columns: {', '.join(names) or 'none'}")
    return opened


def read_parquet(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, row) for every row, with these columns or all; place is `FILE, row N`.

    Raises:
        InputError: See `open_parquet` and `parquet_errors`.
    """
    with open_parquet(path, columns or ()) as opened, parquet_errors(path):
        batches = opened.iter_batches(batch_size=256, columns=columns)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{os.fspath(path)}, row {number}", row
