"""Preparation against the straightforward `datasets` pipeline: rows a second and peak memory, same rows, same machine.

    python tests/benchmarks/dataset_preparation.py --megabytes 1000 5000 --baseline-megabytes 1000

Both read JSON lines of chats, convert and check every row with the same functions, drop exact duplicates, split, count
all and trained tokens with the model's own template, and write the splits. The kit's side also looks for near
duplicates, tells languages, keeps rejected rows and writes the report. The baseline is `load_dataset` + `map` +
`filter` with num_proc=2. Peak memory is the sum over the whole process tree (PSS: shared pages counted once).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from llmtuner_kit import catalog
from llmtuner_kit.dataset import checks, conversion, shapes
from llmtuner_kit.dataset.build import build
from llmtuner_kit.dataset.chunks import Source
from llmtuner_kit.dataset.defects import RowError
from llmtuner_kit.dataset.tokens import open_encoding
from llmtuner_kit.settings import PrepareSettings

MODEL = "smollm2-135m-instruct"


def words() -> list[str]:
    """Words as they come in the comments and docstrings of Python's own library: real text, real frequencies."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for text in re.findall(r'"""(.*?)"""|#([^\n]*)', path.read_text(errors="ignore"), re.DOTALL):
            found += re.findall(r"[A-Za-z']+[,.;:?!]?", " ".join(text))
    return found


def write_rows(path: Path, megabytes: int) -> int:
    """Chats of about a kilobyte; one row in fifty is an exact duplicate, one in a hundred has a defect."""
    draw, vocabulary = random.Random(7), words()
    rows = 0
    last = b""
    with path.open("wb") as file:
        while file.tell() < megabytes * 1_000_000:
            rows += 1
            if rows % 50 == 0:
                file.write(last)
                continue
            start = draw.randrange(len(vocabulary) - 400)
            lengths = [draw.randint(10, 60), draw.randint(20, 90), draw.randint(5, 30), draw.randint(20, 90)]
            messages, at = [], start
            for role, length in zip(("user", "assistant", "user", "assistant"), lengths, strict=True):
                part = vocabulary[at : at + length]
                draw.shuffle(part)
                messages.append({"role": role, "content": " ".join(part)})
                at += length
            if rows % 100 == 7:
                messages[-1]["content"] = ""
                messages[1]["content"] = ""
            last = json.dumps({"messages": messages}).encode() + b"\n"
            file.write(last)
    return rows


class PeakMemory:
    """The largest sum of PSS over this process's children (and itself) while it is open, in bytes."""

    def __enter__(self) -> PeakMemory:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak = max(self.peak, total)


def kit(path: Path, out: Path) -> int:
    """The kit's own preparation; returns the rows that came in."""
    (out / "work").mkdir(parents=True)
    (out / "made").mkdir()
    source = Source(path.name, path, path.stat().st_size, "benchmark")
    encoding = open_encoding(catalog.base_model(MODEL), catalog.base_model_folder(MODEL), 0)
    report = build([source], PrepareSettings(), encoding, MODEL, out / "made", out / "work", lambda *_: None)
    assert report.accepted + report.rejected + report.duplicates == report.rows_in
    print(f"  accepted {report.accepted}, rejected {report.rejected}, duplicates {report.duplicates}")
    return report.rows_in


def examined(row: dict[str, Any]) -> dict[str, Any]:
    """Convert and check one row, as the kit does."""
    mapping = shapes.recognise(tuple(row))
    assert mapping is not None
    try:
        made = conversion.convert(dict(row), mapping)
    except RowError as problem:
        return {"row": "", "kind": problem.kind, "key": "", "findings": []}
    made, personal = checks.personal(made, masked=False)
    findings = [item.kind for item in (*checks.examine(made), *personal)]
    text = json.dumps(made, ensure_ascii=False)
    return {"row": text, "kind": "", "key": hashlib.sha256(text.encode()).hexdigest(), "findings": findings}


class Tokens:
    """Counts of all and of trained tokens, turn by turn, as the chat template has them."""

    def __init__(self, folder: str) -> None:
        self._folder, self._tokenizer = folder, None

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        render = self._tokenizer.apply_chat_template
        messages = json.loads(row["row"])["messages"]
        total = len(render(messages, tokenize=True, return_dict=False))
        trained = 0
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = render(messages[:number], tokenize=True, return_dict=False, add_generation_prompt=True)
                trained += len(render(messages[: number + 1], tokenize=True, return_dict=False)) - len(before)
        return {"tokens": total, "trained": trained}


def baseline(path: Path, out: Path) -> int:
    """load_dataset + map + filter; returns the rows that came in."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    out.mkdir(parents=True)
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(out / "cache"))
    rows = len(loaded)
    checked = loaded.map(examined, num_proc=2, remove_columns=loaded.column_names)
    good = checked.filter(lambda row: row["kind"] == "", num_proc=2)
    seen: set[str] = set()

    def first(row: dict[str, Any]) -> bool:
        new = row["key"] not in seen
        seen.add(row["key"])
        return new

    unique = good.filter(first)
    counted = unique.map(Tokens(str(catalog.base_model_folder(MODEL))), num_proc=2)
    parts = counted.train_test_split(test_size=0.2, seed=1)
    for name, part in parts.items():
        part.to_json(str(out / f"{name}.jsonl"))
    kinds = Counter(checked["kind"])
    print(f"  accepted {len(counted)}, rejected {rows - kinds['']}, duplicates {kinds[''] - len(counted)}")
    return rows


def measured(name: str, work: Callable[[Path, Path], int], path: Path, out: Path) -> tuple[float, float]:
    """Rows a second and peak memory in MB."""
    print(f"{name}: {path.stat().st_size / 1e6:.0f} MB")
    started = time.monotonic()
    with PeakMemory() as memory:
        rows = work(path, out)
    seconds = time.monotonic() - started
    print(f"  {rows} rows in {seconds:.1f} s: {rows / seconds:.0f} rows/s, peak {memory.peak / 1e6:.0f} MB")
    return rows / seconds, memory.peak / 1e6


def inputs(folder: Path, sizes: list[int]) -> Iterator[Path]:
    for size in sizes:
        path = folder / f"chats-{size}.jsonl"
        write_rows(path, size)
        yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1000], help="sizes for the kit's side")
    parser.add_argument("--baseline-megabytes", type=int, default=1000, help="0: leave the baseline out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        speeds = [
            measured("llmtuner_kit", kit, path, top / f"kit-{number}")
            for number, path in enumerate(inputs(top, arguments.megabytes))
        ]
        if arguments.baseline_megabytes:
            (path,) = inputs(top, [arguments.baseline_megabytes])
            base, _ = measured("datasets, num_proc=2", baseline, path, top / "baseline")
            for size, (speed, _) in zip(arguments.megabytes, speeds, strict=True):
                print(f"{size} MB: {speed / base:.1f}x the baseline's rows/s")


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
