"""The quote of a processing job, and the budget it needs where jobs are charged."""

from __future__ import annotations

import pytest

from llmtuner_kit import catalog, costs
from llmtuner_kit.dataset import quotes
from llmtuner_kit.dataset.sources import Listing, Stored
from llmtuner_kit.errors import BudgetError
from llmtuner_kit.settings import PrepareSettings
from llmtuner_kit.workspace import Workspace


def listing(*files: tuple[str, int]) -> Listing:
    stored = tuple(Stored(name, f"in/{name}", size, "e") for name, size in files)
    return Listing("lamps", "bucket", "in/", stored, ())


GIGABYTE = listing(("a.jsonl", 10**9))


@pytest.fixture
def charged(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(type(workspace.aws), "charged", property(lambda _: True))
    return workspace


def test_the_disk_holds_the_files_what_they_unpack_to_and_the_result() -> None:
    assert quotes.volume_gb(listing(("a.jsonl", 1000))) == 30
    assert quotes.volume_gb(listing(("a.jsonl", 20 * 10**9))) == 100
    assert quotes.volume_gb(listing(("a.jsonl.gz", 20 * 10**9))) == 820


def test_a_quote_is_a_range_that_grows_with_the_files_and_shrinks_with_the_machine(workspace: Workspace) -> None:
    small = quotes.quote(workspace, PrepareSettings(), listing(("a.jsonl", 10**6)))
    large = quotes.quote(workspace, PrepareSettings(), GIGABYTE)
    faster = quotes.quote(workspace, PrepareSettings(instance_type="ml.m5.12xlarge"), GIGABYTE)
    packed = quotes.quote(workspace, PrepareSettings(), listing(("a.jsonl.gz", 10**9)))
    assert small.seconds[0] < small.seconds[1]
    assert small.seconds[1] < large.seconds[1] < packed.seconds[1]
    assert faster.seconds[1] < large.seconds[1]
    assert large.money.low is not None
    assert large.price is not None
    assert large.money.low == pytest.approx(large.seconds[0] / 3600 * large.price.usd_per_hour)
    assert large.most == pytest.approx(2 * large.price.usd_per_hour)


def test_every_machine_offered_has_a_price_with_a_source_where_the_book_knows_prices() -> None:
    for item in catalog.PROCESSING_INSTANCES:
        found = costs.price(item.instance_type, "us-east-1", "processing")
        assert found is not None
        assert found.source


def test_an_unknown_price_is_told_and_bounds_nothing(charged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "price", lambda *_: None)
    made = quotes.quote(charged, PrepareSettings(budget_usd=0.01), GIGABYTE)
    assert str(made.money) == "unknown (no price in the book)"
    assert made.max_runtime_seconds == 7200
    quotes.require_budget(made)


def test_no_job_is_charged_without_a_budget_and_none_runs_beyond_it(charged: Workspace) -> None:
    with pytest.raises(BudgetError, match="no budget"):
        quotes.require_budget(quotes.quote(charged, PrepareSettings(), GIGABYTE))
    with pytest.raises(BudgetError, match="the budget is"):
        quotes.require_budget(quotes.quote(charged, PrepareSettings(budget_usd=0.001), GIGABYTE))
    enough = quotes.quote(charged, PrepareSettings(budget_usd=0.461), GIGABYTE)
    quotes.require_budget(enough)
    assert enough.max_runtime_seconds == 3600
    assert quotes.quote(charged, PrepareSettings(budget_usd=50), GIGABYTE).max_runtime_seconds == 7200


def test_what_is_not_charged_needs_no_budget(workspace: Workspace) -> None:
    quotes.require_budget(quotes.quote(workspace, PrepareSettings(), GIGABYTE))
    with pytest.raises(BudgetError, match="the budget is"):  # a rehearsal refuses what AWS would refuse
        quotes.require_budget(quotes.quote(workspace, PrepareSettings(budget_usd=0.001), GIGABYTE))
