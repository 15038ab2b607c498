"""Values as people read them in cards, logs and tables: durations, sizes, whole numbers, columns of a plain-text table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


def duration(seconds: float) -> str:
    """`95` -> `1 min 35 s`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes for people: `1.4 MB` (powers of ten)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def shortened(text: str, limit: int = 300) -> str:
    """The text, or its beginning with an ellipsis."""
    flat = text.strip()
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def visible(text: str) -> str:
    """A model's answer as it is shown: without white space around it, and never nothing."""
    return text.strip() or "(nothing but white space)"


def words(value: Any) -> str:
    """A value for people: whole numbers with their thousands apart."""
    return f"{value:,}" if type(value) is int else str(value)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells in columns; a cell of several lines takes several lines of the table, in its own column."""
    cells = [[cell.splitlines() or [""] for cell in row] for row in rows]
    widths = [min(90, max(len(line) for row in cells for line in row[column])) for column in range(len(cells[0]))]
    lines = [line for row in cells for line in itertools.zip_longest(*row, fillvalue="")]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
