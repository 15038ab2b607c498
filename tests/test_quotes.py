"""The limit of a job and its budget: what was asked for, what the budget buys, and what would fit into it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llmtuner_kit import catalog, costs, quotes
from llmtuner_kit.errors import BudgetError
from llmtuner_kit.faces import views
from llmtuner_kit.settings import TrainSettings

DAY = 86400


def limit(seconds: float = 1200.0, **asked: float) -> int:
    return quotes.runtime_limit(
        TrainSettings.model_validate({"instance_type": "ml.g5.xlarge"} | asked),
        (seconds / 2, seconds),
        "us-east-1",
        300,
    )


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


def made(**asked: Any) -> quotes.Quote:
    """The quote of a 7B model on forty million tokens: hours on one GPU."""
    settings = TrainSettings.model_validate({"instance_type": "ml.g5.12xlarge"} | asked)
    work = quotes.Work(rows=80_000, tokens=int(40e6 * settings.epochs), forward_tokens=10**6, max_length=512)
    return quotes.make_quote(catalog.base_model("llama-2-7b"), work, settings, "us-east-1", charged=True)


def refused(quote: quotes.Quote) -> str:
    with pytest.raises(BudgetError) as caught:
        quotes.require_budget(quote)
    return str(caught.value)


def amount(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found[1].replace(",", ""))


def test_an_unknown_price_makes_no_amounts_that_are_unknown() -> None:
    text = repr(views.quote(made(instance_type="ml.g6.48xlarge", instance_count=1)))
    assert "llmtuner prices refresh" in text
    assert not re.search(r"unknown (at most|an hour|a month)", text)


def test_a_part_of_a_quote_takes_no_time_only_where_it_says_how_much_at_most() -> None:
    seconds = [(0.2, 0.9), (0.2, 1.1), (3.0, 3.2), (3.0, 70.0)]
    assert [views._range(each) for each in seconds] == ["under 1 s", "up to 1 s", "3 s", "3 s to 1 min 10 s"]


def test_a_budget_below_the_quote_is_quoted_all_the_same_and_refused_with_what_is_missing() -> None:
    whole = made()
    assert whole.money.low is not None
    asked = made(budget_usd=round(whole.money.low / 2, 2))
    assert (asked.money, asked.seconds) == (whole.money, whole.seconds)
    said = refused(asked)
    assert str(asked.money) in said
    enough = amount(r"budget_usd from \$([\d,.]+)", said)
    assert amount(r"\$([\d,.]+) too little", said) == pytest.approx(enough - asked.budget_usd, abs=0.011)
    quotes.require_budget(made(budget_usd=enough))


def test_what_is_said_to_fit_into_the_budget_fits() -> None:
    whole = made()
    assert whole.money.low is not None
    budget = round(whole.money.low * 0.6, 2)
    said = refused(made(budget_usd=budget))
    machine = re.search(r"instance_type to '([^']+)'", said)
    assert machine
    quotes.require_budget(made(budget_usd=budget, instance_type=machine[1]))
    share = amount(r"train on (\d+) % as many", said) / 100
    quotes.require_budget(made(budget_usd=budget, epochs=share))
    refused(made(budget_usd=budget, epochs=share + 0.02))


def test_a_budget_that_only_pays_for_saving_the_work_is_too_small() -> None:
    tiny = quotes.Work(rows=10, tokens=1000, forward_tokens=0, max_length=128)
    settings = TrainSettings(instance_type="ml.g5.12xlarge")

    def quoted(budget: float) -> quotes.Quote:
        asked = settings.model_copy(update={"budget_usd": budget})
        return quotes.make_quote(catalog.base_model("llama-2-7b"), tiny, asked, "us-east-1", charged=True)

    low, enough = quoted(0.0).money.low, quoted(0.0).usd_at_least
    assert low is not None
    assert enough is not None
    assert low < enough  # to pack and send the model takes longer than to train it
    assert quoted(low).short == pytest.approx(enough - low)
    assert "minutes of it are kept to save the work" in refused(quoted(low))
    assert "as many" not in refused(quoted(low))  # less work would not help
    rate = costs.hourly("ml.g5.12xlarge", "us-east-1", 1, "training")
    assert rate is not None
    paid = quoted(enough + 0.01)
    quotes.require_budget(paid)
    assert (paid.max_runtime_seconds + paid.save_seconds) * rate / 3600 <= enough + 0.01


@pytest.mark.parametrize("model", [m for m in catalog.BASE_MODELS if m.hub_id], ids=lambda model: model.model_id)
def test_a_form_left_as_it_is_quotes_a_job_that_can_be_started(model: catalog.BaseModel) -> None:
    splits = {"train": {"rows": 1000, "tokens": 300_000}}
    work = quotes.work_of({"splits": splits}, model, TrainSettings())
    made = quotes.make_quote(model, work, TrainSettings(), "us-east-1", charged=False)
    assert (made.instance_type, made.fit.fits) == (model.instance, True)
    assert not [note for note in made.notes if "own memory" in note]


def test_rows_that_begin_alike_lower_the_low_end_alone_and_say_so() -> None:
    model = catalog.base_model("llama-2-7b")
    settings = TrainSettings(max_length=512)
    parts = {"rows": 80_000, "tokens": 32_000_000}
    plain, alike = (
        quotes.make_quote(
            model,
            quotes.work_of({"splits": {"train": parts | {"shared_tokens": shared}}}, model, settings),
            settings,
            "us-east-1",
            charged=True,
        )
        for shared in (0, 200)
    )
    # Half of each row of 400 tokens, but for the first row of a pass.
    share = 0.5 * (1 - 400 / alike.fit.micro_tokens)
    assert alike.parts["training"][0] == pytest.approx(plain.parts["training"][0] * (1 - share))
    assert alike.seconds[1] == plain.seconds[1]
    assert [note for note in alike.notes if "200 tokens" in note]
    assert not [note for note in plain.notes if "begin" in note]
    # A pass that holds one row computes all of it.
    assert quotes.Work(10, 1000, 0, 512, shared_tokens=200, mean_length=400).spared(400) == 0
