"""Records of every row-based kind of file: JSON lines, JSON, CSV, TSV, spreadsheets and Parquet."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from llmtuner_kit.dataset import json_files, readers
from llmtuner_kit.dataset.records import Record, refused_file

_PARQUET_ROWS = 2000


def open_records(
    path: Path, source: str, kind: str, encoding: str, rows_of_sheet: int | None = None
) -> Iterator[Record]:
    """The records of a file of rows. A file that cannot be read at all gives one record with the reason.

    `rows_of_sheet`: of each sheet of a spreadsheet no more records than that.
    """
    try:
        if kind == "jsonl":
            yield from readers.read_jsonl(path, source, encoding)
        elif kind == "json":
            yield from json_files.read_json(path, source, encoding)
        elif kind == "xlsx":
            yield from _spreadsheet(path, source, rows_of_sheet)
        elif kind == "parquet":
            yield from _parquet(path, source)
        else:
            yield from readers.read_table(path, source, kind, encoding)
    except _Unreadable as error:
        yield refused_file(source, path, ("unreadable_file", str(error)))


class _Unreadable(Exception):  # noqa: N818 (it is a message on its way to a record)
    """A file whose container is broken."""


def first_rows(path: Path, source: str, rows: int) -> tuple[dict[str, str], tuple[Record, ...]]:
    """The sheets of a spreadsheet (the source that their records name -> title), and the first rows of each."""
    try:
        with _opened(path) as book:
            sheets = {_name(source, place, sheet): sheet for place, sheet in enumerate(book.worksheets)}
            heads = (itertools.islice(_sheet(sheet, name), rows) for name, sheet in sheets.items())
            return {name: sheet.title for name, sheet in sheets.items()}, tuple(itertools.chain.from_iterable(heads))
    except _Unreadable as error:
        return {}, (refused_file(source, path, ("unreadable_file", str(error))),)


def _name(source: str, place: int, sheet: Any) -> str:
    return f"{source}/{sheet.title}" if place else source


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from openpyxl import load_workbook

    # Opened here: openpyxl judges files by their names, and those from archives have none.
    with path.open("rb") as file:
        try:
            book = load_workbook(file, read_only=True, data_only=True)
        except Exception as error:
            raise _Unreadable(f"not a spreadsheet: {error}") from error
        try:
            yield book
        finally:
            book.close()


def _spreadsheet(path: Path, source: str, rows: int | None) -> Iterator[Record]:
    """Every sheet with a header and rows, the later ones under their own names; formulas give their stored values."""
    with _opened(path) as book:
        for place, sheet in enumerate(book.worksheets):
            yield from itertools.islice(_sheet(sheet, _name(source, place, sheet)), rows)


def _sheet(sheet: Any, name: str) -> Iterator[Record]:
    """The rows below the header; titles above it are passed over. A column without a name is called by its letter."""
    from openpyxl.utils import get_column_letter

    rows = ((number, fields) for number, cells in enumerate(_rows(sheet), 1) if (fields := _texts(cells)))
    head = list(itertools.islice(rows, _LOOKED_AT))
    place = _header([fields for _, fields in head])
    header = readers.distinct(head[place][1]) if head else []
    for number, fields in itertools.chain(head[place + 1 :], rows):
        raw = "\t".join(fields).encode("utf-8", "replace")
        width = max(len(fields), len(header))
        header += [""] * (width - len(header))
        names = [title or get_column_letter(column) for column, title in enumerate(header, 1)]
        value = dict(zip(names, fields + [""] * (width - len(fields)), strict=True))
        yield readers.table_record(list(value), list(value.values()), raw, name, number)


_LOOKED_AT = 20


def _texts(cells: tuple[Any, ...]) -> list[str]:
    """The cells of a row up to the last that is not empty."""
    texts = [_cell(cell) for cell in cells]
    while texts and not texts[-1]:
        texts.pop()
    return texts


def _header(rows: list[list[str]]) -> int:
    """Which of the first rows names the columns: the first that is nearly as full as most. Titles and groups are not."""
    filled = [sum(map(bool, fields)) for fields in rows]
    return next((n for n, count in enumerate(filled) if count > 0.6 * statistics.median(filled)), 0)


def _rows(sheet: Any) -> Iterator[tuple[Any, ...]]:
    rows = sheet.iter_rows(values_only=True)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _Unreadable(f"the sheet {sheet.title!r} is broken: {error}") from error


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        # Days are times of midnight in spreadsheets.
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "minutes")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _parquet(path: Path, source: str) -> Iterator[Record]:
    """Rows in batches, so that a file larger than memory can be read."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    raw = json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace")
                    yield Record(source, number, raw, value)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _Unreadable(f"not a Parquet file, or broken after row {number}: {error}") from error
