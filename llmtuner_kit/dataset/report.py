"""The report of a preparation: every row accounted for, every decision with examples. Plain data, JSON both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtuner_kit.dataset.defects import DEFECTS

EXAMPLES = 5
ROWS = 100


@dataclass(frozen=True)
class Example:
    """Where a defect was seen: file, row (as the user counts), and what exactly."""

    source: str
    row: int
    detail: str


@dataclass(frozen=True)
class FindingCount:
    """One kind of defect over the whole dataset.

    Attributes:
        by: who mends it: setting (here, in the form), file (where the data come from), you (look and decide) or nobody.
        rows: numbers of the first rows, at most 100, by file; findings.jsonl, rejected.jsonl and duplicates.jsonl
            name all.
    """

    kind: str
    title: str
    effect: str
    by: str
    fix: str
    count: int
    examples: tuple[Example, ...]
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceReport:
    """One file: what it was read as, and what became of its rows."""

    name: str
    kind: str
    bytes: int
    encoding: str
    encoding_certain: bool
    mapping: str
    rows: int
    accepted: int
    rejected: int
    duplicates: int


@dataclass(frozen=True)
class Bin:
    """One bar of the length histogram: rows with `start` <= tokens < `end`."""

    start: int
    end: int
    rows: int


@dataclass(frozen=True)
class Lengths:
    """Row lengths on the model's own tokenizer, before anything is cut."""

    max_length: int
    mean: float
    median: int
    p90: int
    p99: int
    longest: int
    histogram: tuple[Bin, ...]
    over_rows: int
    over_answer_tokens: int


@dataclass(frozen=True)
class SplitReport:
    """One split as written: rows, tokens the model reads, tokens it learns from, tokens all rows begin with."""

    rows: int
    tokens: int
    trained_tokens: int
    shared_tokens: int = 0


@dataclass(frozen=True)
class Repeats:
    """Duplicates by where the first of them stands. Those across splits were given so: they never come of dealing."""

    exact_in_file: int = 0
    exact_across_files: int = 0
    exact_across_splits: int = 0
    near_in_file: int = 0
    near_across_files: int = 0
    near_across_splits: int = 0


@dataclass(frozen=True)
class Report:
    """Everything the preparation saw and did. accepted + rejected + duplicates == rows_in, always.

    Attributes:
        rows_in: records found in all files.
        rows_out: rows written; more than `accepted` when long rows were split into several.
        leaks: rows of validation or test whose question is in the training split too; with splits_from content 0.
        languages: share of rows by language code, largest first.
        samples: a few rows of the training split as written, of as many files as there are.
        left_out: files that were not prepared, each with the reason.
        originals: files of the dataset that hold originals of rejected records too large for a line of rejected.jsonl,
            with their bytes.
    """

    rows_in: int
    accepted: int
    rejected: int
    duplicates: int
    rows_out: int
    model_id: str
    sources: tuple[SourceReport, ...]
    findings: tuple[FindingCount, ...]
    lengths: Lengths
    splits: Mapping[str, SplitReport]
    leaks: int = 0
    repeats: Repeats = field(default_factory=Repeats)
    languages: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    originals: Mapping[str, int] = field(default_factory=dict)

    def finding(self, kind: str) -> FindingCount | None:
        """The count of one kind of defect, or None when it did not occur."""
        return next((item for item in self.findings if item.kind == kind), None)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def from_json(document: Mapping[str, Any]) -> Report:
    """The report that `as_json` wrote."""
    values = dict(document)
    values["sources"] = tuple(SourceReport(**item) for item in values["sources"])
    values["findings"] = tuple(_finding(item) for item in values["findings"])
    lengths = values["lengths"]
    values["lengths"] = Lengths(**(lengths | {"histogram": tuple(Bin(**item) for item in lengths["histogram"])}))
    values["splits"] = {name: SplitReport(**item) for name, item in values["splits"].items()}
    values["repeats"] = Repeats(**values["repeats"])
    values["samples"] = tuple(values["samples"])
    values["left_out"] = tuple((name, why) for name, why in values["left_out"])
    return Report(**values)


