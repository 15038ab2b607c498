"""The store: what `put` has returned from is on disk; a batch is on disk as a whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from llmtuner_local.emulator.store import Store, StoreError

DIES = """
import os, sys
from pathlib import Path
from llmtuner_local.emulator.store import Store
store = Store(Path(sys.argv[1]))
store.put("job", "kept", {"n": 1})
with store.batch():
    store.put("job", "half", {"n": 2})
    store.put("tags", "half", {"n": 3})
    os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_keeps_what_was_committed_and_nothing_of_a_batch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path / "db")], check=False)
    assert done.returncode == -9
    store = Store(tmp_path / "db")
    assert store.get("job", "kept") == {"n": 1}
    assert store.get("job", "half") is None
    assert store.all("tags") == []
    store.close()


def test_actions_come_after_the_commit_in_order_and_once(tmp_path: Path) -> None:
    store, other, seen = Store(tmp_path / "db"), [], []
    with store.batch():
        store.put("job", "a", {})
        for name in "abb":
            store.after_commit(name, lambda name=name: seen.append((name, Store(tmp_path / "db").get("job", "a"))))
        assert store.awaits_commit("a")
        assert seen == other
    assert seen == [("a", {}), ("b", {})]
    assert not store.awaits_commit("a")
    store.after_commit("c", lambda: other.append("at once"))
    assert other == ["at once"]
    store.close()


def test_what_the_disk_refuses_is_told_and_forgotten(tmp_path: Path) -> None:
    store, started = Store(tmp_path / "db"), []
    store.put("job", "a", {"text": "old"})
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")  # a full disk, as SQLite sees it

    def change() -> None:
        with store.batch():
            store.after_commit("a", lambda: started.append(1))
            store.put("job", "a", {"text": "new" * 100_000})

    with pytest.raises(StoreError, match="Make room on its disk"):
        change()
    assert store.get("job", "a") == {"text": "old"}
    assert started == []
    store.close()


def test_order_of_creation_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    for name in "cab":
        store.put("job", name, {"n": name})
    store.put("job", "a", {"n": "changed"})
    store.close()
    again = Store(tmp_path / "db")
    assert [name for name, _ in again.items("job")] == list("cab")
    assert [item["n"] for item in again.all("job")] == ["c", "changed", "b"]
    again.close()


def test_a_settled_resource_is_asked_about_again_only_after_a_put(tmp_path: Path) -> None:
    store, asked = Store(tmp_path / "db"), []

    def settled(document: dict[str, object]) -> bool:
        asked.append(document["name"])
        return bool(document["ended"])

    for name, ended in (("a", True), ("b", False), ("c", True)):
        store.put("job", name, {"name": name, "ended": ended})
    assert [name for name, _ in store.unsettled("job", settled)] == ["b"]
    asked.clear()
    store.put("job", "c", {"name": "c", "ended": False})
    assert [name for name, _ in store.unsettled("job", settled)] == ["b", "c"]
    assert asked == ["b", "c"]
    store.delete("job", "b")
    store.close()
    assert [name for name, _ in Store(tmp_path / "db").unsettled("job", settled)] == ["c"]
