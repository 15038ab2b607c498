"""The limit of a job: what was asked for, what the budget buys, and no more than an account may run."""

from __future__ import annotations

from llmtuner_kit import costs, quotes
from llmtuner_kit.settings import TrainSettings

DAY = 86400


def limit(seconds: float = 1200.0, **asked: float) -> int:
    return quotes.runtime_limit(TrainSettings.model_validate(asked), (seconds / 2, seconds), "us-east-1", 300)


def test_a_generous_budget_asks_for_no_longer_run_than_accounts_usually_may() -> None:
    assert limit(budget_usd=1000) == 5 * DAY
    assert limit(budget_usd=1000, seconds=7 * DAY) == 7 * DAY
    assert limit(seconds=3 * DAY) == 5 * DAY


def test_what_was_asked_for_stands_up_to_sagemakers_own_limit() -> None:
    assert limit(max_runtime_minutes=10 * 24 * 60) == 10 * DAY
    assert limit(max_runtime_minutes=28 * 24 * 60, budget_usd=10_000) == 28 * DAY


def test_a_small_budget_is_the_limit_less_the_time_to_save() -> None:
    rate = costs.hourly("ml.g5.xlarge", "us-east-1", 1, "training")
    assert rate is not None
    assert limit(budget_usd=1.5) == int(1.5 / rate * 3600) - 300
    assert limit(budget_usd=1.5, max_runtime_minutes=30) == 1800
