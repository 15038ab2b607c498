"""A PDF -> the lines of its pages as a reader sees them, each with its place and type size; ruled tables as tables."""

from __future__ import annotations

import itertools
import logging
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtuner_kit.dataset.defects import RowError

if TYPE_CHECKING:
    from pdfplumber.page import Page

# Names of fonts; those of TeX end in a size: `CMBX10`, `SFTT1000`.
_BOLD = re.compile(r"bold|black|heavy|semib|demi|medi$|bx\d", re.I)
_TYPEWRITER = re.compile(r"mono|courier|consol|typewriter|menlo|cascadia|tt\d", re.I)
# Words are told apart by gaps, in parts of the type size, in the order of the file: column after column.
_WORDS: dict[str, Any] = {"use_text_flow": True, "x_tolerance_ratio": 0.15, "y_tolerance_ratio": 0.4}

_MOST_CROSSINGS = 3000  # a page with more is a drawing, in which tables are looked for in vain, for minutes


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


def read(path: Path, most: int = 0) -> list[Line | Table]:
    """The lines and tables of all pages, or of the first `most`, in their order. Raises RowError for a broken file."""
    import pdfplumber
    from pdfminer.pdfdocument import PDFPasswordIncorrect

    logging.getLogger("pdfminer").setLevel(logging.ERROR)  # it warns of every oddity of a font
    try:
        with pdfplumber.open(path) as document:
            return [block for page in document.pages[: most or None] for block in _page(page)]
    except Exception as error:  # of many types, whatever a broken file makes fail
        protected = any(isinstance(cause, PDFPasswordIncorrect) for cause in error.args)
        reason = "the PDF is protected by a password" if protected else f"not a PDF, or broken: {error}"
        raise RowError("unreadable_file", reason) from error


def _page(page: Page) -> Iterator[Line | Table]:
    page = _turned(page)
    upright = page.filter(lambda item: item["object_type"] != "char" or abs(_angle(item)) < 5)
    if len({(letter["text"], round(letter["x0"]), round(letter["top"])) for letter in upright.chars}) < len(
        upright.chars
    ):
        upright = upright.dedupe_chars()  # printed twice to look bold
    found = upright.find_tables() if _crossings(page) < _MOST_CROSSINGS else []
    tables = [table for table in found if len(table.rows) > 1 and len(table.columns) > 1]
    begun: set[int] = set()
    words = upright.extract_words(return_chars=True, **_WORDS)
    for line in _lines(map(_word, words)):
        free = []
        for word in line:
            place = next((n for n, table in enumerate(tables) if _holds(table.bbox, word)), None)
            if place is None:
                free.append(word)
            elif place not in begun:
                begun.add(place)
                rows = tables[place].extract(**_WORDS)
                cells = (tuple(tuple((cell or "").splitlines()) for cell in row) for row in rows)
                yield Table(page.page_number, tuple(cells))
        if free:
            yield Line(page.page_number, tuple(free), _cells(free), float(page.height) - free[0].y)
    page.close()


def _crossings(page: Page) -> int:
    """Of how many places there may be corners of cells."""
    edges = {(edge["orientation"], round(edge["x0" if edge["orientation"] == "v" else "top"])) for edge in page.edges}
    return math.prod(Counter(side for side, _ in edges).values())


def _turned(page: Page) -> Page:
    """The page with most of its text upright, whichever way it is shown: wide tables often lie on their side."""
    from pdfplumber.page import Page

    sides = Counter(round(_angle(letter) / 90) % 4 for letter in page.chars)
    side = sides.most_common(1)[0][0] if sides else 0
    if not side:
        return page
    sheet = page.page_obj
    sheet.rotate = sheet.attrs["Rotate"] = (sheet.rotate + 90 * side) % 360
    return Page(page.pdf, sheet, page.page_number)


def _angle(letter: dict[str, Any]) -> float:
    """Degrees anticlockwise from the line of upright text."""
    return math.degrees(math.atan2(letter["matrix"][1], letter["matrix"][0]))


def _word(word: dict[str, Any]) -> Word:
    letter = word["chars"][0]
    font, size = str(letter["fontname"]), round(2 * letter["size"]) / 2 or 1.0
    bold, typewritten = bool(_BOLD.search(font)), bool(_TYPEWRITER.search(font))
    return Word(word["text"], word["x0"], word["x1"], word["bottom"], size, bold, typewritten)


def _holds(box: tuple[float, float, float, float], word: Word) -> bool:
    left, top, right, bottom = box
    return left < (word.x + word.right) / 2 < right and top < word.y - word.size / 2 < bottom


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
        if gap > word.size and not spread and not is_marker:
            cells.append(" ".join(current))
            current = []
        current.append(word.text)
    return (*cells, " ".join(current))
