"""Long PDFs -> ranges of pages, which all workers read; they lie in the work folder until their document is put together."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtuner_kit.dataset import pages
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.pages import Block

PAGES = 16
# A document of fewer pages, or of too few bytes to be opened and counted, is read by one worker at once.
_SHORT, _SMALL = 2 * PAGES, 64 << 10


@dataclass(frozen=True)
class PageRange:
    """Pages of a document from `start`, counted from 0, up to `end`; the last range ends at 0 and takes all that follow.

    Attributes:
        number: position among the ranges of all documents, from 0.
        name: the document as the user knows it.
        size: the range's share of the document's bytes.
        target: the file to write what is read into.
    """

    number: int
    name: str
    path: str
    size: int
    start: int
    end: int
    target: str


def of_document(path: Path, name: str, folder: Path, first: int) -> list[PageRange]:
    """The ranges of a long PDF, numbered from `first`; a short one, or one that cannot be opened, has none."""
    size = path.stat().st_size
    count = pages.count(path) if size > _SMALL else 0
    if count <= _SHORT:
        return []
    starts = range(0, count, PAGES)
    return [
        PageRange(
            first + place, name, str(path), size // len(starts),
            start, start + PAGES if start != starts[-1] else 0, str(folder / f"{first + place:06d}.pages"),
        )
        for place, start in enumerate(starts)
    ]  # fmt: skip


class Reader:
    """Reads ranges one after the other; the document stays open, as its ranges follow each other."""

    def __init__(self) -> None:
        self._document: pages.Document | None = None

    def read(self, part: PageRange) -> bytes:
        """What is on the pages, or why they cannot be read, for `joined`."""
        try:
            if self._document is None or self._document.path != Path(part.path):
                self.close()
                self._document = pages.Document(Path(part.path))
            return pickle.dumps(self._document.blocks(part.start, part.end))
        except RowError as error:
            return pickle.dumps((error.kind, error.reason))

    def close(self) -> None:
        if self._document is not None:
            self._document.close()
            self._document = None


def joined(targets: Sequence[str]) -> list[Block]:
    """All that was read of a document. Raises the RowError of the first range that could not be read."""
    found: list[Block] = []
    for target in targets:
        part = pickle.loads(Path(target).read_bytes())  # noqa: S301 (of this program, in its own folder)
        if isinstance(part, tuple):
            raise RowError(*part)
        found += part
    return found
