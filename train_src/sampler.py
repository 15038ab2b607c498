"""Which rows a step trains, how they are shared by processes, and cut into forward passes.

A step is measured in tokens, not rows. The order of rows depends only on the seed and the epoch, so a job that starts
again in the middle takes up exactly the row it stopped at.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from data import Row


def plan_epoch(
    rows: Sequence[Row], *, batch_tokens: int, seed: int, epoch: int, first: int | None = None
) -> list[list[int]]:
    """Row numbers of each optimizer step of an epoch, in a random order that only seed and epoch decide.

    `first`: of so many rows at the beginning of that order.

    A step takes rows until it has `batch_tokens` tokens; a row is never split, so steps differ by less than one row. A
    remainder smaller than half a step joins the last one: a tiny batch would get the weight of a full one.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(rows))[:first]
    ends = np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows))[order])
    starts, before = [0], 0
    while (start := max(int(np.searchsorted(ends, before + batch_tokens, "right")), starts[-1] + 1)) < len(order):
        starts.append(start)
        before = int(ends[start - 1])
    if len(starts) > 1 and (ends[-1] - before) * 2 < batch_tokens:
        starts.pop()
    return [order[start:end].tolist() for start, end in itertools.pairwise([*starts, len(order)])]


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
