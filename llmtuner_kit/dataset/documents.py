"""Documents -> passages: plain text, Markdown, reStructuredText, HTML, PDF and Word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from llmtuner_kit.dataset import characters, layout, pages, passages, web
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.records import Passage


def sections_of(path: Path, kind: str, encoding: str, start: int = 0, end: int = 0) -> list[Passage]:
    """The sections of a document with their headings. Raises RowError when it cannot be read."""
    if kind in _LARGEST:
        size = (end or path.stat().st_size) - start
        if size > _LARGEST[kind]:
            raise RowError(
                "too_large",
                f"{size >> 20} MiB {'without a line break' if end else 'in one document'}, more than the "
                f"{_LARGEST[kind] >> 20} MiB that are read at once: cut the file into several",
            )
        text, problem = characters.decode(_bytes(path, start, end), encoding)
        if problem:
            raise RowError(*problem)
        return list(_OF_TEXT[kind](text.replace("\r\n", "\n").lstrip("\ufeff")))
    return list(layout.sections(pages.read(path)) if kind == "pdf" else _word(path))


def _bytes(path: Path, start: int, end: int) -> bytes:
    """The bytes of a file from `start` to `end`; without an end all that follow."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start) if end else file.read()


# Bytes. A parsed page takes fifteen times its file in memory; a long text comes in stretches.
_LARGEST = {"text": 64 << 20, "markdown": 64 << 20, "rst": 64 << 20, "html": 16 << 20}


def _plain(text: str) -> Iterator[Passage]:
    if text.strip():
        yield Passage(text)


def _closed(path: list[tuple[int, str]], body: list[str]) -> Iterator[Passage]:
    text = "\n\n".join(body).strip()
    if text:
        yield Passage(text, tuple(title for _, title in path))


def _word(path: Path) -> Iterator[Passage]:
    """Paragraphs under their heading styles; tables row by row."""
    import docx
    from docx.table import Table

    top: list[tuple[int, str]] = []
    body: list[str] = []
    try:
        document = docx.Document(str(path))
        blocks = list(document.iter_inner_content())
    except Exception as error:
        raise RowError("unreadable_file", f"not a Word document: {type(error).__name__}: {error}") from error
    for block in blocks:
        if isinstance(block, Table):
            body += [" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows]
            continue
        text = block.text.strip()
        style = (block.style.name or "") if block.style is not None else ""
        heading = re.fullmatch(r"(?:Heading|Überschrift|Titre) (\d)|(Title)", style)
        if heading and text:
            yield from _closed(top, body)
            level = int(heading.group(1) or 0)
            top, body = [*(item for item in top if item[0] < level), (level, text)], []
        elif text:
            body.append(text)
    yield from _closed(top, body)


_OF_TEXT = {
    "text": _plain,
    "markdown": passages.markdown_sections,
    "rst": passages.rst_sections,
    "html": web.sections,
}
