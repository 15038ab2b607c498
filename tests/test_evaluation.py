"""The verdict says better or worse only when the rows say so."""

from __future__ import annotations

import math
import random

import pytest

from llmtuner_kit import evaluation


def rows(draw: random.Random, count: int, shift: float) -> list[dict[str, float]]:
    """Held-out rows whose tuned loss differs from the base's by `shift` on average."""
    made = []
    for _ in range(count):
        base = draw.uniform(1.5, 3.5)
        made.append({"tokens": draw.randint(20, 120), "base_loss": base, "tuned_loss": base + draw.gauss(shift, 0.3)})
    return made


@pytest.mark.parametrize(("shift", "expected"), [(-0.3, "better"), (0.0, "no clear difference"), (0.3, "worse")])
def test_verdict_is_right_in_nearly_all_seeded_draws(shift: float, expected: str) -> None:
    right = 0
    for seed in range(40):
        interval = evaluation.paired_interval(rows(random.Random(seed), 40, shift), seed=seed)
        right += evaluation.verdict(interval) == expected
    assert right >= 36


def test_no_rows_is_no_verdict() -> None:
    low, high = evaluation.paired_interval([])
    assert math.isnan(low)
    assert evaluation.verdict((low, high)) == "no clear difference"


def test_prompt_of_a_row_is_the_user_turn_of_training() -> None:
    row = {"instruction": "Answer.", "input": "Where?", "output": "Here."}
    assert evaluation.prompt_of(row) == ([{"role": "user", "content": "Answer.\n\nWhere?"}], "Here.")
    talk = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    assert evaluation.prompt_of({"messages": talk}) == (talk[:2], "a")
