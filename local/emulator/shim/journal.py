"""What a supervisor tells the emulator: lines of JSON appended to a file, which outlives both."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Journal:
    """Append-only. A line is written whole or not at all, so a killed writer leaves no half line behind it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, **values: Any) -> None:
        os.write(self._file, (json.dumps({"time": round(time.time(), 3), **values}) + "\n").encode())


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The lines after a byte offset, and the offset behind the last whole one."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:end].splitlines()], offset + end
