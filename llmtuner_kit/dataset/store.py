"""The work folder as one long table: what all workers wrote, in the order of the files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtuner_kit.dataset import near
from llmtuner_kit.dataset.worker import ENTRY, Summary


@dataclass
class Store:
    """Kept rows of all chunks. Row numbers run over all chunks from 0."""

    folder: Path
    summaries: list[Summary]
    _columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    _offsets: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = [summary.kept for summary in self.summaries]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def rows(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> NDArray[Any]:
        """One field of every row."""
        if name not in self._columns:
            self._columns[name] = np.fromfile(self._gathered / name, ENTRY[name])
        return self._columns[name]

    def forget(self, *names: str) -> None:
        """Give the memory of columns back."""
        for name in names:
            self._columns.pop(name, None)

    def band(self, number: int) -> NDArray[np.uint32]:
        """One band hash of every row."""
        return np.fromfile(self._gathered / f"band-{number}", np.uint32)

    @cached_property
    def _gathered(self) -> Path:
        """A folder with one file a column: there may be as many chunks as documents, and each is opened once."""
        folder = self.folder / "columns"
        folder.mkdir(exist_ok=True)
        names = [*(ENTRY.names or ()), *(f"band-{number}" for number in range(near.BANDS))]
        with ExitStack() as files:
            opened = [files.enter_context((folder / name).open("wb")) for name in names]
            for chunk in range(len(self.summaries)):
                entries, bands = self.entries(chunk), np.load(self._path(chunk, "bands.npy"))
                for file, values in zip(opened, (*(entries[name] for name in ENTRY.names or ()), *bands), strict=True):
                    file.write(values.tobytes())
        return folder

    def entries(self, chunk: int) -> NDArray[Any]:
        """The entries of one chunk."""
        found: NDArray[Any] = np.load(self._path(chunk, "entries.npy"))
        return found

    def chunk_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def place(self, row: int) -> tuple[str, int]:
        """The file and the number that the user knows a row by."""
        return self.summaries[self.chunk_of(row)].name, int(self.column("row")[row])

    def lines(self, row: int) -> bytes:
        """The JSON line of a row (several when it was split), without the last line end."""
        chunk = self.chunk_of(row)
        if chunk not in self._offsets:
            if len(self._offsets) > 256:
                self._offsets.clear()
            sizes = self.entries(chunk)["size"].astype(np.int64)
            self._offsets[chunk] = np.concatenate([[0], np.cumsum(sizes)])
        offsets, position = self._offsets[chunk], row - int(self._starts[chunk])
        with self._path(chunk, "rows").open("rb") as file:
            file.seek(int(offsets[position]))
            return file.read(int(offsets[position + 1] - offsets[position]) - 1)

    def chunks(self) -> Iterator[tuple[int, bytes, NDArray[np.int64], NDArray[Any]]]:
        """(first row, rows as bytes, where each begins and the last ends, entries) of each chunk in order."""
        for chunk in range(len(self.summaries)):
            entries = self.entries(chunk)
            offsets = np.concatenate([[0], np.cumsum(entries["size"].astype(np.int64))])
            yield int(self._starts[chunk]), self._path(chunk, "rows").read_bytes(), offsets, entries

    def written(self, suffix: str) -> Iterator[bytes]:
        """The lines that each chunk wrote into its file of this name (rejected, findings), in order."""
        for chunk in range(len(self.summaries)):
            yield self._path(chunk, suffix).read_bytes()

    def sources(self) -> NDArray[np.int64]:
        """The position of every row's file among the sources."""
        return np.array([summary.source for summary in self.summaries], np.int64)[self.chunk_numbers()]

    def chunk_numbers(self) -> NDArray[np.int64]:
        """The chunk of every row."""
        return np.repeat(np.arange(len(self.summaries)), np.diff(self._starts))

    def _path(self, chunk: int, suffix: str) -> Path:
        return self.folder / f"{chunk:06d}.{suffix}"
