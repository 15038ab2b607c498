"""Documents -> passages: plain text, Markdown, reStructuredText, HTML, PDF and Word."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtuner_kit.dataset import characters, layout, page_ranges, pages, passages, web, word
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.records import Passage


def sections_of(
    path: Path, kind: str, encoding: str, start: int = 0, end: int = 0, ranges: Sequence[str] = ()
) -> list[Passage]:
    """The sections of a document with their headings. Raises RowError when it cannot be read.

    `start` and `end` are a stretch of a text's bytes; of a PDF `end` pages are read. 0: all.
    `ranges`: where the pages of a PDF lie that has been read already.
    """
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
    if kind == "pdf":
        return list(layout.sections(page_ranges.joined(ranges) if ranges else _pages(path, end)))
    return list(word.sections(path))


def _pages(path: Path, end: int) -> list[pages.Block]:
    with contextlib.closing(pages.Document(path)) as document:
        return document.blocks(0, end)


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


_OF_TEXT = {
    "text": _plain,
    "markdown": passages.markdown_sections,
    "rst": passages.rst_sections,
    "html": web.sections,
}
