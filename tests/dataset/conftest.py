"""Building datasets from files in a folder, with the tokenizer of the tiny model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_encodings import encoding_of

from llmtuner_kit.dataset.build import build
from llmtuner_kit.dataset.chunks import Source
from llmtuner_kit.dataset.report import Report
from llmtuner_kit.dataset.tokens import Encoding
from llmtuner_kit.settings import PrepareSettings


@dataclass(frozen=True)
class Built:
    """A dataset on this machine: its report, and its files."""

    report: Report
    folder: Path

    def rows(self, split: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{split}.jsonl").read_bytes().splitlines()]

    @property
    def all_rows(self) -> list[dict[str, Any]]:
        return [row for split in ("train", "validation", "test") for row in self.rows(split)]

    @property
    def rejected(self) -> list[dict[str, Any]]:
        return self.rows("rejected")

    @property
    def duplicates(self) -> list[dict[str, Any]]:
        return self.rows("duplicates")

    def kinds(self) -> dict[str, int]:
        return {item.kind: item.count for item in self.report.findings}


@pytest.fixture(scope="session")
def encoding() -> Encoding:
    return encoding_of("tiny-llama")


Prepare = Callable[..., Built]


@pytest.fixture
def prepare(tmp_path: Path, encoding: Encoding) -> Prepare:
    """prepare({"rows.jsonl": bytes or text or list of rows}, **settings) -> Built"""
    count = iter(range(1000))

    def run(files: Mapping[str, Any], *, workers: int = 1, work: Path | None = None, **settings: Any) -> Built:
        top = tmp_path / f"build-{next(count)}"
        sources = []
        for name, content in sorted(files.items()):
            path = top / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_bytes(content))
            data = path.read_bytes()
            sources.append(Source(name, path, len(data), hashlib.sha256(data).hexdigest()))
        out, scratch = top / "out", work or top / "work"
        out.mkdir(parents=True)
        scratch.mkdir(parents=True, exist_ok=True)
        report = build(
            sources, PrepareSettings(**settings), encoding, "tiny-llama", out, scratch, lambda *_: None, workers
        )
        return Built(report, out)

    return run


def as_bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in content)


def distinct(count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows that have nothing to do with each other."""
    rows = []
    for number in range(start, start + count):
        words = [hashlib.sha256(f"{number}-{n}".encode()).hexdigest()[: 4 + n % 5] for n in range(24)]
        rows.append({"instruction": f"Tell about {' '.join(words[:8])}", "output": f"It is {' '.join(words[8:])}."})
    return rows
