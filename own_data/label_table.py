"""The table of labels: CSV or Parquet files, and the labels in their cells."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from absl import logging

import files
from utils import InputError, import_optional

_DELIMITERS = "\t,;"
# Usual separators of labels, those first that names of labels hardly ever have.
_SEPARATORS = "|;,"
# Share of cells from which on a separator is conspicuous.
_MANY = 0.1


def read(path: str) -> dict[str, Sequence]:
    """Returns the cells of a CSV file, all texts, or of a Parquet file, by column.

    Raises:
        InputError: if the file cannot be read, or rows differ in their number of cells.
    """
    if path.endswith(".parquet"):
        import_optional("pyarrow", f"{path} needs PyArrow", "parquet")
    try:
        with files.open_binary(path) as file:
            if path.endswith(".parquet"):
                return _parquet_columns(file)
            text = file.read().decode("utf-8-sig")
        delimiter = _delimiter(text)
        # pandas would cut rows that are too long.
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header, *rows = filter(any, lines)
    except (OSError, ValueError, csv.Error, *files.REMOTE_ERRORS) as error:
        raise InputError(
            f"cannot read {path}: {error}. Expected: CSV in UTF-8 with a header line, or Parquet "
            "in a file whose name ends in .parquet."
        ) from error
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(
                f"{path}, data row {number}: it has {len(row)} cells instead of {len(header)}, "
                f"separated by {delimiter!r} as in the header line. Put cells that contain "
                f"{delimiter!r} in double quotes."
            )
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return dict(zip(map(str.strip, header), columns, strict=True))


def _parquet_columns(file):
    table = pd.read_parquet(file)
    if any(table.index.names):
        table = table.reset_index()
    return {name: list(table[name]) for name in table}


def _delimiter(text):
    """Returns the character that separates the cells of the header line."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return next((mark for mark in _DELIMITERS if mark in header), ",")


def cell_values(cell: Any, separator: str | None = None) -> Iterator[str]:
    """Yields the texts in a cell of a table: text that may have separators, a number or a list."""
    if isinstance(cell, list | tuple | np.ndarray):
        for entry in cell:
            yield from cell_values(entry)
    elif isinstance(cell, str):
        parts = [cell] if separator is None else cell.split(separator)
        yield from filter(None, map(str.strip, parts))
    elif not pd.isna(cell):
        yield str(cell)


def warn_of_separator(path: str, cells: Iterable, separator: str) -> None:
    """Warns if hardly any cell has the separator, but many have another usual one."""
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    num_own = sum(separator in text for text in texts)
    for other in _SEPARATORS:
        count = sum(other in text for text in texts)
        if other not in separator and count > _MANY * len(texts) and num_own < _MANY * count:
            logging.warning(
                "%s: %r is in %d of %d cells with labels, but the separator %r in %d. If %r "
                "separates labels, give --label_separator='%s'",
                *(path, other, count, len(texts), separator, num_own, other, other),
            )
            return
