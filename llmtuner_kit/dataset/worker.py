"""What one worker does with a chunk: records -> rows, examined, counted and written down for what follows.

Results go to the work folder under the chunk's number; the summary is written last, so that its existence means the
chunk is done and a preparation that was interrupted goes on behind it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtuner_kit.dataset import conversion, languages, near, overlong, page_ranges, rejected
from llmtuner_kit.dataset.checks import Finding
from llmtuner_kit.dataset.chunks import Chunk
from llmtuner_kit.dataset.drafts import Draft, drafts_of
from llmtuner_kit.dataset.page_ranges import PageRange
from llmtuner_kit.dataset.records import Record
from llmtuner_kit.dataset.report import Tally
from llmtuner_kit.dataset.tokens import Count, Encoding
from llmtuner_kit.errors import KitError
from llmtuner_kit.settings import PrepareSettings

# One entry a kept record. hi and lo: hash of the row; loose: of its words only; prompt: of the words of its question;
# tokens: before anything is cut; used, trained: as written; lines: rows it became; size: bytes of those rows.
ENTRY = np.dtype(
    [
        ("hi", "u8"), ("lo", "u8"), ("loose", "u8"), ("prompt", "u8"), ("answer", "u8"), ("tokens", "u4"),
        ("used", "u4"), ("trained", "u4"), ("row", "u4"), ("size", "u4"), ("lines", "u2"),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """What every worker needs to know."""

    settings: PrepareSettings
    encoding: Encoding
    folder: Path


@dataclass
class Summary:
    """What became of a chunk, small enough to be kept for all of them. originals: as in Report."""

    source: int
    name: str
    rows: int = 0
    kept: int = 0
    rejected: int = 0
    over_rows: int = 0
    over_answer_tokens: int = 0
    mappings: list[str] = field(default_factory=list)
    originals: dict[str, int] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    languages: dict[str, int] = field(default_factory=dict)


class Worker:
    """Takes chunks one after the other; keeps the counting process and its memory of words."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings, self._encoding = context.settings, context.encoding
        self._rejected = rejected.Writer(context.folder)
        self._pages = page_ranges.Reader()

    def read(self, part: PageRange) -> int:
        """Write down what is on a range of pages; returns its share of the document's bytes."""
        _put(Path(part.target), self._pages.read(part))
        return part.size

    def process(self, chunk: Chunk) -> Summary:
        """Write the chunk's files and return its summary; a chunk that is done already only gives its summary."""
        done = summary_path(self._context.folder, chunk.number)
        if done.exists():
            return read_summary(done)
        summary = Summary(chunk.source, chunk.name)
        mappings: dict[str, None] = {}
        drafts = list(drafts_of(chunk, self._settings, self._encoding.measure, self._encoding.control_tokens, mappings))
        summary.mappings = list(mappings)
        kept, refused, found = self._measured(drafts, summary)
        _put(self._context.folder / f"{chunk.number:06d}.findings", b"".join(found))
        summary.rows, summary.kept, summary.rejected = len(drafts), len(kept), len(refused)
        self._write(chunk, kept, refused, summary)
        _put(done, json.dumps(_as_json(summary)).encode())
        return summary

    def close(self) -> None:
        """End the counting process."""
        self._pages.close()
        if "_counter" in self.__dict__:
            self._counter.close()

    def _measured(
        self, drafts: list[Draft], summary: Summary
    ) -> tuple[list[_Kept], list[tuple[Record, tuple[str, str]]], list[bytes]]:
        refused = [(draft.record, draft.problem) for draft in drafts if draft.problem]
        readable = [draft for draft in drafts if not draft.problem]
        lines = [draft.line for draft in readable]
        kept, found = [], []
        for draft, line, count in zip(readable, lines, self._count(lines), strict=True):
            if count.cut_tokens:
                summary.over_rows += 1
                summary.over_answer_tokens += count.cut_trained
            outcome = self._settled(draft, line, count)
            if isinstance(outcome, tuple):
                refused.append((draft.record, outcome))
                continue
            for finding in (*draft.findings, *outcome.findings):
                found.append(finding_line(draft.record.source, draft.record.row, finding.kind, finding.detail))
                summary.tally.add(finding.kind, draft.record.source, draft.record.row, finding.detail)
            kept.append(outcome)
        for record, (kind, reason) in sorted(refused, key=lambda item: item[0].row):
            summary.tally.add(kind, record.source, record.row, reason)
        return kept, refused, found

    def _settled(self, draft: Draft, line: bytes, count: Count) -> _Kept | tuple[str, str]:
        """The row as it will be written, or why it will not be."""
        limit = self._encoding.max_length
        if count.error:
            return "template_refused", count.error
        if not count.cut_tokens:
            if not count.trained:
                return "nothing_trained", "no token of this row is trained on"
            return _Kept(draft, line, count.tokens, count.tokens, count.trained)
        told = f"{count.tokens} tokens of which {limit} fit"
        if self._settings.long_rows == "drop":
            return "over_length", told
        if self._settings.long_rows == "split":
            assert draft.row is not None
            rows = overlong.split(draft.row, count, limit, self._encoding.measure)
            parts = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
            counts = self._count(parts)
            if not parts or any(part.error or part.cut_tokens for part in counts):
                return "over_length", f"{told}; the question alone leaves no room for an answer"
            used, trained = sum(part.tokens for part in counts), sum(part.trained for part in counts)
            finding = Finding("split", f"{told}, made into {len(parts)} rows")
            return _Kept(draft, b"\n".join(parts), count.tokens, used, trained, len(parts), (finding,))
        if count.trained <= count.cut_trained:
            return "nothing_trained", f"{told}; all {count.trained} answer tokens are behind the limit"
        finding = Finding("cut", f"{told}, {count.cut_trained} of {count.trained} answer tokens are lost")
        used, trained = count.tokens - count.cut_tokens, count.trained - count.cut_trained
        return _Kept(draft, line, count.tokens, used, trained, 1, (finding,))

    def _write(
        self, chunk: Chunk, kept: list[_Kept], refused: list[tuple[Record, tuple[str, str]]], summary: Summary
    ) -> None:
        entries = np.zeros(len(kept), ENTRY)
        texts = []
        for number, row in enumerate(kept):
            assert row.draft.row is not None
            prompt, answer = conversion.prompt_and_answer(row.draft.row)
            asked, answered = near.normalise(prompt), near.normalise(answer)
            text = asked + b" " + answered
            texts.append(text)
            exact = hashlib.sha256(row.lines).digest()
            entries[number] = (
                int.from_bytes(exact[:8]), int.from_bytes(exact[8:16]), _hash(text), _hash(asked), _hash(answered),
                row.tokens, row.used, row.trained, row.draft.record.row, len(row.lines) + 1, row.rows,
            )  # fmt: skip
            code = languages.detect(f"{answer}\n{prompt}")
            summary.languages[code] = summary.languages.get(code, 0) + 1
        folder, stem = self._context.folder, f"{chunk.number:06d}"
        _put(folder / f"{stem}.entries.npy", _saved(entries))
        _put(folder / f"{stem}.bands.npy", _saved(near.bands(texts)))
        _put(folder / f"{stem}.rows", b"".join(row.lines + b"\n" for row in kept))
        refused.sort(key=lambda item: item[0].row)
        told, summary.originals = self._rejected.entries(refused)
        _put(folder / f"{stem}.rejected", told)

    def _count(self, lines: list[bytes]) -> list[Count]:
        return self._counter.count(lines) if lines else []

    @cached_property
    def _counter(self) -> Counter:
        return Counter(self._encoding)


