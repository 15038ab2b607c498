"""The verdict says better or worse only when the rows say so."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from llmtuner_kit import evaluation, inference
from llmtuner_kit.settings import InvokeSettings


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
    for seed in range(20):
        interval = evaluation.paired_interval(rows(random.Random(seed), 40, shift), seed=seed)
        right += evaluation.verdict(interval, 40) == expected
    assert right >= 18


def test_the_interval_of_many_rows_is_that_of_resampling_them(monkeypatch: pytest.MonkeyPatch) -> None:
    many = rows(random.Random(1), 400, 0.05)
    resampled = evaluation.paired_interval(many)
    monkeypatch.setattr(evaluation, "MOST_RESAMPLED", len(many) - 1)
    quick = evaluation.paired_interval(many)
    assert quick == pytest.approx(resampled, abs=0.003)
    assert 0.01 < quick[1] - quick[0] < 0.1


@pytest.mark.parametrize("count", [20, 2000])
def test_a_row_counts_by_its_tokens(count: int) -> None:
    pair = [{"tokens": 90, "base_loss": 2.0, "tuned_loss": 1.0}, {"tokens": 10, "base_loss": 2.0, "tuned_loss": 4.0}]
    low, high = evaluation.paired_interval(pair * count)
    assert low < 0.9 * -1.0 + 0.1 * 2.0 < high < 0


def test_no_rows_is_no_verdict() -> None:
    low, high = evaluation.paired_interval([])
    assert math.isnan(low)
    assert evaluation.verdict((low, high), 0) == "no clear difference"


@pytest.mark.parametrize(("count", "expected"), [(1, "no clear difference"), (5, "no clear difference"), (6, "better")])
def test_a_verdict_needs_six_pairs(count: int, expected: str) -> None:
    all_better = [{"tokens": 9, "base_loss": 3.0, "tuned_loss": 2.0}] * count
    assert evaluation.verdict(evaluation.paired_interval(all_better), count) == expected


@pytest.mark.parametrize("loss", [0.0, 2.5])
def test_identical_models_have_no_clear_difference(loss: float) -> None:
    same = [{"tokens": 7, "base_loss": loss, "tuned_loss": loss}] * 20
    interval = evaluation.paired_interval(same)
    assert (interval, evaluation.verdict(interval, 20)) == ((0.0, 0.0), "no clear difference")


def test_prompt_of_a_row_is_the_user_turn_of_training() -> None:
    row = {"instruction": "Answer.", "input": "Where?", "output": "Here."}
    assert evaluation.prompt_of(row) == ([{"role": "user", "content": "Answer.\n\nWhere?"}], "Here.")
    talk = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    assert evaluation.prompt_of({"messages": talk}) == (talk[:2], "a")


def asked(*pairs: tuple[str, str]) -> tuple[evaluation.Sample, ...]:
    return tuple(evaluation.Sample("Q?", "the lamp is blue", base, tuned) for base, tuned in pairs)


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [
        ("no idea", "The lamp is blue.", "better"),
        ("The lamp is blue.", "no idea", "worse"),
        ("the lamp is red", "the lamp is red", "no clear difference"),
    ],
)
def test_answers_of_the_endpoint_are_judged_by_their_words(base: str, tuned: str, expected: str) -> None:
    made = evaluation.judged("e", asked(*[(base, tuned)] * 8))
    assert made.verdict == expected
    assert made.interval[0] <= made.tuned - made.base <= made.interval[1]


def test_a_few_questions_decide_nothing() -> None:
    made = evaluation.judged("e", asked(("no idea", "the lamp is blue")))
    assert (made.base, made.tuned, made.verdict) == (0, 1, "no clear difference")
    assert evaluation.judged("e", ()).verdict == "no clear difference"


def test_every_answer_to_compare_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "stream", lambda *_, model, **__: iter([model]))
    told: list[tuple[str, int, int]] = []
    prompts = [[{"role": "user", "content": "Why?"}]] * 2
    workspace: Any = None
    target = inference.Deployed("e", "causal")
    found = evaluation._answers(workspace, target, prompts, InvokeSettings(), lambda *each: told.append(each))
    assert found == {(number, who): who for number in range(2) for who in ("base", "tuned")}
    assert [(done, total) for _, done, total in told] == [(done, 4) for done in range(5)]


def test_agreement_counts_words_once_for_each_time_they_are_there() -> None:
    assert evaluation.agreement("Blue, blue!", "blue") == pytest.approx(2 / 3)
    assert evaluation.agreement("", "") == 1
    assert evaluation.agreement("", "blue") == 0


@pytest.mark.parametrize(
    ("count", "places"), [(0, []), (1, [0]), (3, [0, 3, 6]), (10, list(range(10))), (50, list(range(10)))]
)
def test_rows_to_ask_are_from_all_over_the_file(count: int, places: list[int]) -> None:
    assert evaluation.spread([{"n": n} for n in range(10)], count) == [{"n": n} for n in places]


def test_agreement_heeds_words_and_not_their_case_or_marks() -> None:
    assert evaluation.agreement("It IS, blue!", "it is blue") == 1
    assert evaluation.agreement("It is blue", "It is red") == pytest.approx(2 / 3)
