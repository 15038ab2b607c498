"""Channels of JSON lines -> batches of tokens.

A batch is measured in tokens, not rows, and has no padding where the model allows it: the rows of a causal batch lie
end to end in one sequence. The order of rows depends only on the seed and the epoch, so a job that starts again in the
middle takes up exactly the row it stopped at. Data that cannot teach anything stops the job here, before the model is
loaded.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conversations import RowError
from encoding import EncodedRow, Encoder
from failures import TrainingError

SHOWN_ROWS = 3


@dataclass(frozen=True)
class Row:
    """One encoded row. `ids` are the sequence (causal) or the decoder's target (seq2seq)."""

    ids: np.ndarray
    trained: np.ndarray
    source_ids: np.ndarray | None
    place: str

    def __len__(self) -> int:
        return len(self.ids) + (0 if self.source_ids is None else len(self.source_ids))

    @property
    def labels(self) -> int:
        """How many tokens of the row the loss is computed on. A sequence's first token has nothing before it."""
        return int(self.trained.sum() if self.source_ids is not None else self.trained[1:].sum())


@dataclass(frozen=True)
class Channel:
    """The rows of one input channel, with what had to be done to fit them into the model."""

    rows: list[Row]
    cut: int = 0
    dropped: int = 0
    stop_ids: frozenset[int] = frozenset()  # control tokens that end an answer

    @property
    def tokens(self) -> int:
        """Tokens of all rows, prompts and answers."""
        return sum(map(len, self.rows))

    @property
    def labels(self) -> int:
        """Tokens that the loss is computed on."""
        return sum(row.labels for row in self.rows)


def fingerprint(rows: Sequence[Row]) -> str:
    """Hex digest of what the model sees of the rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        source = np.empty(0, np.int32) if row.source_ids is None else row.source_ids
        for part in (np.array([len(row.ids), len(source)], np.int64), row.ids, row.trained, source):
            digest.update(part.tobytes())
    return digest.hexdigest()


def read_rows(folder: Path) -> tuple[list[Any], list[str]]:
    """The rows of every .jsonl file under the folder, and the file and line each stands at."""
    rows: list[Any] = []
    places: list[str] = []
    for path in sorted(folder.rglob("*.jsonl")):
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    rows.append(json.loads(line.decode()))
                except (ValueError, RecursionError) as error:
                    kind = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
                    rows.append(RowError(f"not {kind}: {error}"))
                places.append(f"{path.name} line {number}")
    return rows, places


def load_channel(folder: Path, encoder: Encoder, *, max_length: int, long_rows: str) -> Channel:
    """Read and encode one channel. Raises TrainingError when its rows cannot be trained on, naming the first ones."""
    rows, places = read_rows(folder)
    if not rows:
        raise TrainingError(f"channel {folder.name} has no row: it needs .jsonl files with one JSON object a line")
    encoded = list(encoder.encode(rows))
    bad = [(place, result) for place, result in zip(places, encoded, strict=True) if isinstance(result, RowError)]
    if bad:
        _stop(f"{len(bad)} of {len(rows)} rows of channel {folder.name} are not usable", bad)
    good = [result for result in encoded if isinstance(result, EncodedRow)]
    untrained = [(place, "no token") for place, row in zip(places, good, strict=True) if not any(row.trained)]
    if untrained:
        _stop(f"{len(untrained)} of {len(rows)} rows of channel {folder.name} have no token to train on", untrained)
    kept, cut, dropped = _fit(good, places, max_length, long_rows, folder.name)
    endings = {row.ids[max(i for i, trained in enumerate(row.trained) if trained)] for row in good}
    return Channel(kept, cut, dropped, frozenset(endings & encoder.special_ids))


def _fit(
    rows: list[EncodedRow], places: list[str], max_length: int, long_rows: str, name: str
) -> tuple[list[Row], int, int]:
    """Apply `long_rows` to the rows that are longer than `max_length`."""
    kept: list[Row] = []
    cut_answers = cut = dropped = 0
    for row, place in zip(rows, places, strict=True):
        short = row.cut(max_length)
        if short is not row:
            if long_rows == "stop":
                raise TrainingError(
                    f"{place} of channel {name} has {len(row)} tokens, max_length is {max_length}: raise max_length, "
                    "or set long_rows to cut or drop"
                )
            cut_answers += sum(short.trained) < sum(row.trained)
        source = None if short.source_ids is None else np.asarray(short.source_ids, np.int32)
        fitted = Row(np.asarray(short.ids, np.int32), np.asarray(short.trained, bool), source, place)
        if short is not row and (long_rows == "drop" or not fitted.labels):
            dropped += 1
            continue
        cut += short is not row
        kept.append(fitted)
    if cut_answers * 2 > len(rows) or not kept:
        longest = max(map(len, rows))
        raise TrainingError(
            f"max_length {max_length} cuts the answer of {cut_answers} of {len(rows)} rows of channel {name}: "
            f"raise max_length (the longest row has {longest} tokens) or shorten the rows"
        )
    return kept, cut, dropped


def _stop(what: str, examples: Sequence[tuple[str, object]]) -> None:
    shown = "; ".join(f"{place}: {reason}" for place, reason in examples[:SHOWN_ROWS])
    more = f"; and {len(examples) - SHOWN_ROWS} more" if len(examples) > SHOWN_ROWS else ""
    raise TrainingError(f"{what}. {shown}{more}")


def plan_epoch(
    rows: Sequence[Row], *, batch_tokens: int, seed: int, epoch: int, first: int | None = None
) -> list[list[int]]:
    """Row numbers of each optimizer step of an epoch, in a random order that only seed and epoch decide.

    `first`: of so many rows at the beginning of that order.

    A step takes rows until it has `batch_tokens` tokens; a row is never split, so steps differ by less than one row. A
    remainder smaller than half a step joins the last one: a tiny batch would get the weight of a full one.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(rows))[:first]
    steps: list[list[int]] = [[]]
    tokens = 0
    for number in map(int, order):
        if tokens and tokens + len(rows[number]) > batch_tokens:
            steps.append([])
            tokens = 0
        steps[-1].append(number)
        tokens += len(rows[number])
    if len(steps) > 1 and tokens * 2 < batch_tokens:
        remainder = steps.pop()
        steps[-1] += remainder
    return steps