@dataclass(frozen=True, slots=True)
class _Kept:
    draft: Draft
    lines: bytes
    tokens: int
    used: int
    trained: int
    rows: int = 1
    findings: tuple[Finding, ...] = ()


class Counter:
    """The training code's counting program, kept running: rows in, counts out, one block at a time."""

    def __init__(self, encoding: Encoding) -> None:
        self._process = subprocess.Popen(
            encoding.counting_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One thread each: there are as many workers as cores.
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8"},
        )

    def count(self, lines: list[bytes]) -> list[Count]:
        """Token counts of rows given as JSON lines, in order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        given = b"\n".join(lines) + b"\n\n"
        # A block may be larger than the pipe: it is written while the answers are awaited.
        writer = threading.Thread(target=self._write, args=(given,), daemon=True)
        writer.start()
        counts = [self._parsed(self._process.stdout.readline()) for _ in lines]
        writer.join()
        return counts

    def close(self) -> None:
        """End the program: its input ends, and so does it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # the reader sees the end of the answers and tells

    def _parsed(self, line: bytes) -> Count:
        if not line:
            raise KitError(
                f"The counting program ended with exit code {self._process.wait()} before all rows were counted.",
                fix="run the cell again; when it happens again the machine may be short of memory",
            )
        answer = json.loads(line)
        return Count(error=answer["error"]) if isinstance(answer, dict) else Count(*answer)


def _put(path: Path, data: bytes) -> None:
    """Write a file at once: a worker that outlives a killed preparation may write the same one a moment later."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def _saved(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def summary_path(folder: Path, number: int) -> Path:
    """Where a chunk's summary is, once the chunk is done."""
    return folder / f"{number:06d}.json"


def read_summary(path: Path) -> Summary:
    """The summary of a chunk that is done."""
    values: dict[str, Any] = json.loads(path.read_text())
    values["tally"] = Tally.from_json(values["tally"])
    return Summary(**values)


def _as_json(summary: Summary) -> dict[str, Any]:
    return summary.__dict__ | {"tally": summary.tally.as_json()}


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def finding_line(source: str, row: int, kind: str, detail: str) -> bytes:
    """One line of findings.jsonl: a row that is kept, and what there is to know about it."""
    entry = {"source": source, "row": row, "kind": kind, "detail": detail}
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
