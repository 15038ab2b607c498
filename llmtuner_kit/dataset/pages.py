"""A PDF -> the lines of its pages as a reader sees them, each with its place and type size; ruled tables as tables."""

from __future__ import annotations

import ctypes
import itertools
import math
import re
import statistics
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtuner_kit.dataset.defects import RowError

# PDFium writes this in the place of a hyphen that a line ends with.
_HYPHEN = "\x02"
_BOLD = re.compile("bold|black|heavy|semib", re.I)
_TYPEWRITER = re.compile("mono|courier|consol|typewriter|cmtt", re.I)
_BOLD_WEIGHT, _FIXED_PITCH = 600, 1
_THIN = 2.5
_NEAR = 3.0


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a page: `x` to `right` along the line, `y` from the top of the page, all in points."""

    text: str
    x: float
    right: float
    y: float
    size: float
    bold: bool = False
    typewritten: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """Words on one baseline. `cells`: its text in parts where wide gaps divide it, as in a table without rules."""

    page: int
    words: tuple[Word, ...]
    cells: tuple[str, ...]
    from_bottom: float

    @property
    def text(self) -> str:
        return " ".join(self.cells)

    @property
    def x(self) -> float:
        return self.words[0].x

    @property
    def right(self) -> float:
        return self.words[-1].right

    @property
    def y(self) -> float:
        return self.words[0].y

    @property
    def size(self) -> float:
        return statistics.median_low(word.size for word in self.words)

    @property
    def bold(self) -> bool:
        return all(word.bold for word in self.words)

    @property
    def typewritten(self) -> bool:
        """Whether all letters are of one width, as in code."""
        return all(word.typewritten for word in self.words)


@dataclass(frozen=True, slots=True)
class Table:
    """What stands between ruled lines; each cell is the lines in it."""

    page: int
    rows: tuple[tuple[tuple[str, ...], ...], ...]


def read(path: Path) -> list[Line | Table]:
    """All lines and tables in the order of the file. Raises RowError when it cannot be read."""
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(path) as document:
            found: list[Line | Table] = []
            for number in range(len(document)):
                page = document[number]
                found += _page(page, number)
                page.close()
            return found
    except pypdfium2.PdfiumError as error:
        said = str(error)
        protected = "assword" in said or "ecurity" in said
        reason = "the PDF is protected by a password" if protected else f"not a PDF, or broken: {said}"
        raise RowError("unreadable_file", reason) from error


def _page(page: Any, number: int) -> Iterator[Line | Table]:
    turned = _Turned(page)
    grids = _grids(_edges(page, turned))
    inside: dict[int, list[Word]] = {}
    places: list[int | Line] = []
    for words in _lines(_words(page, turned)):
        free = []
        for word in words:
            grid = next((n for n, grid in enumerate(grids) if grid.holds(word)), None)
            if grid is None:
                free.append(word)
            else:
                if grid not in inside:
                    places.append(grid)
                inside.setdefault(grid, []).append(word)
        if free:
            places.append(Line(number, tuple(free), _cells(free), turned.height - free[0].y))
    for place in places:
        yield place if isinstance(place, Line) else Table(number, grids[place].rows(inside[place]))


class _Turned:
    """Where points of a page are when it is shown: from its left and top edge, whichever way it is turned."""

    def __init__(self, page: Any) -> None:
        self.angle = page.get_rotation()
        self._left, self._bottom, self._right, self._top = page.get_bbox()
        wide, high = self._right - self._left, self._top - self._bottom
        self.height = wide if self.angle in (90, 270) else high

    def point(self, x: float, y: float) -> tuple[float, float]:
        """(from the left, from the top)."""
        if self.angle == 90:
            return y - self._bottom, x - self._left
        if self.angle == 180:
            return self._right - x, y - self._bottom
        if self.angle == 270:
            return self._top - y, self._right - x
        return x - self._left, self._top - y


def _words(page: Any, turned: _Turned) -> Iterator[Word]:
    """The words of a page in the order in which the file has them; those at an angle (watermarks) are left out."""
    from pypdfium2 import raw

    text_page = page.get_textpage()
    text, letters = text_page.raw, ""
    x, y, right, left, bottom, top = (ctypes.c_double() for _ in range(6))
    box = [ctypes.byref(value) for value in (left, right, bottom, top)]
    at = ctypes.byref(x), ctypes.byref(y)
    first = end = last = (0.0, 0.0)
    size, style = 0.0, (False, False)
    for index in range(text_page.count_chars() + 1):
        code = raw.FPDFText_GetUnicode(text, index) if index < text_page.count_chars() else 32
        letter = chr(code)
        blank = letter.isspace() or code == 0
        if not blank:
            raw.FPDFText_GetCharOrigin(text, index, *at)
            raw.FPDFText_GetCharBox(text, index, *box)
            last = turned.point(x.value, y.value)
            blank = bool(letters) and (abs(last[1] - first[1]) > 0.4 * size or first[0] - last[0] > 3 * size)
        if letters and blank:
            yield Word(letters.replace(_HYPHEN, "-"), first[0], end[0], first[1], size, *style)
            letters = ""
        if letter.isspace() or code == 0:
            continue
        if not letters:
            if _is_slanted(raw, text, index, turned):
                continue
            first, size, style = last, _size(raw, text, index), _style(raw, text, index)
        letters += letter
        end = max(turned.point(left.value, y.value), turned.point(right.value, y.value))
    text_page.close()


def _is_slanted(raw: Any, text: Any, index: int, turned: _Turned) -> bool:
    angle = math.degrees(raw.FPDFText_GetCharAngle(text, index))
    return abs((angle - turned.angle + 180) % 360 - 180) > 5 and abs((angle + turned.angle + 180) % 360 - 180) > 5


def _size(raw: Any, text: Any, index: int) -> float:
    """The type size as it is shown, in half points."""
    matrix = raw.FS_MATRIX()
    raw.FPDFText_GetMatrix(text, index, ctypes.byref(matrix))
    return round(2 * raw.FPDFText_GetFontSize(text, index) * math.hypot(matrix.c, matrix.d)) / 2 or 1.0


def _style(raw: Any, text: Any, index: int) -> tuple[bool, bool]:
    """(bold, typewritten), by the font's weight, name and flags."""
    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    raw.FPDFText_GetFontInfo(text, index, name, len(name), ctypes.byref(flags))
    called = name.value.decode("utf-8", "replace")
    bold = raw.FPDFText_GetFontWeight(text, index) >= _BOLD_WEIGHT or _BOLD.search(called) is not None
    return bold, bool(flags.value & _FIXED_PITCH) or _TYPEWRITER.search(called) is not None


