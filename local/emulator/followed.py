"""Which resources were looked at a moment ago: a list of many is not worth asking all their supervisors each time."""

from __future__ import annotations

import time
from typing import Any

FRESH_SECONDS = 0.05


class Followed:
    """When a resource was last found unchanged."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[dict[str, Any], float]] = {}

    def looked(self, kind: str, name: str, document: dict[str, Any]) -> None:
        """Its supervisors have nothing new."""
        self._seen[kind, name] = (document, time.monotonic())

    def is_fresh(self, kind: str, name: str, document: dict[str, Any]) -> bool:
        """Whether this very document was looked at within FRESH_SECONDS."""
        found = self._seen.get((kind, name))
        return found is not None and found[0] is document and time.monotonic() - found[1] < FRESH_SECONDS
