"""JSON documents -> records, element by element with their own bytes, however large the list.

A list of rows (at the top, or under one key of an object) is read in blocks; what comes before a mistake in it is
kept, and the broken rest is one record with its reason. A single object is one row. A file of several documents one
after the other, as some tools write into .json, is read as JSONL.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from llmtuner_kit.dataset import readers
from llmtuner_kit.dataset.records import Record

_BLOCK = 1 << 20
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_ENDS = frozenset(" \t\r\n,]}")
_LARGEST_DOCUMENT = 256 << 20
# Keys of a single row: such an object is never taken for a wrapper around a list of rows.
_OF_ROWS = frozenset({"messages", "conversations", "instruction", "prompt", "question", "output"})


def read_json(path: Path, source: str, encoding: str = "utf-8") -> Iterator[Record]:
    """The records of a .json file. Bytes that are not of its encoding come out as they are, in a rejected record."""
    errors = readers.keeping(encoding)
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        text = _Text(file, encoding, errors)
        text.skip()
        if text.rest.startswith("["):
            yield from _elements(text, source, 1)
            return
    yield from _document(path, source, encoding)


class _Text:
    """A text file read in blocks: `rest` is what has been read and not used."""

    def __init__(self, file: TextIO, encoding: str, errors: str) -> None:
        self._file, self.encoding, self.errors = file, encoding, errors
        self.rest, self.ended = "", False

    def more(self) -> bool:
        """Read another block, growing with what is already held; False at the end."""
        block = "" if self.ended else self._file.read(max(_BLOCK, len(self.rest)))
        self.ended = not block
        self.rest += block
        return bool(block)

    def skip(self) -> None:
        """Drop blanks at the front."""
        while True:
            self.rest = self.rest[_blank_end(self.rest) :]
            if self.rest or not self.more():
                return

    def original(self, text: str) -> bytes:
        return text.encode(readers.line_encoding(self.encoding), self.errors)


def _blank_end(text: str) -> int:
    match = _BLANK.match(text)
    assert match is not None
    return match.end()


def _elements(text: _Text, source: str, first: int) -> Iterator[Record]:
    """The elements of the list that `text` stands before. What follows the list is not of it."""
    text.rest = text.rest[1:]
    number = first
    text.skip()
    if text.rest.startswith("]"):
        return
    while True:
        value, end, problem = _next_value(text)
        if problem:
            yield Record(source, number, text.original(text.rest), problem=problem)
            return
        raw = text.original(text.rest[:end])
        if len(raw) > readers.LARGEST_ROW:
            yield Record(source, number, raw, problem=("too_large", readers.too_large(len(raw))))
        else:
            yield Record(source, number, raw, value, _broken(raw, text.encoding))
        number += 1
        text.rest = text.rest[end:]
        text.skip()
        following, text.rest = text.rest[:1], text.rest[1:]
        text.skip()
        if following == "]":
            return
        if following != ",":
            reason = "the list ends without its closing bracket" if not following else f"{following!r} after an element"
            rest = text.original(following + text.rest)
            yield Record(source, number, rest, problem=("malformed_json", f"not JSON: {reason}"))
            return


def _broken(raw: bytes, encoding: str) -> tuple[str, str] | None:
    """The problem of bytes that are not of their encoding: the reader let them through for this to tell."""
    return readers.encoding_problem(raw, readers.line_encoding(encoding))


def _next_value(text: _Text) -> tuple[Any, int, tuple[str, str] | None]:
    """(value, where it ends in `text.rest`, problem); reads on while the value may go on."""
    decoder = json.JSONDecoder()
    while True:
        try:
            value, end = decoder.raw_decode(text.rest)
            # A number may go on in the next block: 1|2, -1.5|e3.
            if not isinstance(value, int | float) or text.rest[end : end + 1] in _ENDS or not text.more():
                return value, end, None
            continue
        except RecursionError as error:
            return None, 0, ("malformed_json", readers.json_problem(error, ""))
        except ValueError as error:
            mistake = error
        unfinished = _unfinished(mistake, text.rest)
        if not unfinished or len(text.rest) > 2 * readers.LARGEST_ROW or not text.more():
            return None, 0, ("malformed_json", readers.json_problem(mistake, text.rest))


def _unfinished(mistake: ValueError, text: str) -> bool:
    """Whether the mistake may be that the block ends here: it is at the end, or a text has no end yet."""
    if not isinstance(mistake, json.JSONDecodeError):
        return False
    return mistake.pos >= len(text) - 16 or mistake.msg.startswith(
        ("Unterminated string", "Invalid \\", "Invalid control")
    )


def _document(path: Path, source: str, encoding: str) -> Iterator[Record]:
    """A file that does not begin with a list: one row, an object around a list of rows, or rows without a list."""
    size = path.stat().st_size
    if size > _LARGEST_DOCUMENT:
        with path.open("rb") as lines:
            first = lines.readline(readers.LARGEST_ROW)
            if _is_row(first):
                lines.seek(0)
                yield from readers.read_jsonl(lines, source, encoding)
                return
        reason = f"one JSON object of {size >> 20} MiB: write its rows as a list, or one a line into a .jsonl file"
        yield Record(source, 1, b"", problem=("too_large", reason))
        return
    data = path.read_bytes()
    if (problem := readers.encoding_problem(data, encoding)) is not None and b"\n" not in data.strip():
        yield Record(source, 1, data, problem=problem)
        return
    text = data.decode(encoding, "replace").lstrip("\ufeff")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        written = [line for line in text.splitlines() if line.strip()]
        if len(written) > 1 and written[0].lstrip().startswith("{") and written[0].rstrip().endswith("}"):
            yield from readers.read_jsonl(io.BytesIO(data), source, encoding)
            return
        yield Record(source, 1, data, problem=("malformed_json", readers.json_problem(error, text)))
        return
    if problem is not None:
        yield Record(source, 1, data, problem=problem)
        return
    if (place := _list_of_rows(document, text)) >= 0:
        yield from _elements(_held(text[place:], encoding), source, 1)
        return
    yield Record(source, 1, data, document)


def _held(text: str, encoding: str) -> _Text:
    held = _Text(io.StringIO(), encoding, "replace")
    held.rest = text
    return held


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _list_of_rows(document: Any, text: str) -> int:
    """Where the list of rows begins in the text of {"data": [{...}, {...}]}; -1 when the object is itself a row."""
    if not isinstance(document, dict) or _OF_ROWS & set(document):
        return -1
    lists = [(key, value) for key, value in document.items() if isinstance(value, list) and value]
    if len(lists) != 1 or not all(isinstance(item, dict) for item in lists[0][1]):
        return -1
    if {"role", "from"} & set(lists[0][1][0]):
        return -1
    decoder, place = json.JSONDecoder(), _blank_end(text) + 1
    found = -1
    while True:
        place += _blank_end(text[place : place + _BLOCK])
        if text[place] == "}":
            return found
        key, place = decoder.raw_decode(text, place)
        place = text.index(":", place) + 1
        place += _blank_end(text[place : place + _BLOCK])
        if key == lists[0][0]:
            found = place
        _, place = decoder.raw_decode(text, place)
        place += _blank_end(text[place : place + _BLOCK])
        if text[place] == ",":
            place += 1
