"""A PDF -> the lines of its pages as a reader sees them, each with its place and type size; ruled tables as tables."""

from __future__ import annotations

import functools
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


Block = Line | Table


class Document:
    """A PDF that is open, to be read in stretches: what it takes long to find, its pages, is found once."""

    def __init__(self, path: Path) -> None:
        """Raises RowError for a broken or protected file."""
        import pdfplumber
        from pdfminer.pdfpage import PDFPage

        logging.getLogger("pdfminer").setLevel(logging.ERROR)  # it warns of every oddity of a font
        self.path = path
        self._file = path.open("rb")
        try:
            self._pdf = pdfplumber.open(self._file)
        except Exception as error:
            self._file.close()
            raise _unreadable(error) from error
        self._found: list[PDFPage] = []
        self._more = PDFPage.create_pages(self._pdf.doc)

    def blocks(self, start: int = 0, end: int = 0) -> list[Block]:
        """The lines and tables of the pages from `start`, counted from 0, up to `end` or the last, in their order."""
        from llmtuner_kit.dataset.light_page import LightPage

        try:
            self._found += itertools.islice(self._more, end - len(self._found)) if end else self._more
            pages = enumerate(self._found[start : end or None], start + 1)
            return [block for number, page in pages for block in _page(LightPage(self._pdf, page, number))]
        except Exception as error:  # of many types, whatever a broken file makes fail
            raise _unreadable(error) from error

    def close(self) -> None:
        self._file.close()


def count(path: Path) -> int:
    """How many pages a PDF says that it has; of one that cannot be opened 0."""
    from pdfminer.pdfdocument import PDFDocument
    from pdfminer.pdfparser import PDFParser
    from pdfminer.pdftypes import int_value, resolve1

    with path.open("rb") as file:
        try:
            return int_value(resolve1(PDFDocument(PDFParser(file)).catalog["Pages"])["Count"])
        except Exception:  # noqa: BLE001 (of many types, whatever a broken file makes fail; reading it will tell)
            return 0


def _unreadable(error: Exception) -> RowError:
    from pdfminer.pdfdocument import PDFPasswordIncorrect

    protected = any(isinstance(cause, PDFPasswordIncorrect) for cause in error.args)
    reason = "the PDF is protected by a password" if protected else f"not a PDF, or broken: {error}"
    return RowError("unreadable_file", reason)


def _page(page: Page) -> Iterator[Block]:
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
    from llmtuner_kit.dataset.light_page import LightPage

    sides = Counter(round(_angle(letter) / 90) % 4 for letter in page.chars)
    side = sides.most_common(1)[0][0] if sides else 0
    if not side:
        return page
    sheet = page.page_obj
    sheet.rotate = sheet.attrs["Rotate"] = (sheet.rotate + 90 * side) % 360
    return LightPage(page.pdf, sheet, page.page_number)


def _angle(letter: dict[str, Any]) -> float:
    """Degrees anticlockwise from the line of upright text."""
    return math.degrees(math.atan2(letter["matrix"][1], letter["matrix"][0]))


def _word(word: dict[str, Any]) -> Word:
    letter = word["chars"][0]
    size = round(2 * letter["size"]) / 2 or 1.0
    return Word(word["text"], word["x0"], word["x1"], word["bottom"], size, *_face(str(letter["fontname"])))


@functools.lru_cache(1000)
def _face(font: str) -> tuple[bool, bool]:
    """Whether a font is bold, and whether all its letters are of one width."""
    return bool(_BOLD.search(font)), bool(_TYPEWRITER.search(font))


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
