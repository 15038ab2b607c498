"""Reading without knowing whose answer it is: letters drawn by lot, and what a reader's votes say once they are known."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

LETTERS = ("A", "B")
NEITHER = "no difference"
Order = tuple[str, str]
"""Who is A and who is B: ("base", "tuned") or ("tuned", "base")."""


def order(place: int, prompt: str) -> Order:
    """Who is A and who is B for the question at a place: drawn by lot, the same each time."""
    first, second = random.Random(f"{place}: {prompt}").sample(("base", "tuned"), 2)  # noqa: S311 - a lot, not a secret
    return first, second


def tally(orders: Sequence[Order], votes: Sequence[str]) -> dict[str, int]:
    """Votes (`A`, `B`, `no difference`, or empty for none) as counts of whom they were for."""
    found = Counter(chosen(*pair) for pair in zip(orders, votes, strict=True))
    return {who: found[who] for who in ("tuned", "base", NEITHER)}


def chosen(letters: Order, vote: str) -> str:
    """Whom a vote was for; empty when there is none."""
    return letters[LETTERS.index(vote)] if vote in LETTERS else vote


def in_words(counts: dict[str, int]) -> str:
    """What a reader's votes came to."""
    if not sum(counts.values()):
        return "no votes yet"
    return f"{counts['tuned']} for tuned, {counts['base']} for base, {counts[NEITHER]} without a difference"
