"""Files -> records. Every line, table row and list element comes out, readable or with the reason why not."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llmtuner_kit.dataset import characters, lines
from llmtuner_kit.dataset.records import Record, refused

LARGEST_ROW = 32 << 20
# The csv module refuses fields over 128 KiB unless told otherwise; rows are limited by LARGEST_ROW instead.
csv.field_size_limit(LARGEST_ROW)
_ESCAPED = re.compile("[\udc80-\udcff]")


def read_jsonl(
    path: Path, source: str, encoding: str = "utf-8", *, first_row: int = 1, start: int = 0, end: int = 0
) -> Iterator[Record]:
    """One record a line that is not blank, from one byte of the file up to another; the number is that of the line."""
    name = lines.line_encoding(encoding)
    for number, line in enumerate(lines.read(path, encoding, LARGEST_ROW, start, end), first_row):
        if line.raw is None:
            problem = ("too_large", too_large(line.end - line.start))
            yield refused(source, number, path, line.start, line.end, problem)
        elif not lines.is_blank(line.raw, encoding):
            yield json_record(line.raw, source, number, name)


def encoding_problem(raw: bytes, encoding: str) -> tuple[str, str] | None:
    """Where bytes break the rule of their encoding, or None."""
    return None if raw.isascii() and not lines.is_wide(encoding) else characters.decode(raw, encoding)[1]


def json_record(raw: bytes, source: str, row: int, encoding: str = "utf-8") -> Record:
    """The record of one line of JSON, or its problem with row, column and text."""
    text, problem = characters.decode(raw, encoding)
    if problem:
        return Record(source, row, raw.rstrip(b"\r\n"), problem=problem)
    text = text.rstrip("\r\n").lstrip("\ufeff")
    if encoding == "utf-8":
        raw = raw.rstrip(b"\r\n")
    try:
        return Record(source, row, raw, json.loads(text))
    except (ValueError, RecursionError) as error:
        return Record(source, row, raw, problem=("malformed_json", json_problem(error, text)))


def read_table(path: Path, source: str, kind: str, encoding: str) -> Iterator[Record]:
    """A .csv or .tsv file with a header row, in any encoding; every later row becomes a dict of text.

    Semicolons and tabs in a .csv are recognised, titles above the header passed over. Ragged rows carry a problem.
    """
    with path.open("rb") as probe:
        sample = probe.read(64 << 10).decode(encoding, errors="replace")
    with path.open(encoding=encoding, errors=lines.keeping(encoding), newline="") as file:
        kept = _Kept(file, encoding)
        delimiter = "\t" if kind == "tsv" else sniff_delimiter(sample)
        above = _above_header(sample, delimiter)
        reader = csv.reader(kept, delimiter=delimiter, strict=False)
        header: list[str] | None = None
        for number in itertools.count(1):
            try:
                fields, problem = next(reader), None
            except StopIteration:
                return
            except csv.Error as error:
                fields, problem = [], ("malformed_row", f"not a table row: {error}")
            raw = kept.take()
            if raw is None:
                problem = ("too_large", too_large(kept.end - kept.start))
                yield refused(source, number, path, kept.start, kept.end, problem)
            elif problem:
                yield Record(source, number, raw, problem=problem)
            elif not any(field.strip() for field in fields):
                continue
            elif above:
                above -= 1
            elif header is None:
                header = distinct([name.strip().lstrip("\ufeff") for name in fields])
            else:
                yield table_record(header, fields, raw, source, number, lines.line_encoding(encoding))


def table_record(
    header: list[str], fields: list[str], raw: bytes, source: str, number: int, encoding: str = "utf-8"
) -> Record:
    """A row under its header, or the problem that it has another number of fields."""
    if len(raw) > LARGEST_ROW:
        return Record(source, number, raw, problem=("too_large", too_large(len(raw))))
    if len(fields) != len(header):
        reason = f"{len(fields)} fields where the header has {len(header)}"
        return Record(source, number, raw, problem=("wrong_field_count", reason))
    if any(not field.isascii() and _ESCAPED.search(field) for field in fields):
        return Record(source, number, raw, problem=characters.decode(raw, encoding)[1])
    return Record(source, number, raw, dict(zip(header, fields, strict=True)))


def distinct(names: list[str]) -> list[str]:
    """Names of columns of which no two are the same: a second `note` is `note 2`, or its text would be lost."""
    found: list[str] = []
    for name in names:
        count = 1
        while name and (called := name if count == 1 else f"{name} {count}") in found:
            count += 1
        found.append(called if name else "")
    return found


def sniff_delimiter(sample: str) -> str:
    """The delimiter of a table: the candidate that cuts most of the first lines into the same number of fields."""
    best, most = ",", 1
    for delimiter in (",", ";", "\t", "|"):
        counts = Counter(map(len, _first_rows(sample, delimiter)))
        (width, count), *_ = counts.most_common(1) or [(0, 0)]
        if width > most and count >= 0.6 * counts.total():
            best, most = delimiter, width
    return best


def _first_rows(sample: str, delimiter: str) -> list[list[str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if any(row)][:20]
    except csv.Error:
        return []
    # The sample ends anywhere, so its last row may be half.
    return rows[:-1] if len(rows) > 2 else rows


def _above_header(sample: str, delimiter: str) -> int:
    """How many rows stand above the header: titles, dates of a report and Excel's `sep=;`, each a single text."""
    rows = _first_rows(sample, delimiter)
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    above = next((n for n, row in enumerate(rows) if sum(map(bool, row)) != 1), 0)
    named = width > 1 and len(rows[above]) == width and len(set(rows[above])) == width and all(rows[above])
    return above if named and (width > 2 or rows[0][0].startswith("sep=")) else 0


