"""A Word document -> sections: paragraphs under their headings, numbered lists with their numbers, tables as tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtuner_kit.dataset import markdown
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.records import Passage

if TYPE_CHECKING:
    from docx.table import Table
    from docx.text.paragraph import Paragraph

_HEADING = re.compile(r"(?:Heading|Überschrift|Titre) (\d)|(Title)")
# What holds paragraphs or words and is passed over by python-docx, but for a table of contents.
_HOLDERS = """.//w:ins | .//w:moveTo | .//w:smartTag | .//w:customXml | .//w:sdt[
    not(w:sdtPr/w:docPartObj/w:docPartGallery[@w:val='Table of Contents'])]"""
_BOXES = ".//w:txbxContent[not(ancestor::*[local-name() = 'Fallback'])]"
_LOWEST = 10  # the level of headings that are told only by being bold


def sections(path: Path) -> Iterator[Passage]:
    """The sections of a document with their headings. Raises RowError when it cannot be read."""
    import docx
    from docx.table import Table

    try:
        document = docx.Document(str(path))
        _unwrap(document.element.body)
        blocks = list(document.iter_inner_content())
    except Exception as error:
        raise RowError("unreadable_file", f"not a Word document: {type(error).__name__}: {error}") from error
    top: list[tuple[int, str]] = []
    body: list[str] = []
    numbers: Counter[tuple[str, int]] = Counter()
    styles: dict[str | None, Any] = {}  # by their name in the paragraph: python-docx looks through all for each
    for block in blocks:
        if isinstance(block, Table):
            body.append(_table(block))
            continue
        text = block.text.strip()
        if not text:
            continue
        if (named := block._p.style) not in styles:
            styles[named] = block.style
        level = _level(block, styles[named], text)
        if level is None:
            body.append(_marker(block, styles[named], numbers) + text)
            continue
        yield from _closed(top, body)
        numbers.clear()
        top, body = [*(item for item in top if item[0] < level), (level, " ".join(text.split()))], []
    yield from _closed(top, body)


def _unwrap(body: Any) -> None:
    """Text in a content control, or inserted as a tracked change, is text like any other; a box follows its paragraph."""
    from docx.oxml.ns import qn

    for holder in body.xpath(_HOLDERS):
        content = holder.find(qn("w:sdtContent")) if holder.tag == qn("w:sdt") else holder
        for child in list(content if content is not None else ()):
            holder.addprevious(child)
        holder.getparent().remove(holder)
    for box in reversed(body.xpath(_BOXES)):
        paragraph = next(box.iterancestors(qn("w:p")))
        for child in reversed(list(box)):
            paragraph.addnext(child)


def _closed(path: list[tuple[int, str]], body: list[str]) -> Iterator[Passage]:
    if any(body):
        yield Passage(markdown.joined([text for text in body if text]), tuple(title for _, title in path))


def _level(paragraph: Paragraph, style: Any, text: str) -> int | None:
    """The level of a heading: by its style or one that it is based on, or as a short line all in bold."""
    based_on = style
    while based_on is not None:
        if heading := _HEADING.fullmatch(based_on.name or ""):
            return int(heading.group(1) or 0)
        based_on = based_on.base_style
    bold = all(run.bold for run in paragraph.runs if run.text.strip())
    plain = len(text) <= 80 and not text.endswith((".", ",", ";", ":")) and _numbering(paragraph, style) is None
    return _LOWEST if bold and plain and paragraph.runs else None


def _table(table: Table) -> str:
    """Merged cells say their text once."""
    rows: list[list[str]] = []
    seen: set[Any] = set()
    for row in table.rows:
        rows.append([])
        for cell in row.cells:
            rows[-1].append("" if cell._tc in seen else cell.text)
            seen.add(cell._tc)
    return markdown.table(rows)


def _marker(paragraph: Paragraph, style: Any, numbers: Counter[tuple[str, int]]) -> str:
    """What Word draws before an item of a list: `- ` or its number; nothing before other paragraphs."""
    found = _numbering(paragraph, style)
    if found is None:
        return ""
    number, level = found
    for other in [key for key in numbers if key[1] > level]:
        del numbers[other]
    indent = "   " * level
    if _format(paragraph, number, level) in ("bullet", "none"):
        return f"{indent}- "
    numbers[number, level] += 1
    return f"{indent}{numbers[number, level]}. "


def _numbering(paragraph: Paragraph, style: Any) -> tuple[str, int] | None:
    """The list a paragraph is an item of, and how deep in it, from the paragraph or its style."""
    own: Any = paragraph._p
    places = [own.pPr]
    while style is not None:
        places.append(style.element.pPr)
        style = style.base_style
    for place in places:
        properties = place.numPr if place is not None else None
        if properties is not None and properties.numId is not None:
            number = properties.numId.val
            return (str(number), properties.ilvl.val if properties.ilvl is not None else 0) if number else None
    return None


def _format(paragraph: Paragraph, number: str, level: int) -> str:
    """How a list is numbered: `bullet`, `decimal`, ... ; `bullet` where the document does not say."""
    part: Any = paragraph.part
    try:
        numbering = part.numbering_part.element
    except (KeyError, NotImplementedError):
        return "bullet"
    abstract = numbering.xpath(f"w:num[@w:numId='{number}']/w:abstractNumId/@w:val")
    found = abstract and numbering.xpath(
        f"w:abstractNum[@w:abstractNumId='{abstract[0]}']/w:lvl[@w:ilvl='{level}']/w:numFmt/@w:val"
    )
    return str(found[0]) if found else "bullet"