def _finding(item: Mapping[str, Any]) -> FindingCount:
    examples = tuple(Example(**example) for example in item["examples"])
    return FindingCount(**{**item, "examples": examples, "rows": {k: tuple(v) for k, v in item["rows"].items()}})


@dataclass
class Tally:
    """Counts defects while rows go by and keeps the first examples and row numbers of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    rows: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def add(self, kind: str, source: str, row: int, detail: str) -> None:
        """Count one defect of one row."""
        self.counts[kind] = count = self.counts.get(kind, 0) + 1
        if count <= ROWS:
            self.rows.setdefault(kind, {}).setdefault(source, []).append(row)
        seen = self.examples.setdefault(kind, [])
        if len(seen) < EXAMPLES:
            seen.append(Example(source, row, detail[:300]))

    def merge(self, other: Tally) -> None:
        """Add another tally; its examples and rows come after those already seen."""
        for kind, count in other.counts.items():
            room = ROWS - self.counts.get(kind, 0)
            for source, rows in other.rows.get(kind, {}).items() if room > 0 else ():
                self.rows.setdefault(kind, {}).setdefault(source, []).extend(rows[:room])
                room = max(0, room - len(rows))
            self.counts[kind] = self.counts.get(kind, 0) + count
            seen = self.examples.setdefault(kind, [])
            seen += other.examples[kind][: EXAMPLES - len(seen)]

    def as_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts,
            "examples": {kind: [dataclasses.astuple(item) for item in seen] for kind, seen in self.examples.items()},
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tally:
        """The tally that `as_json` wrote."""
        examples = {kind: [Example(*item) for item in seen] for kind, seen in document["examples"].items()}
        return cls(dict(document["counts"]), examples, document["rows"])

    def findings(self) -> tuple[FindingCount, ...]:
        """Rejections first, then what was left out or changed, then what is only worth a look; each by count."""
        order = {"rejected": 0, "duplicate": 1, "changed": 2, "kept": 3}
        kinds = sorted(self.counts, key=lambda kind: (order[DEFECTS[kind].effect], -self.counts[kind], kind))
        return tuple(
            FindingCount(
                kind,
                DEFECTS[kind].title,
                DEFECTS[kind].effect,
                DEFECTS[kind].by,
                DEFECTS[kind].fix,
                self.counts[kind],
                tuple(self.examples[kind]),
                {source: tuple(rows) for source, rows in self.rows.get(kind, {}).items()},
            )
            for kind in kinds
        )


def lengths(tokens: NDArray[Any], max_length: int, over_rows: int, over_answer_tokens: int) -> Lengths:
    """Summary and histogram of row lengths in tokens."""
    if not len(tokens):
        return Lengths(max_length, 0.0, 0, 0, 0, 0, (), over_rows, over_answer_tokens)
    median, p90, p99, high = (int(value) for value in np.quantile(tokens, (0.5, 0.9, 0.99, 0.995), method="lower"))
    longest = int(tokens.max())
    return Lengths(
        max_length,
        round(float(tokens.mean()), 1),
        median,
        p90,
        p99,
        longest,
        _bins(tokens, high, longest),
        over_rows,
        over_answer_tokens,
    )


def _bins(tokens: NDArray[Any], high: int, longest: int) -> tuple[Bin, ...]:
    """About twenty bars of a round width over the range that holds 99.5 % of the rows; the last takes the rest."""
    width = next(step for step in _round_widths() if step * 20 > high)
    count = high // width + 1
    rows = np.bincount(np.minimum(tokens // width, count - 1), minlength=count)
    ends = [width * (number + 1) for number in range(count)]
    ends[-1] = max(ends[-1], longest + 1)
    return tuple(Bin(width * number, ends[number], int(rows[number])) for number in range(count))


def _round_widths() -> Iterator[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10
