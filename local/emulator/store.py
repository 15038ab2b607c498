"""The emulator's memory: every acknowledged change is in SQLite (WAL) before the answer leaves.

Reads come from dictionaries in this process; only this process writes. A row is one resource as JSON.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Document = dict[str, Any]


class StoreError(Exception):
    """The disk did not take a change; nothing of it is kept. The text tells the reason."""


class Store:
    """Resources by kind and name, in the order of their creation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        # A commit is in the kernel's hands before it returns, which is what kill -9 needs; only a power cut may
        # cost the last ones. FULL would wait for the disk at every change.
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS resources (kind TEXT, name TEXT, document TEXT NOT NULL, PRIMARY KEY (kind, name))"
        )
        self._kinds: dict[str, dict[str, Document]] = {}
        self._restless: dict[str, dict[str, None]] = {}  # names that have not been found settled since their last put
        self._batches = 0
        self._then: dict[Hashable, Callable[[], None]] = {}
        self._read()

    def _read(self) -> None:
        self._kinds = {}
        for kind, name, text in self._db.execute("SELECT kind, name, document FROM resources ORDER BY rowid"):
            self._kinds.setdefault(kind, {})[name] = json.loads(text)
        self._restless = {kind: dict.fromkeys(found) for kind, found in self._kinds.items()}

    def get(self, kind: str, name: str) -> Document | None:
        """One resource; change it only through `put`."""
        return self._kinds.get(kind, {}).get(name)

    def all(self, kind: str) -> list[Document]:
        """Every resource of a kind, oldest first."""
        return list(self._kinds.get(kind, {}).values())

    def items(self, kind: str) -> Iterator[tuple[str, Document]]:
        return iter(list(self._kinds.get(kind, {}).items()))

    def unsettled(self, kind: str, settled: Callable[[Document], bool]) -> list[tuple[str, Document]]:
        """The resources of a kind that can still change by themselves, of however many.

        Args:
            settled: whether a document can only be changed by another `put`; always the same question for a kind.
        """
        names, found = self._restless.get(kind, {}), self._kinds.get(kind, {})
        for name in [name for name in names if settled(found[name])]:
            del names[name]
        return [(name, found[name]) for name in names]

    def text(self, *, without: Collection[str]) -> str:
        """Every document but those of some kinds as one text, to look for a name in."""
        return json.dumps({kind: found for kind, found in self._kinds.items() if kind not in without})

    def put(self, kind: str, name: str, document: Document) -> Document:
        """Write a resource; durable when this returns, in a batch when the batch ends."""
        with self.batch():
            self._write(
                "INSERT INTO resources VALUES (?, ?, ?)"
                " ON CONFLICT (kind, name) DO UPDATE SET document = excluded.document",
                (kind, name, json.dumps(document)),
            )
            self._kinds.setdefault(kind, {})[name] = document
            self._restless.setdefault(kind, {})[name] = None
        return document

    def delete(self, kind: str, name: str) -> None:
        with self.batch():
            self._write("DELETE FROM resources WHERE kind = ? AND name = ?", (kind, name))
            self._kinds.get(kind, {}).pop(name, None)
            self._restless.get(kind, {}).pop(name, None)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Changes that survive a kill all together or not at all; what failed half-way keeps what it wrote."""
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            if not self._batches:
                self._commit()

    def after_commit(self, key: Hashable, action: Callable[[], None]) -> None:
        """Do something that must not happen for a change that is lost: when the batch has been committed."""
        self._then[key] = action
        if not self._batches:
            self._commit()

    def awaits_commit(self, key: Hashable) -> bool:
        """Whether the action of this key is still to come."""
        return key in self._then

    def _write(self, statement: str, values: tuple[str, ...]) -> None:
        try:
            if not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise self._refused(error) from None

    def _commit(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise self._refused(error) from None
        while self._then:
            self._then.pop(next(iter(self._then)))()

    def _refused(self, error: sqlite3.OperationalError) -> StoreError:
        """Forget what the disk has not: memory and disk must tell the same."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._then.clear()
        self._read()
        return StoreError(f"{self._path} cannot be written: {error}. Make room on its disk, then try again.")

    def close(self) -> None:
        self._db.close()
