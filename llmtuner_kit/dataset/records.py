"""What a reader makes of a file: records, numbered as the user would count them, with their original bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One piece of a source: a line, a table row, an element of a JSON list or a passage of a document.

    Attributes:
        source: path of the file as the user knows it; members of archives as `all.zip/tickets.csv`.
        row: counted from 1 as an editor or a spreadsheet shows it (a table's header is row 1).
        raw: the original bytes of the record.
        value: a dict (rows), a str (plain text), or None when reading failed.
        problem: kind of defect found while reading, with its explanation; None when reading went well.
    """

    source: str
    row: int
    raw: bytes
    value: Any = None
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document, with the headings it stands under, outermost first."""

    text: str
    headings: tuple[str, ...] = ()
    part: int = 1
