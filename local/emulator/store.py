"""The emulator's memory: every acknowledged change is in SQLite (WAL) before the answer leaves.

Reads come from dictionaries in this process; only this process writes. A row is one resource as JSON.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Document = dict[str, Any]


class Store:
    """Resources by kind and name, in the order of their creation."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # survives kill -9; only power loss may cost the last writes
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS resources (kind TEXT, name TEXT, document TEXT NOT NULL, PRIMARY KEY (kind, name))"
        )
        self._kinds: dict[str, dict[str, Document]] = {}
        for kind, name, text in self._db.execute("SELECT kind, name, document FROM resources ORDER BY rowid"):
            self._kinds.setdefault(kind, {})[name] = json.loads(text)

    def get(self, kind: str, name: str) -> Document | None:
        """One resource; change it only through `put`."""
        return self._kinds.get(kind, {}).get(name)

    def all(self, kind: str) -> list[Document]:
        """Every resource of a kind, oldest first."""
        return list(self._kinds.get(kind, {}).values())

    def items(self, kind: str) -> Iterator[tuple[str, Document]]:
        return iter(list(self._kinds.get(kind, {}).items()))

    def put(self, kind: str, name: str, document: Document) -> Document:
        """Write a resource; durable when this returns."""
        self._db.execute(
            "INSERT INTO resources VALUES (?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET document = excluded.document",
            (kind, name, json.dumps(document)),
        )
        self._kinds.setdefault(kind, {})[name] = document
        return document

    def delete(self, kind: str, name: str) -> None:
        self._db.execute("DELETE FROM resources WHERE kind = ? AND name = ?", (kind, name))
        self._kinds.get(kind, {}).pop(name, None)

    def close(self) -> None:
        self._db.close()