def _lines(words: Iterator[Word]) -> Iterator[list[Word]]:
    """Words that follow each other on one baseline; a step back begins a new line, as in the next column."""
    line: list[Word] = []
    for word in words:
        if line and (abs(word.y - line[0].y) > 0.4 * max(word.size, line[0].size) or word.x < line[-1].x):
            yield line
            line = []
        line.append(word)
    if line:
        yield line


def _cells(words: Sequence[Word]) -> tuple[str, ...]:
    """The text of a line in parts, divided where gaps are wide and not merely spread to fill the line."""
    gaps = [right.x - left.right for left, right in itertools.pairwise(words)]
    spread = len(gaps) > 1 and max(gaps) < 1.3 * min(gaps)
    cells: list[str] = []
    current = [words[0].text]
    for word, gap in zip(words[1:], gaps, strict=True):
        is_marker = len(current) == 1 and not cells and not re.search(r"\w{3}", current[0])
        if gap > 1.2 * word.size and not spread and not is_marker:
            cells.append(" ".join(current))
            current = []
        current.append(word.text)
    return (*cells, " ".join(current))


@dataclass(frozen=True, slots=True)
class _Edge:
    """A ruled line, or the side of a box: from one end to the other, in points from the left and the top."""

    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: _Edge) -> bool:
        return (
            self.left <= other.right + _NEAR
            and other.left <= self.right + _NEAR
            and self.top <= other.bottom + _NEAR
            and other.top <= self.bottom + _NEAR
        )

    @property
    def is_upright(self) -> bool:
        return self.right - self.left <= _THIN


def _edges(page: Any, turned: _Turned) -> list[_Edge]:
    from pypdfium2 import raw

    found = []
    for shape in page.get_objects(filter=[raw.FPDF_PAGEOBJ_PATH], max_depth=4):
        left, bottom, right, top = shape.get_bounds()
        one, two = turned.point(left, bottom), turned.point(right, top)
        (x1, x2), (y1, y2) = sorted((one[0], two[0])), sorted((one[1], two[1]))
        if x2 - x1 <= _THIN or y2 - y1 <= _THIN:
            found.append(_Edge(x1, y1, x2, y2))
        else:
            found += [_Edge(x1, y1, x2, y1), _Edge(x1, y2, x2, y2), _Edge(x1, y1, x1, y2), _Edge(x2, y1, x2, y2)]
    return [edge for edge in found if max(edge.right - edge.left, edge.bottom - edge.top) > _NEAR]


@dataclass(frozen=True, slots=True)
class _Grid:
    """The rules of a table: where its columns and its rows begin and end."""

    columns: tuple[float, ...]
    lines: tuple[float, ...]

    def holds(self, word: Word) -> bool:
        middle, height = (word.x + word.right) / 2, word.y - word.size / 3
        return self.columns[0] < middle < self.columns[-1] and self.lines[0] < height < self.lines[-1]

    def rows(self, words: Sequence[Word]) -> tuple[tuple[tuple[str, ...], ...], ...]:
        cells: dict[tuple[int, int], list[Word]] = {}
        for word in words:
            row = bisect(self.lines, word.y - word.size / 3) - 1
            cells.setdefault((row, bisect(self.columns, (word.x + word.right) / 2) - 1), []).append(word)
        columns = sorted({column for _, column in cells})
        return tuple(
            tuple(
                tuple(" ".join(w.text for w in line) for line in _lines(iter(cells.get((row, n), [])))) for n in columns
            )
            for row in sorted({row for row, _ in cells})
        )


_MOST_EDGES = 4000


def _grids(edges: list[_Edge]) -> list[_Grid]:
    """Tables among ruled lines: those that touch each other and make two columns and two rows or more."""
    groups: list[list[_Edge]] = []
    for edge in edges[:_MOST_EDGES]:  # a page with more is a drawing
        near = [group for group in groups if any(edge.touches(other) for other in group)]
        groups = [group for group in groups if group not in near]
        groups.append([edge, *itertools.chain.from_iterable(near)])
    found = []
    for group in groups:
        columns = _clustered([edge.left for edge in group if edge.is_upright])
        lines = _clustered([edge.top for edge in group if not edge.is_upright])
        if len(columns) > 2 and len(lines) > 2:
            found.append(_Grid(columns, lines))
    return found


def _clustered(values: list[float]) -> tuple[float, ...]:
    """Values that are nearly the same as one, in order."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value - found[-1] > _NEAR:
            found.append(value)
    return tuple(found)
