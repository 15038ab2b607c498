"""What a supervisor tells the emulator: lines of JSON appended to a file, which outlives both."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any


class Journal:
    """Append-only. A killed writer leaves no half line behind it; a full disk may, and that line is passed over.

    Its times are those of the writer's begin and what has passed since, which is paid by: a clock that is set meanwhile,
    or a machine that sleeps, changes no duration.
    """

    def __init__(self, path: Path) -> None:
        self._begun = time.time() - time.monotonic()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._whole = True

    def write(self, **values: Any) -> None:
        """Append one line; raises OSError when the disk does not take it."""
        line = (json.dumps({"time": round(self._now(), 3), **values}) + "\n").encode()
        if not self._whole:
            line = b"\n" + line
        self._whole = False
        self._whole = os.write(self._file, line) == len(line)

    def touch(self) -> None:
        """Say that the writer lives: of one that is killed nobody else knows when that was."""
        os.utime(self._file, (self._now(),) * 2)

    def _now(self) -> float:
        return self._begun + time.monotonic()


def last_sign(path: Path) -> float:
    """When the writer of a journal last lived, as far as it has told; 0 where none has begun."""
    try:
        return round(path.stat().st_mtime, 3)
    except FileNotFoundError:
        return 0.0


def reason_of(error: Exception, folder: Path) -> str:
    """Why a supervisor has failed, for the one who reads it: a full disk is one of this machine, not of an instance."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk of {folder} on this machine is full."
    return f"{type(error).__name__}: {error}"


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The lines after a byte offset, and the offset behind the last whole one."""
    try:
        if path.stat().st_size <= offset:
            return [], offset
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return [line for line in map(_parsed, data[:end].splitlines()) if line], offset + end


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
