"""Killed at any moment, a preparation goes on where it was and makes the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dataset.conftest import as_bytes, distinct

PROGRAM = """
import hashlib, sys
from pathlib import Path
from llmtuner_kit.dataset import chunks
from llmtuner_kit.dataset.build import build
from llmtuner_kit.dataset.chunks import Source
from llmtuner_kit import catalog
from llmtuner_kit.dataset.tokens import open_encoding
from llmtuner_kit.settings import PrepareSettings

chunks.CHUNK_BYTES = 3000
folder, out, work = map(Path, sys.argv[1:])
out.mkdir(exist_ok=True)
work.mkdir(exist_ok=True)
sources = [
    Source(path.name, path, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    for path in sorted(folder.iterdir())
]
model = catalog.base_model("tiny-llama")
encoding = open_encoding(model, catalog.base_model_folder("tiny-llama"), 0)
build(sources, PrepareSettings(), encoding, "tiny-llama", out, work, lambda *_: None, 2)
"""


def command(folder: Path, out: Path, work: Path) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(folder), str(out), str(work)]


def test_a_killed_preparation_goes_on_and_makes_the_same_bytes(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "rows.jsonl").write_bytes(as_bytes([*distinct(300), *distinct(20), {"instruction": "x", "output": ""}]))
    broken = b"no spreadsheet" * 100_000
    (given / "book.xlsx").write_bytes(broken)
    whole, again, work = tmp_path / "whole", tmp_path / "again", tmp_path / "work"
    subprocess.run(command(given, whole, tmp_path / "other"), check=True)
    process = subprocess.Popen(command(given, again, work))
    while process.poll() is None and len(list(work.glob("*.json"))) < 4:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    done = {item.name: item.stat().st_mtime_ns for item in work.glob("*.json")}
    total = len(list((tmp_path / "other").glob("*.json")))
    assert 4 <= len(done) < total
    subprocess.run(command(given, again, work), check=True)
    assert {name: (work / name).stat().st_mtime_ns for name in done} == done
    names = sorted(str(item.relative_to(whole)) for item in whole.rglob("*") if item.is_file())
    assert names == [
        "duplicates.jsonl",
        "findings.jsonl",
        "rejected.jsonl",
        f"rejected/{hashlib.sha256(broken).hexdigest()}",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    for name in names:
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name
    assert sum(1 for _ in map(json.loads, (again / "duplicates.jsonl").read_text().splitlines())) == 20


def test_an_interrupted_preparation_ends_at_once_and_its_workers_say_nothing(tmp_path: Path) -> None:
    given, work = tmp_path / "given", tmp_path / "work"
    given.mkdir()
    (given / "rows.jsonl").write_bytes(as_bytes(distinct(2_000)))
    started = command(given, tmp_path / "out", work)
    process = subprocess.Popen(started, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not list(work.glob("*.json")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as Jupyter interrupts a kernel, and a terminal what runs in it
    _, said = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1  # this program's own