def split_micro(
    rows: Sequence[Row], numbers: Sequence[int], micro_batch_tokens: int, *, is_padded: bool
) -> list[list[int]]:
    """Cut the rows of one step into forward passes of at most `micro_batch_tokens` (a longer row goes alone).

    Rows that are padded to the longest of their pass count as long as that, and are sorted by length first.
    """
    if not numbers:
        return []
    if is_padded:
        numbers = sorted(numbers, key=lambda number: (_source_length(rows[number]), len(rows[number].ids), number))
    parts: list[list[int]] = [[]]
    for number in numbers:
        size = _size(rows, [*parts[-1], number], is_padded)
        if parts[-1] and size > micro_batch_tokens:
            parts.append([])
        parts[-1].append(number)
    return parts


def _size(rows: Sequence[Row], numbers: Sequence[int], is_padded: bool) -> int:
    if not is_padded:
        return sum(len(rows[number]) for number in numbers)
    longest_source = max(_source_length(rows[number]) for number in numbers)
    return len(numbers) * (longest_source + max(len(rows[number].ids) for number in numbers))


def _source_length(row: Row) -> int:
    return 0 if row.source_ids is None else len(row.source_ids)


def share_of(rows: Sequence[Row], numbers: Sequence[int], rank: int, world: int) -> list[int]:
    """The rows of one step that one of `world` processes computes: longest first, each to the least loaded."""
    if world == 1:
        return list(numbers)
    loads = [0] * world
    shares: list[list[int]] = [[] for _ in range(world)]
    for number in sorted(numbers, key=lambda number: (-len(rows[number]), number)):
        least = loads.index(min(loads))
        shares[least].append(number)
        loads[least] += len(rows[number])
    return shares[rank]


def passes_of(
    rows: Sequence[Row],
    numbers: Sequence[int],
    micro_batch_tokens: int,
    rank: int,
    world: int,
    *,
    equal: bool,
    is_padded: bool = False,
) -> list[tuple[list[int], bool]]:
    """The forward passes one process makes in a step, and whether each counts.

    With `equal` all processes make the same number of passes, as those must that gather each other's weights: who has
    fewer rows adds passes of the step's shortest row that count for nothing.
    """
    shares = [share_of(rows, numbers, each, world) for each in (range(world) if equal else [rank])]
    cut = [split_micro(rows, share, micro_batch_tokens, is_padded=is_padded) for share in shares]
    mine = cut[rank if equal else 0]
    passes = [(part, True) for part in mine]
    if equal:
        most = max(map(len, cut))
        shortest = min(numbers, key=lambda number: len(rows[number]))
        passes += [([shortest], False)] * (most - len(mine))
    return passes


def iterate_steps(
    rows: Sequence[Row], *, batch_tokens: int, seed: int, skip: int = 0, epochs: float | None = None
) -> Iterator[list[int]]:
    """Row numbers of step after step from step `skip` on: without end, or for so many epochs.

    A part of an epoch is that part of its rows, and at least one row is trained.
    """
    total = None if epochs is None else max(1, round(epochs * len(rows)))
    for epoch in itertools.count():
        left = len(rows) if total is None else total - epoch * len(rows)
        if left <= 0:
            return
        steps = plan_epoch(rows, batch_tokens=batch_tokens, seed=seed, epoch=epoch, first=left)
        yield from steps[min(skip, len(steps)) :]
        skip = max(skip - len(steps), 0)
