"""Train, validation and test: decided by what rows say, so the same rows land in the same split in any order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test", "heldout": "test",
}  # fmt: skip


def of_name(name: str) -> str:
    """The split a file or one of its folders is named after: `data/train-00001.jsonl` -> `train`; else empty."""
    for part in reversed(PurePosixPath(name.lower()).parts):
        for word in re.findall(r"[a-z]+", part):
            if word in _NAMES:
                return _NAMES[word]
    return ""


def assign(
    groups: NDArray[np.uint64], shares: Mapping[str, float], strata: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """The split of each row, as a position in SPLITS.

    Args:
        groups: a content hash a row; rows of one group (same prompt, near duplicates) never part.
        shares: share of rows for `validation` and `test`; a share above zero gets at least one group when
            there are three or more.
        strata: a number a row (its source file); each stratum is divided on its own, whole groups by their first row.

    Groups are ordered by their hash and dealt until a split has its share: sizes are exact to one group, and neither
    the order of the rows nor the order of the files matters.
    """
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(order)])
    del ordered
    counts = np.diff(begins, append=len(order))
    split_of_group = np.zeros(len(begins), np.uint8)
    stratum_of_group = strata[order[begins]] if strata is not None else np.zeros(len(begins), np.int64)
    for stratum in np.unique(stratum_of_group):
        # Sorted, so positions are in the order of the hashes.
        members = np.flatnonzero(stratum_of_group == stratum)
        split_of_group[members] = _deal(counts[members], shares)
    found = np.empty(len(order), np.uint8)
    found[order] = np.repeat(split_of_group, counts)
    return found


def _deal(counts: NDArray[np.int64], shares: Mapping[str, float]) -> NDArray[np.uint8]:
    """Splits of groups in their order, given how many rows each has."""
    dealt = np.zeros(len(counts), np.uint8)
    total, position = int(counts.sum()), 0
    for split in ("test", "validation"):
        wanted = round(total * shares.get(split, 0.0))
        if shares.get(split, 0.0) and len(counts) >= 3:
            wanted = max(wanted, 1)
        if not wanted:
            continue
        taken = np.cumsum(counts[position:])
        # One group at least stays for training, whatever the shares.
        end = min(position + int(np.searchsorted(taken, wanted)) + 1, len(counts) - 1)
        dealt[position:end] = SPLITS.index(split)
        position = max(position, end)
    return dealt
