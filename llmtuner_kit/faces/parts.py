"""What a card is made of besides its facts, and how it reads as plain text, in a log and a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmtuner_kit.faces.charts import Bars, Chart
from llmtuner_kit.faces.texts import columns, words

_LISTED = 500


@dataclass(frozen=True)
class Table:
    """A table with a caption; cells are shown as text."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Masked:
    """A row token by token, each with whether it is trained on."""

    title: str
    pieces: Sequence[str]
    trained: Sequence[bool]


@dataclass(frozen=True)
class Folded:
    """Parts behind a click on their title; in plain text they follow it, or `told` stands in place of all."""

    title: str
    parts: Sequence[Table | str]
    told: str = ""


@dataclass(frozen=True)
class Link:
    """An address to click on; in plain text it stands after its words."""

    words: str
    address: str


Part = Table | Chart | Bars | Masked | Folded | Link | str


def listed(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], first: int = 20) -> list[Part]:
    """A long table: its first rows, and the others behind a click; a log says where they are."""
    if len(rows) <= first:
        return [Table(caption, head, rows)]
    more = rows[first:_LISTED]
    left = f"; {len(rows) - _LISTED:,} are not listed" if len(rows) > _LISTED else ""
    title = f"and {len(rows) - first:,} more{left}"
    return [
        Table(caption, head, rows[:first]),
        Folded(title, [Table("", head, more)], told=f"{title}: open the executed notebook for the list"),
    ]


def filled(table: Table) -> list[Sequence[Any]]:
    """Head and rows without the columns in which no row has anything."""
    kept = [
        column for column in range(len(table.head)) if not table.rows or any(row[column] != "" for row in table.rows)
    ]
    return [[row[column] for column in kept] for row in (table.head, *table.rows)]


def as_text(part: Part) -> list[str]:
    """The lines of a part."""
    if isinstance(part, str):
        return part.splitlines()
    if isinstance(part, Folded):
        return (
            [part.told]
            if part.told
            else [part.title, *(f"  {line}" for inner in part.parts for line in as_text(inner))]
        )
    if isinstance(part, Masked):
        runs = itertools.groupby(zip(part.pieces, part.trained, strict=True), key=lambda item: item[1])
        texts = [("".join(piece for piece, _ in run), trained) for trained, run in runs]
        return [part.title, *"".join(f"[[{text}]]" if trained else text for text, trained in texts).splitlines()]
    if isinstance(part, Chart | Bars):
        return [f"{part.title}: {part.alt}"]
    if isinstance(part, Link):
        return [f"{part.words}: {part.address}"]
    return [
        *([part.caption] if part.caption else []),
        *columns([[words(cell) for cell in row] for row in filled(part)]),
    ]
