"""Records of every row-based kind of file: JSON lines, JSON, CSV, TSV, spreadsheets and Parquet."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
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
    header: list[str] | None = None
    for number, cells in enumerate(_rows(sheet), 1):
        fields = ["" if cell is None else _cell(cell) for cell in cells]
        if not any(fields):
            continue
        if header is None:
            header = [name.strip() for name in fields]
            while header and not header[-1]:
                header.pop()
            continue
        raw = "\t".join(fields).encode("utf-8", "replace")
        fields = fields[: len(header)] if not any(fields[len(header) :]) else fields
        fields += [""] * (len(header) - len(fields))
        yield readers.table_record(header, fields, raw, name, number)


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
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


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
