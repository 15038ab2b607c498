"""JSON documents -> records, element by element with their own bytes, in bounded memory however large the file.

A list of rows, at the top or under one key of an object, is read in blocks. Whether an object is one row or stands
around a list of rows is known at its end, so it is gone through once before its rows are read. What comes before a
mistake in a list is kept, and the broken rest is one record with its reason. A single object is one row. A file of
several documents one after the other, as some tools write into .json, is read as JSONL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmtuner_kit.dataset import characters, lines, readers
from llmtuner_kit.dataset.json_text import MistakeError, Text, Value
from llmtuner_kit.dataset.lines import Line
from llmtuner_kit.dataset.records import Record, refused, refused_file

# Keys of a single row: such an object is never taken for a wrapper around a list of rows.
_OF_ROWS = frozenset({"messages", "conversations", "instruction", "prompt", "question", "output"})


def read_json(path: Path, source: str, encoding: str = "utf-8") -> Iterator[Record]:
    """The records of a .json file. Bytes that are not of its encoding come out as they are, in a rejected record."""
    with Text(path, encoding) as text:
        if text.head == "[":
            yield from _elements(text, path, source)
            return
        seen = _looked_through(text) if text.head == "{" else _Object()
    if seen.mistake and _is_lines(path, encoding):
        yield from readers.read_jsonl(path, source, encoding)
    elif seen.is_wrapper:
        with Text(path, encoding, seen.start) as text:
            yield from _elements(text, path, source, seen)
    else:
        yield _single(path, source, encoding, seen)


@dataclass
class _Object:
    """What an object holds: how many lists that are not empty, and from where to where the first of them goes.

    Attributes:
        is_row: something in it says that it is not a wrapper around a list of rows.
        end: 0 when the list breaks off.
        mistake: where the object breaks off, or the file goes on behind it.
    """

    is_row: bool = False
    lists: int = 0
    start: int = 0
    end: int = 0
    mistake: MistakeError | None = None

    @property
    def is_wrapper(self) -> bool:
        return self.lists == 1 and not self.is_row


def _looked_through(text: Text) -> _Object:
    """Go through the object that `text` stands at, to the end of the file."""
    seen = _Object()
    try:
        _members(text, seen)
        _ended(text)
    except MistakeError as mistake:
        seen.mistake = mistake
    return seen


def _members(text: Text, seen: _Object) -> None:
    following = "," if text.step() and text.head != "}" else text.step()
    while following == ",":
        key = text.value()
        if key.opening != '"':
            raise MistakeError("not JSON: the name of a member has no quotes", key.start)
        seen.is_row |= key.value in _OF_ROWS
        text.skip()
        if text.head != ":":
            raise MistakeError("not JSON: no colon behind the name of a member", text.place)
        text.step()
        if text.head == "[":
            _list(text, seen)
        else:
            text.value()
        text.skip()
        place, following = text.place, text.step()
        if following not in (",", "}"):
            problem = f"{following!r} after a member" if following else "the object ends without its closing brace"
            raise MistakeError(f"not JSON: {problem}", place)


def _list(text: Text, seen: _Object) -> None:
    start, empty = text.place, True
    for item in text.items():
        if empty:
            empty, seen.lists = False, seen.lists + 1
            seen.start = start
            # Messages of a chat: the object around them is the row.
            seen.is_row |= isinstance(item.value, dict) and not {"role", "from"}.isdisjoint(item.value)
        seen.is_row |= item.opening != "{"
    if not empty:
        seen.end = text.place


def _ended(text: Text) -> None:
    text.skip()
    if text.head:
        raise MistakeError("not JSON: there is more behind the end of the document", text.place)


def _elements(text: Text, path: Path, source: str, around: _Object | None = None) -> Iterator[Record]:
    """The elements of the list that `text` stands at; what is broken, in it or behind it, is the last record."""
    number = 0
    try:
        for number, item in enumerate(text.items(), 1):
            yield _element(item, path, source, number, text.encoding)
        if around is None:
            _ended(text)
        elif around.mistake:
            raise MistakeError(str(around.mistake), around.end)
    except MistakeError as mistake:
        problem = ("malformed_json", str(mistake))
        yield refused(source, number + 1, path, mistake.place, path.stat().st_size, problem)


def _element(item: Value, path: Path, source: str, number: int, encoding: str) -> Record:
    size = item.end - item.start
    if item.raw is None or size > readers.LARGEST_ROW:
        problem = ("too_large", readers.too_large(size))
        return refused(source, number, path, item.start, item.end, problem)
    return Record(source, number, item.raw, item.value, readers.encoding_problem(item.raw, encoding))


def _single(path: Path, source: str, encoding: str, seen: _Object) -> Record:
    """A file that is one record: a row, or what is no JSON."""
    size = path.stat().st_size
    if size > readers.LARGEST_ROW:
        reason = f"one JSON value of {size >> 20} MiB: write its rows as a list, or one a line into a .jsonl file"
        told = ("malformed_json", str(seen.mistake)) if seen.mistake else ("too_large", reason)
        return refused_file(source, path, told)
    data = path.read_bytes()
    text, problem = characters.decode(data, encoding)
    if problem:
        return Record(source, 1, data, problem=problem)
    text = text.lstrip("\ufeff")
    try:
        return Record(source, 1, data, json.loads(text))
    except (ValueError, RecursionError) as error:
        return Record(source, 1, data, problem=("malformed_json", readers.json_problem(error, text)))


def _is_lines(path: Path, encoding: str) -> bool:
    """Whether a file that is not one JSON document may be lines of it: the first is an object, and there are more."""
    written = (
        line
        for line in lines.read(path, encoding, readers.LARGEST_ROW)
        if line.raw is None or not lines.is_blank(line.raw, encoding)
    )
    first = next(written, None)
    return first is not None and _edges(path, first, encoding) == ("{", "}") and next(written, None) is not None


def _edges(path: Path, line: Line, encoding: str) -> tuple[str, str]:
    """The first and the last character of a line that are not blank."""
    raw = line.raw
    if raw is None:
        with path.open("rb") as file:
            file.seek(line.start)
            raw = file.read(64)
            file.seek(max(line.start, line.end - 64))
            raw += file.read(64)
    text = raw.decode(encoding, "replace").strip("\ufeff \t\r\n")
    return text[:1], text[-1:]
