"""A file that is still coming: its bytes in `NAME.part`, and which ranges are there in `NAME.part.jsonl`.

A range is noted after its bytes are written, one line each, so that a killed process loses what was under way only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Self


class PartialFile:
    """The unfinished copy of one version of something (`etag`), in ranges of equal size."""

    def __init__(self, target: Path, etag: str, size: int, range_size: int) -> None:
        self._target, self._size, self._range = target, size, range_size
        self._title = json.dumps({"etag": etag, "size": size, "range": range_size})
        self.path = target.with_name(target.name + ".part")
        self._journal = target.with_name(target.name + ".part.jsonl")
        self._there = self._read()
        self.file = self._log = -1

    def _read(self) -> dict[int, str]:
        """Start -> checksum of each range that is there; none when the journal tells of another version."""
        if not self.path.exists() or not self._journal.exists():
            return {}
        title, *lines = self._journal.read_text().split("\n")[:-1] or [""]  # a kill may leave half a line at the end
        return dict(json.loads(line) for line in lines) if title == self._title else {}

    def missing(self) -> list[tuple[int, int]]:
        """(start, end) in bytes of each range that has to come."""
        starts = range(0, self._size, self._range)
        return [(start, min(start + self._range, self._size)) for start in starts if start not in self._there]

    def checksums(self) -> list[str]:
        """The checksum of every range, in order."""
        return [self._there[start] for start in range(0, self._size, self._range)]

    def note(self, start: int, checksum: str) -> None:
        """The bytes of a range are written. Safe from several threads: a short append is one write."""
        os.write(self._log, (json.dumps([start, checksum]) + "\n").encode())
        self._there[start] = checksum

    def __enter__(self) -> Self:
        lines = [self._title, *(json.dumps(item) for item in self._there.items())]
        self._journal.write_text("\n".join(lines) + "\n")
        if not self._there:
            self.path.unlink(missing_ok=True)
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self.file, self._size)
        self._log = os.open(self._journal, os.O_WRONLY | os.O_APPEND)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)
        os.close(self._log)

    def done(self) -> None:
        """Everything is there: the file takes its name."""
        self.path.replace(self._target)
        self._journal.unlink()

    def drop(self) -> None:
        """Nothing of it can be used."""
        self.path.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)
