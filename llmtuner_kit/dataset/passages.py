"""Documents -> passages of a token budget, cut between paragraphs, then sentences, and only then anywhere."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

from llmtuner_kit.dataset.records import Passage

Measure = Callable[[list[str]], list[int]]
"""Texts -> their lengths in tokens."""

_PARAGRAPH = re.compile(r"\n[ \t]*\n+")
# The end of a sentence: its mark, what closes it, then a blank before something that may begin a sentence.
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9À-ÞΑ-ΩА-Я])|(?<=[。！？])")
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r"^\s*(```|~~~)")
_LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\([^()\s]*\)")
_UNDERLINE = re.compile(r"^(=+|-+)[ \t]*$")
_RST_UNDERLINE = re.compile(r"^([=\-`:'\"~^_*+#<>])\1{2,}[ \t]*$")


def cut(text: str, budget: int, measure: Measure) -> list[str]:
    """Cut a text into passages of at most `budget` tokens (a single long word may exceed it).

    Passages are balanced: a text of 1.1 budgets gives two halves, not a full passage and a scrap.
    """
    pieces = [piece for piece in (part.strip("\n") for part in _PARAGRAPH.split(text)) if piece.strip()]
    lengths = measure(pieces)
    units: list[tuple[str, int, str]] = []
    for piece, length in zip(pieces, lengths, strict=True):
        if length <= budget:
            units.append((piece, length, "\n\n"))
        else:
            units += _broken_down(piece, budget, measure)
    return _packed(units, budget)


def _broken_down(paragraph: str, budget: int, measure: Measure) -> list[tuple[str, int, str]]:
    """A paragraph as lines and sentences, and a sentence that is too long as runs of words."""
    lines = paragraph.strip("\n").split("\n")
    if lines[0].startswith("|") and len(lines) > 2:
        return _in_frames(lines[2:], lines[:2], [], budget, measure)
    if len(lines) > 2 and _FENCE.match(lines[0]) and _FENCE.match(lines[-1]):
        return _in_frames(lines[1:-1], lines[:1], lines[-1:], budget, measure)
    units: list[tuple[str, int, str]] = []
    for line in lines:
        sentences = [sentence for sentence in _SENTENCE.split(line) if sentence and sentence.strip()]
        for sentence, length in zip(sentences, measure(sentences), strict=True):
            if length <= budget:
                units.append((sentence.rstrip(), length, " "))
                continue
            words = sentence.split()
            if len(words) < 2:
                size = max(1, len(sentence) * budget // length)
                words = [sentence[start : start + size] for start in range(0, len(sentence), size)]
            units += [(word, count, " ") for word, count in zip(words, measure(words), strict=True)]
        if sentences:
            units[-1] = (*units[-1][:2], "\n")
    if units:
        units[-1] = (*units[-1][:2], "\n\n")
    return units


def _in_frames(
    lines: list[str], above: list[str], below: list[str], budget: int, measure: Measure
) -> list[tuple[str, int, str]]:
    """A table or a block of code in parts, each with what stands above it (the header) and below it."""
    around = sum(measure([*above, *below]))
    units: list[tuple[str, int, str]] = []
    part: list[str] = []
    length = around
    for line, size in zip(lines, measure(lines), strict=True):
        if part and length + size > budget:
            units.append(("\n".join([*above, *part, *below]), length, "\n\n"))
            part, length = [], around
        part.append(line)
        length += size
    return [*units, ("\n".join([*above, *part, *below]), length, "\n\n")]


def _packed(units: list[tuple[str, int, str]], budget: int) -> list[str]:
    """Join units up to the budget; each unit carries the separator that follows it in its passage.

    What ends with a colon stays with what it announces where both fit.
    """
    total = sum(length for _, length, _ in units)
    if not units:
        return []
    goal = min(budget, -(-total // -(-total // budget)) * 1.15) if total > budget else budget
    passages: list[str] = []
    current: list[tuple[str, int, str]] = []
    for unit in units:
        length = sum(size for _, size, _ in current)
        if current and (length + unit[1] > budget or length >= goal):
            announces = len(current) > 1 and current[-1][0].endswith(":") and current[-1][1] + unit[1] <= budget
            carried = [current.pop()] if announces else []
            passages.append(_text(current))
            current = carried
        current.append(unit)
    return [*passages, _text(current)]


def _text(units: list[tuple[str, int, str]]) -> str:
    return "".join(text + following for text, _, following in units[:-1]) + units[-1][0]


def markdown_sections(text: str) -> Iterator[Passage]:
    """The sections of a Markdown text, each with its headings; code blocks are not searched for headings."""
    path: list[tuple[int, str]] = []
    body: list[str] = []
    fenced = False
    lines = _without_front_matter(text).split("\n")
    for number, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        heading = None if fenced else _heading(line, lines[number + 1] if number + 1 < len(lines) else "")
        if heading:
            yield from _section(path, _without_menus(body))
            level, title = heading
            path = [*(item for item in path if item[0] < level), (level, title)]
            body = []
        elif not (not fenced and _UNDERLINE.match(line) and not body and path and lines[number - 1].strip()):
            body.append(line)
    yield from _section(path, _without_menus(body))


def rst_sections(text: str) -> Iterator[Passage]:
    """The sections of a reStructuredText document, by its underlined titles in order of first use."""
    styles: list[str] = []
    path: list[tuple[int, str]] = []
    body: list[str] = []
    lines = text.split("\n")
    skip = -1
    for number, line in enumerate(lines):
        if number <= skip:
            continue
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if line.strip() and _RST_UNDERLINE.match(following) and len(following.rstrip()) >= len(line.rstrip()):
            if _RST_UNDERLINE.match(line):
                continue
            yield from _section(path, body)
            style = following[0]
            if style not in styles:
                styles.append(style)
            level = styles.index(style) + 1
            path = [*(item for item in path if item[0] < level), (level, line.strip())]
            body, skip = [], number + 1
        elif not _RST_UNDERLINE.match(line):
            body.append(line)
    yield from _section(path, body)


def _heading(line: str, following: str) -> tuple[int, str] | None:
    if match := _HEADING.match(line):
        return len(match.group(1)), match.group(2)
    if (
        line.strip()
        and _UNDERLINE.match(following)
        and len(following.strip()) >= 3
        and not line.startswith((" ", "-", "|"))
    ):
        return (1 if following[0] == "=" else 2), line.strip()
    return None


def _section(path: list[tuple[int, str]], body: list[str]) -> Iterator[Passage]:
    text = "\n".join(body).strip()
    if text:
        yield Passage(text, tuple(title for _, title in path))


def _without_menus(lines: list[str]) -> list[str]:
    """All but the blocks that are hardly more than links: menus and tables of contents, as pages of a site have them."""
    kept: list[str] = []
    fenced = False
    for blank, block in itertools.groupby(lines, key=lambda line: not line.strip()):
        found = list(block)
        fences = sum(1 for line in found if _FENCE.match(line))
        if blank or fenced or fences or not _is_menu("\n".join(found)):
            kept += found
        fenced ^= fences % 2 == 1
    return kept


def _is_menu(block: str) -> bool:
    links = _LINK.findall(block)
    linked = sum(map(str.isalnum, "".join(links)))
    return len(links) > 1 and linked > 0.75 * sum(map(str.isalnum, _LINK.sub(r"\1", block)))


def _without_front_matter(text: str) -> str:
    text = text.replace("\r\n", "\n")
    if text.startswith("---\n") and (end := text.find("\n---\n", 4)) > 0:
        return text[end + 5 :]
    return text
