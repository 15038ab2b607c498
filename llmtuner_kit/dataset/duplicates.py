"""Duplicates over the whole dataset, however large: columns of numbers in memory, texts read only to prove a pair."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtuner_kit.dataset import conversion, near
from llmtuner_kit.dataset.store import Store

Indexes = NDArray[np.int64]
NONE = -1
EXACT, NEAR = 1, 2
# In a group of rows that share a band, each is compared with this many of the first ones.
_LEADERS = 2


@dataclass
class Duplicates:
    """`twin[i]` is the earlier row that row i repeats, or NONE; `kind[i]` says how (0, EXACT or NEAR).

    `cluster[i]` is the same number for rows that belong together: near duplicates that are kept must not be parted
    between splits.
    """

    twin: Indexes
    kind: NDArray[np.uint8]
    cluster: Indexes


def find(store: Store, *, drop_near: bool, progress: Callable[[int, int], None]) -> Duplicates:
    """All duplicates of a store. With `drop_near` off, near duplicates only form clusters."""
    total = store.rows
    twin = np.full(total, NONE, np.int64)
    kind = np.zeros(total, np.uint8)
    _exact(store, twin, kind)
    store.forget("hi", "lo")
    cluster = np.arange(total)
    pairs = _candidates(store, kind, progress)
    texts = _Texts(store)
    for later, earlier in pairs:
        if kind[earlier]:
            earlier = twin[earlier]
        if kind[later] or earlier == later or not texts.similar(int(later), int(earlier)):
            continue
        _join(cluster, int(later), int(earlier))
        if drop_near:
            twin[later], kind[later] = earlier, NEAR
    dropped = np.flatnonzero(kind == EXACT)
    cluster[dropped] = cluster[twin[dropped]]
    return Duplicates(twin, kind, _roots(cluster))


def _exact(store: Store, twin: Indexes, kind: NDArray[np.uint8]) -> None:
    high = store.column("hi")
    order = np.argsort(high, kind="stable")  # equal rows stay in their order, the first of them is kept
    again = high[order[1:]] == high[order[:-1]]
    # Only rows that share the first half of their hash need a look at the second.
    rows = order[np.concatenate([again, [False]]) | np.concatenate([[False], again])]
    if not len(rows):
        return
    high, low = high[rows], store.column("lo")[rows]
    order = np.lexsort((low, high))
    same = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
    begins = np.concatenate([[True], ~same])
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    repeated = rows[order[~begins]]
    twin[repeated], kind[repeated] = rows[first[~begins]], EXACT


def _candidates(store: Store, kind: NDArray[np.uint8], progress: Callable[[int, int], None]) -> NDArray[np.int64]:
    """Pairs (later, earlier) of rows that share a band, each once, in the order of the later row."""
    alive = np.flatnonzero(kind == 0)
    found = []
    loose = store.column("loose")[alive]
    found.append(_pairs(loose, alive))
    for band in range(near.BANDS):
        progress(band, near.BANDS)
        found.append(_pairs(store.band(band)[alive], alive))
    pairs = np.concatenate(found)
    return np.unique(pairs, axis=0) if len(pairs) else pairs


def _pairs(values: NDArray[np.unsignedinteger], rows: Indexes) -> NDArray[np.int64]:
    """Pairs (later, earlier) of rows with the same value. Most values stand alone and cost their order only."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    if not len(repeats):
        return np.zeros((0, 2), np.int64)
    # Runs of neighbouring repeats are one group each, which begins one place before the first of them.
    begins = np.concatenate([[True], repeats[1:] != repeats[:-1] + 1])
    start = np.maximum.accumulate(np.where(begins, repeats - 1, 0))
    pairs = []
    for leader in range(_LEADERS):
        follows = repeats > start + leader
        pairs.append(np.stack([rows[order[repeats[follows]]], rows[order[start[follows] + leader]]], axis=1))
    return np.concatenate(pairs).astype(np.int64)


class _Texts:
    """Compares rows by their text, reading them from the store; the last ones read are kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loose = store.column("loose")
        self._known: dict[int, bytes] = {}

    def similar(self, one: int, other: int) -> bool:
        if self._loose[one] == self._loose[other]:
            return True
        return near.similarity(self._text(one), self._text(other)) >= near.SIMILAR

    def _text(self, row: int) -> bytes:
        if row not in self._known:
            if len(self._known) > 20_000:
                self._known.clear()
            # A row that was split is known by its first part, on both sides alike.
            prompt, answer = conversion.prompt_and_answer(json.loads(self._store.lines(row).split(b"\n")[0]))
            self._known[row] = near.normalise(prompt) + b" " + near.normalise(answer)
        return self._known[row]


def _join(cluster: Indexes, one: int, other: int) -> None:
    a, b = _root(cluster, one), _root(cluster, other)
    cluster[max(a, b)] = min(a, b)


def _root(cluster: Indexes, row: int) -> int:
    while cluster[row] != row:
        cluster[row] = cluster[cluster[row]]
        row = int(cluster[row])
    return row


def _roots(cluster: Indexes) -> Indexes:
    while True:
        higher = cluster[cluster]
        if np.array_equal(higher, cluster):
            return cluster
        cluster = higher
