"""What a reader makes of a file: records, numbered as the user would count them, with their original bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Bytes. An original of more is not held: it is named by its place in the file it came in.
LARGEST_HELD = 1 << 20
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a file on this machine, from `start` up to `end`."""

    path: str
    start: int
    end: int

    def blocks(self) -> Iterator[bytes]:
        """The bytes, a piece at a time."""
        with Path(self.path).open("rb") as file:
            file.seek(self.start)
            left = self.end - self.start
            while left > 0 and (block := file.read(min(_BLOCK, left))):
                left -= len(block)
                yield block


@dataclass(frozen=True, slots=True)
class Record:
    """One piece of a source: a line, a table row, an element of a JSON list or a passage of a document.

    Attributes:
        source: path of the file as the user knows it; members of archives as `all.zip/tickets.csv`.
        row: counted from 1 as an editor or a spreadsheet shows it (a table's header is row 1).
        raw: the original bytes of the record.
        value: a dict (rows), a str (plain text), or None when reading failed.
        problem: kind of defect found while reading, with its explanation; None when reading went well.
        apart: where the original bytes are when they are too many to be held, or not of this record alone; raw is then
            empty.
    """

    source: str
    row: int
    raw: bytes
    value: Any = None
    problem: tuple[str, str] | None = None
    apart: Stretch | None = None


def refused(source: str, row: int, path: Path, start: int, end: int, problem: tuple[str, str]) -> Record:
    """The record of a stretch of a file that was not read, with its bytes or, when they are many, where they are."""
    stretch = Stretch(str(path), start, end)
    if end - start > LARGEST_HELD:
        return Record(source, row, b"", problem=problem, apart=stretch)
    return Record(source, row, b"".join(stretch.blocks()), problem=problem)


def refused_file(source: str, path: Path, problem: tuple[str, str]) -> Record:
    """The record of a whole file that cannot be read."""
    return refused(source, 1, path, 0, path.stat().st_size, problem)


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document, with the headings it stands under, outermost first."""

    text: str
    headings: tuple[str, ...] = ()
    part: int = 1
