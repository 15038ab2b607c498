"""Train, validation and test: decided by what rows say, so the same rows land in the same split in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SPLITS = ("train", "validation", "test")


def assign(groups: Sequence[bytes], shares: Mapping[str, float], strata: Sequence[str] | None = None) -> list[str]:
    """The split of each row.

    Args:
        groups: one content hash a row; rows of one group (same prompt, near duplicates) never part.
        shares: share of rows for `validation` and `test`; a share above zero gets at least one group when
            there are three or more.
        strata: a label a row (its source file), each of which is divided on its own.

    Groups are ordered by their hash and dealt until a split has its share: sizes are exact to one group, and neither
    the order of the rows nor the order of the files matters.
    """
    rows_of: dict[str, dict[bytes, int]] = {}
    for number, group in enumerate(groups):
        stratum = strata[number] if strata is not None else ""
        counts = rows_of.setdefault(stratum, {})
        counts[group] = counts.get(group, 0) + 1
    split_of: dict[tuple[str, bytes], str] = {}
    for stratum, counts in rows_of.items():
        for group, split in _deal(counts, shares).items():
            split_of[stratum, group] = split
    return [split_of[strata[n] if strata is not None else "", group] for n, group in enumerate(groups)]


def _deal(counts: Mapping[bytes, int], shares: Mapping[str, float]) -> dict[bytes, str]:
    order = sorted(counts)
    total = sum(counts.values())
    dealt: dict[bytes, str] = {}
    position = 0
    for split in ("test", "validation"):
        wanted = round(total * shares.get(split, 0.0))
        if shares.get(split, 0.0) and len(order) >= 3:
            wanted = max(wanted, 1)
        taken = 0
        # One group at least stays for training, whatever the shares.
        while taken < wanted and position < len(order) - 1:
            dealt[order[position]] = split
            taken += counts[order[position]]
            position += 1
    return dealt | dict.fromkeys(order[position:], "train")