class _Kept:
    """Passes lines through and remembers those since the last `take`: the raw text of a table row.

    Attributes:
        start, end: the bytes of the file that the row taken last is, with its line end.
    """

    def __init__(self, file: TextIO, encoding: str) -> None:
        self.start, self.end = 0, len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0
        self._file, self._encoding = file, lines.line_encoding(encoding)
        self._errors, self._unit = lines.keeping(encoding), len(lines.newline_of(encoding))
        self._seen: list[str] = []
        self._passed = 0

    def __iter__(self) -> _Kept:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LARGEST_ROW + 1)
        if not line:
            raise StopIteration
        if len(line) <= LARGEST_ROW:
            self._seen.append(line)
            return line
        # Too long to be held: it is passed over, and for the table there is nothing on it.
        while line:
            self._passed += len(self._bytes(line))
            line = "" if line.endswith(("\r", "\n")) else self._file.readline(LARGEST_ROW + 1)
        return ""

    def take(self) -> bytes | None:
        """The bytes of the row without its line end, or None where a line was too long."""
        text, passed = "".join(self._seen), self._passed
        row = text.rstrip("\r\n")
        raw = self._bytes(row)
        self.start, self.end = self.end, self.end + len(raw) + (len(text) - len(row)) * self._unit + passed
        self._seen.clear()
        self._passed = 0
        return None if passed else raw

    def _bytes(self, text: str) -> bytes:
        return text.encode(self._encoding, errors=self._errors)


def too_large(size: int) -> str:
    """Why a row of this many bytes is not read."""
    return f"{size / 2**20:.0f} MiB in one row, more than the {LARGEST_ROW >> 20} MiB a row may have"


def json_problem(error: Exception, text: str) -> str:
    """What is wrong with a text that is not JSON, and where."""
    if isinstance(error, json.JSONDecodeError):
        near = text[max(0, error.pos - 20) : error.pos + 20]
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"not JSON: {error.msg.removesuffix(' starting at')} at {where}, near {near!r}"
    if isinstance(error, RecursionError):
        return "not a row: brackets are nested thousands of levels deep"
    return f"not JSON: {error}"
