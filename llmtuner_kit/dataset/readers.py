"""Files -> records. Every line, table row and list element comes out, readable or with the reason why not."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from llmtuner_kit.dataset import characters
from llmtuner_kit.dataset.records import Record

LARGEST_ROW = 32 << 20
# The csv module refuses fields over 128 KiB unless told otherwise; rows are limited by LARGEST_ROW instead.
csv.field_size_limit(LARGEST_ROW)
_ESCAPED = re.compile("[\udc80-\udcff]")


def read_jsonl(file: BinaryIO, source: str, encoding: str = "utf-8", *, first_row: int = 1) -> Iterator[Record]:
    """One record a line that is not blank; the number is that of the line."""
    name = line_encoding(encoding)
    for number, raw in enumerate(_lines(file, encoding), first_row):
        if raw and not raw.isspace():
            yield json_record(raw, source, number, name)


def encoding_problem(raw: bytes, encoding: str) -> tuple[str, str] | None:
    """Where bytes break the rule of their encoding, or None."""
    return None if raw.isascii() and not _is_wide(encoding) else characters.decode(raw, encoding)[1]


def line_encoding(encoding: str) -> str:
    """The encoding of one line of a file: without the byte order mark that only the file's first line has."""
    return "utf-8" if encoding == "utf-8-sig" else encoding


def json_record(raw: bytes, source: str, row: int, encoding: str = "utf-8") -> Record:
    """The record of one line of JSON, or its problem with row, column and text."""
    if len(raw) > LARGEST_ROW:
        return Record(source, row, raw, problem=("too_large", too_large(len(raw))))
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


def read_table(lines: Iterable[str], source: str, delimiter: str, encoding: str) -> Iterator[Record]:
    """A table with a header row; every later row becomes a dict of text. Ragged rows carry a problem."""
    kept = _Kept(lines)
    reader = csv.reader(kept, delimiter=delimiter, strict=False)
    header: list[str] | None = None
    number = 0
    while True:
        number += 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(source, number, kept.take(encoding), problem=("malformed_row", f"not a table row: {error}"))
            continue
        raw = kept.take(encoding)
        if not any(field.strip() for field in fields):
            continue
        if header is None:
            header = [name.strip().lstrip("\ufeff") for name in fields]
            continue
        yield table_record(header, fields, raw, source, number, line_encoding(encoding))


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


def sniff_delimiter(sample: str) -> str:
    """The delimiter of a table: the candidate that cuts the first lines into the same number of fields, most of all."""
    best, most = ",", 1
    for delimiter in (",", ";", "\t", "|"):
        try:
            rows = [row for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if row][:20]
        except csv.Error:
            continue
        # The sample ends anywhere, so its last row may be half.
        counts = [len(row) for row in (rows[:-1] if len(rows) > 2 else rows)]
        if counts and counts[0] > most and sum(count == counts[0] for count in counts) >= 0.6 * len(counts):
            best, most = delimiter, counts[0]
    return best


def open_table(path: Path, source: str, kind: str, encoding: str) -> Iterator[Record]:
    """Records of a .csv or .tsv file, in any encoding; semicolons and tabs in a .csv are recognised."""
    with path.open("rb") as probe:
        sample = probe.read(64 << 10).decode(encoding, errors="replace")
    delimiter = "\t" if kind == "tsv" else sniff_delimiter(sample)
    with path.open(encoding=encoding, errors=keeping(encoding), newline="") as file:
        yield from read_table(file, source, delimiter, encoding)


def keeping(encoding: str) -> str:
    """The way of decoding that keeps the bytes of broken characters; encodings of wide units cannot."""
    return "replace" if _is_wide(encoding) else "surrogateescape"


class _Kept:
    """Passes lines through and remembers those since the last `take`: the raw text of a table row."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._seen: list[str] = []

    def __iter__(self) -> _Kept:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._seen.append(line)
        return line

    def take(self, encoding: str) -> bytes:
        text = "".join(self._seen).rstrip("\r\n")
        self._seen.clear()
        return text.encode(line_encoding(encoding), errors=keeping(encoding))


def _lines(file: BinaryIO, encoding: str) -> Iterator[bytes]:
    """Lines with their ends. Of a line over LARGEST_ROW only the start is kept, made one byte too long to be used."""
    if _is_wide(encoding):
        decoded = io.TextIOWrapper(file, encoding, errors="replace", newline="\n")
        try:
            for text in decoded:
                yield text.encode(line_encoding(encoding), errors="surrogatepass")
        finally:
            decoded.detach()  # the file belongs to the caller, who closes it
        return
    while line := file.readline(LARGEST_ROW + 1):
        whole = line
        while len(whole) > LARGEST_ROW and not whole.endswith(b"\n"):
            whole = file.readline(LARGEST_ROW + 1) or b"\n"
        yield line


def _is_wide(encoding: str) -> bool:
    """Whether a line end has more than one byte."""
    return encoding.startswith(("utf-16", "utf-32"))


def newline_of(encoding: str) -> bytes:
    """The bytes that end a line: one, or as many as the units of a wide encoding have."""
    return "\n".encode(encoding) if _is_wide(encoding) else b"\n"


def count_lines(data: bytes, encoding: str) -> int:
    """Line ends in whole characters of an encoding."""
    return data.decode(encoding, "replace").count("\n") if _is_wide(encoding) else data.count(b"\n")


def read_line(file: BinaryIO, newline: bytes, most: int) -> bytes:
    """The next line with its end, or its first `most` bytes; of wide units always whole ones."""
    line, unit = b"", len(newline)
    while piece := file.readline(max(1, most - len(line))):
        line += piece
        line += file.read(-len(line) % unit)
        if line.endswith(newline) or len(line) >= most:
            break
    return line


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
