"""Lines of pages -> sections: what pages repeat is left out, headings are told by their type, paragraphs made whole."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmtuner_kit.dataset import markdown
from llmtuner_kit.dataset.pages import Block, Line, Table
from llmtuner_kit.dataset.records import Passage

_CONTENTS = re.compile(r"(?:\.\s?){4,}\s*[\divx]*$|^[.\s]{4,}[\divx]+$")
_BULLET = re.compile(r"^[•●▪■◦‣–—*\uf0b7\uf0a7-]\s+(?=\S)|^[•●▪■◦‣\uf0b7\uf0a7]")
_NUMBERED = re.compile(r"^\d{1,2}[.)]\s+\S")
_CHAPTER = re.compile(r"^\d{1,2}(?:\.\d+)*[.)]?\s+(?=\S)")
_CAPTION = re.compile(r"^(?:fig|figure|table|abb|abbildung|tab|tabelle|tableau|tabla)\b\.?\s*\d", re.I)
_SENTENCE_END = (".", "!", "?", ":", "…", "。", "”", "“", '"')
# An end of a line after which a hyphen stands for a word left out: `supply- and return pipes`.
_JOINS = frozenset({"and", "or", "und", "oder", "sowie", "bzw.", "et", "ou", "y", "o", "e", "of", "en"})
_OUTERMOST = 3


def sections(blocks: Sequence[Block]) -> Iterator[Passage]:
    """The sections of a document with their headings, outermost first; one without headings is one section."""
    lines = _without_furniture(blocks)
    style = _Style.of(lines)
    known, pitch = _known_words(lines), _pitch(lines, style.size)
    path: list[tuple[int, str]] = []
    body: list[Block] = []
    headings = _headings(lines, style)
    numbered = _numbered_levels(headings)
    skipped: set[int] = set()
    for place, block in enumerate(lines):
        if place in headings:
            yield from _closed(path, body, known, pitch)
            level, titles = headings[place]
            title = _whole(titles, known)
            title = _CHAPTER.sub("", title) if level in numbered else title
            path, body = [*(item for item in path if item[0] < level), (level, title)], []
            skipped = set(range(place + 1, place + len(titles)))
        elif place not in skipped:
            body.append(block)
    yield from _closed(path, body, known, pitch)


def _closed(path: list[tuple[int, str]], body: list[Block], known: frozenset[str], pitch: float) -> Iterator[Passage]:
    text = markdown.joined(list(_paragraphs(body, known, pitch))).strip()
    if text:
        yield Passage(text, tuple(title for _, title in path))


def _without_furniture(blocks: Sequence[Block]) -> list[Block]:
    """All but what pages have at the same height at their edges: titles, page numbers; and lines of a table of contents."""
    edges: dict[tuple[str, int], list[tuple[str, int]]] = {}
    places: dict[int, list[tuple[str, int]]] = {}
    pages: dict[int, list[Line]] = {}
    for block in blocks:
        if isinstance(block, Line):
            pages.setdefault(block.page, []).append(block)
    for number, lines in pages.items():
        heights = sorted({round(line.y) for line in lines})
        outer = {*heights[:_OUTERMOST], *heights[-_OUTERMOST:]}
        for line in lines:
            if round(line.y) in outer:
                for band in (("top", round(line.y)), ("bottom", round(line.from_bottom))):
                    places.setdefault(id(line), []).append(band)
                    edges.setdefault(band, []).extend((_same(cell), number) for cell in line.cells)
    furniture = {band for band, found in edges.items() if _is_furniture(found, len(pages))}
    return [
        block
        for block in blocks
        if isinstance(block, Table)
        or not (furniture.intersection(places.get(id(block), ())) or _CONTENTS.search(block.text))
    ]


def _is_furniture(found: list[tuple[str, int]], pages: int) -> bool:
    """Whether what stands at one height is on two pages or more, on most of the pages that have something there.

    Titles of chapters change every few pages, and left pages may have other lines than right ones.
    """
    on: dict[str, set[int]] = {}
    for text, page in found:
        on.setdefault(text, set()).add(page)
    repeated = {page for text, page in found if len(on[text]) > 1}
    return len(repeated) * 2 > len({page for _, page in found}) and len(repeated) >= max(2, 0.4 * pages)


def _same(text: str) -> str:
    """A running line without what changes from page to page: its numbers."""
    text = re.sub(r"\d+", "#", text.lower().strip())
    return "#" if re.fullmatch(r"[-–|\s]*[ivxlc]+[-–|\s]*", text) else text


@dataclass(frozen=True, slots=True)
class _Style:
    """The type most of a document is set in, and the larger ones of its headings, largest first."""

    size: float
    bold: bool
    larger: tuple[float, ...] = ()

    @classmethod
    def of(cls, lines: Sequence[Block]) -> _Style:
        letters: Counter[tuple[float, bool]] = Counter()
        for line in lines:
            if isinstance(line, Line):
                letters[line.size, line.bold] += len(line.text)
        if not letters:
            return cls(1.0, bold=False)
        (size, bold), _ = letters.most_common(1)[0]
        return cls(size, bold, tuple(sorted({other for other, _ in letters if other >= 1.12 * size}, reverse=True)))

    def level(self, line: Line) -> int:
        """Which level of heading a line may be, from 1; 0 when it is plain text."""
        if len(line.cells) > 1 or len(line.text) > 120 or not re.search(r"[^\W\d_]", line.text):
            return 0
        if line.size in self.larger:
            return self.larger.index(line.size) + 1
        short = len(line.text) <= 80 and not line.text.endswith((".", ",", ";", ":", "!"))
        marked = _CAPTION.match(line.text) or _BULLET.match(line.text)
        bold = line.bold and not self.bold and line.size >= 0.95 * self.size
        return len(self.larger) + 1 if bold and short and not marked else 0


def _headings(lines: Sequence[Block], style: _Style) -> dict[int, tuple[int, list[str]]]:
    """Where headings begin: their level and their lines. Bold words said again and again (Note, Warning) are none."""
    found: dict[int, tuple[int, list[str]]] = {}
    start, last = -1, None
    for place, block in enumerate(lines):
        if isinstance(block, Line) and last is not None and _goes_on(block, last):
            found[start][1].append(block.text)
            last = block
        elif isinstance(block, Line) and (level := style.level(block)):
            start, last = place, block
            found[place] = level, [block.text]
        else:
            last = None
    lowest = len(style.larger) + 1
    labels = Counter(titles[0] for level, titles in found.values() if level == lowest)
    return {
        place: (level, titles)
        for place, (level, titles) in found.items()
        if len(titles) <= 3 and not (level == lowest and (len(titles) > 1 or labels[titles[0]] > 2))
    }


def _numbered_levels(headings: dict[int, tuple[int, list[str]]]) -> set[int]:
    """The levels most of whose headings begin with the number of a chapter."""
    all_of = Counter(level for level, _ in headings.values())
    with_number = Counter(level for level, titles in headings.values() if _CHAPTER.match(" ".join(titles)))
    return {level for level, count in with_number.items() if count * 2 > all_of[level]}


def _goes_on(line: Line, last: Line) -> bool:
    """Whether a heading goes on in the next line."""
    same = (line.page, line.size, line.bold) == (last.page, last.size, last.bold)
    return same and 0 < line.y - last.y < 1.6 * line.size


def _known_words(lines: Sequence[Block]) -> frozenset[str]:
    """The words of a document that no line end divides, in small letters."""
    found: set[str] = set()
    for line in lines:
        if isinstance(line, Line):
            found.update(re.sub(r"^\W+|\W+$", "", word.text).lower() for word in line.words[:-1])
            found.add(re.sub(r"\W+$", "", line.words[-1].text).lower() if not line.text.endswith("-") else "")
    return frozenset(found)


def _whole(lines: Sequence[str], known: frozenset[str]) -> str:
    """Lines as one text; words that line ends divide are made whole."""
    text = ""
    for line in lines:
        text = _joined(text, line.strip(), known) if text else line.strip()
    return text.replace("\xad", "")


def _joined(text: str, line: str, known: frozenset[str]) -> str:
    if not line or text[-1:] not in ("-", "\u2010", "\xad") or text[-2:-1].isspace() or len(text) < 2:
        return f"{text} {line}" if line else text
    if text.endswith("\xad"):
        return text[:-1] + line
    before, after = text.split()[-1][:-1], line.split()[0]
    if after.lower() in _JOINS:
        return f"{text} {line}"
    whole = (re.sub(r"^\W+", "", before) + re.sub(r"\W+$", "", after)).lower()
    apart = re.sub(r"^\W+", "", f"{before}-") + re.sub(r"\W+$", "", after)
    if apart.lower() in known:
        return text + line
    if whole in known:
        return text[:-1] + line
    # Not seen elsewhere: compounds of several parts and what goes on with a capital or a digit keep their hyphen.
    return text[:-1] + line if after[:1].islower() and "-" not in before else text + line


def _paragraphs(body: Sequence[Block], known: frozenset[str], pitch: float) -> Iterator[str]:
    """Paragraphs, items, tables and code, each as it is written in Markdown."""
    right = max((block.right for block in body if isinstance(block, Line)), default=0.0)
    for kind, group in itertools.groupby(body, key=_kind):
        blocks = list(group)
        if kind == "rows":
            yield from _tables(blocks, known)
            continue
        lines = [block for block in blocks if isinstance(block, Line)]
        if kind == "code":
            yield _code(lines)
            continue
        current = lines[:1]
        for line in lines[1:]:
            if _begins(line, current[-1], pitch, right):
                yield _item(_whole([part.text for part in current], known))
                current = []
            current.append(line)
        yield _item(_whole([part.text for part in current], known))


def _kind(block: Block) -> str:
    if isinstance(block, Line) and block.typewritten:
        return "code"
    return "rows" if isinstance(block, Table) or len(block.cells) > 1 else "text"


def _tables(blocks: Sequence[Block], known: frozenset[str]) -> Iterator[str]:
    """Tables with as many columns that follow each other are one, as where a page ends within; its header stays once."""
    rows: list[list[str]] = []
    for block in blocks:
        if isinstance(block, Table):
            new = [[_whole(cell, known) for cell in row] for row in block.rows]
        else:
            new = [list(block.cells)]
        if rows and len(rows[-1]) != len(new[0]):
            yield _table(rows)
            rows = []
        rows += new[1:] if rows and new[0] == rows[0] else new
    yield _table(rows)


def _table(rows: list[list[str]]) -> str:
    return markdown.table(rows) if len(rows) > 1 else " | ".join(rows[0])


def _code(lines: Sequence[Line]) -> str:
    edge = min(line.x for line in lines)
    wide = max((line.right - line.x) / max(1, len(line.text)) for line in lines) or 1.0
    return "\n".join(["```", *(" " * round((line.x - edge) / wide) + "  ".join(line.cells) for line in lines), "```"])


def _begins(line: Line, last: Line, pitch: float, right: float) -> bool:
    """Whether a line begins a paragraph."""
    if _BULLET.match(line.text) or _NUMBERED.match(line.text):
        return True
    ended = last.text.endswith(_SENTENCE_END)
    step = line.y - last.y
    if abs(line.size - last.size) > 1:
        return True
    if line.page != last.page or step < 0:
        return ended and not line.text[:1].islower()
    if step > 1.35 * pitch:
        return True
    short = last.right < right - 0.2 * (right - last.x)
    return ended and short and not line.text[:1].islower()


def _pitch(lines: Sequence[Block], size: float) -> float:
    """The usual distance from line to line of the type that a document is set in."""
    plain = [line for line in lines if isinstance(line, Line) and line.size == size]
    steps = [two.y - one.y for one, two in itertools.pairwise(plain) if one.page == two.page and two.y > one.y]
    return statistics.median_low(steps) if steps else 1.4 * size


def _item(text: str) -> str:
    """A paragraph, or with the sign of its bullet an item as Markdown has it."""
    return _BULLET.sub("- ", text, count=1)
