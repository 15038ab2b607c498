"""An endpoint's quote: what stands beside the form is what the budget is held against."""

from __future__ import annotations

import dataclasses
import re

import pytest

from llmtuner_kit import catalog, costs, endpoint_quotes, fit, job_times, training
from llmtuner_kit.endpoint_quotes import EndpointQuote
from llmtuner_kit.errors import BudgetError, SettingsError
from llmtuner_kit.faces import endings
from llmtuner_kit.settings import DeploySettings
from llmtuner_kit.workspace import Workspace


@pytest.fixture
def quoted(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> EndpointQuote:
    """A 7B model on two to four instances for three hours, where endpoints are charged."""
    monkeypatch.setattr(training, "require_own_job", lambda *_: {"HyperParameters": {"model_id": "llama-2-7b"}})
    asked = DeploySettings(
        job_name="job-1", instance_type="ml.g5.2xlarge", min_instances=2, max_instances=4, time_to_live_minutes=180
    )
    return dataclasses.replace(endpoint_quotes.quote(workspace, asked), charged=True)


def test_the_most_is_all_instances_until_the_time_to_live_ends(quoted: EndpointQuote) -> None:
    rate = costs.hourly("ml.g5.2xlarge", "us-east-1")
    assert rate is not None
    assert quoted.usd_per_hour == rate
    assert quoted.usd_until_expiry == pytest.approx(rate * 4 * 3)
    shown = repr(endings.quote(quoted))
    for text in ("2 to 4 x ml.g5.2xlarge", costs.usd(rate), costs.usd(rate * 12), "3 h 0 min", "set budget_usd"):
        assert text in shown


def test_how_long_it_takes_until_it_serves_is_said_and_grows_with_the_model(quoted: EndpointQuote) -> None:
    low, high = quoted.starting_seconds
    assert 60 < low < high < quoted.time_to_live_minutes * 60
    assert " min " in str(dict(endings.quote(quoted).facts)["serves after"])
    larger = job_times.endpoint_start(catalog.base_model("llama-2-13b"))
    assert larger[0] > low
    assert larger[1] > high


def test_what_an_endpoint_costs_that_nobody_deletes_is_said_with_who_can(quoted: EndpointQuote) -> None:
    rate = costs.hourly("ml.g5.2xlarge", "us-east-1")
    assert rate is not None
    assert quoted.usd_per_month == pytest.approx(rate * 2 * 730)
    after = str(dict(endings.quote(quoted).facts)["after that"])
    assert after.startswith(f"{costs.usd(rate * 2 * 730)} a month")
    assert "08_cleanup or `llmtuner guard --delete` deletes it" in after
    assert "--target local" in repr(endings.quote(dataclasses.replace(quoted, charged=False)))


def test_beside_the_form_stands_what_deploy_would_refuse(quoted: EndpointQuote) -> None:
    assert "no budget is set" in endings.quote(quoted).blocked
    assert "the budget is" in endings.quote(dataclasses.replace(quoted, budget_usd=1.0)).blocked
    assert endings.quote(dataclasses.replace(quoted, budget_usd=100.0)).blocked == ""


def test_a_budget_must_be_there_and_cover_the_most(quoted: EndpointQuote) -> None:
    with pytest.raises(BudgetError, match="no budget is set"):
        endpoint_quotes.require_budget(quoted)
    with pytest.raises(BudgetError, match="the budget is"):
        endpoint_quotes.require_budget(dataclasses.replace(quoted, budget_usd=1.0))
    endpoint_quotes.require_budget(dataclasses.replace(quoted, budget_usd=100.0))
    endpoint_quotes.require_budget(dataclasses.replace(quoted, charged=False))
    with pytest.raises(BudgetError, match="the budget is"):  # a rehearsal refuses what AWS would refuse
        endpoint_quotes.require_budget(dataclasses.replace(quoted, charged=False, budget_usd=1.0))


def test_what_is_said_to_be_enough_is_enough(quoted: EndpointQuote) -> None:
    with pytest.raises(BudgetError) as caught:
        endpoint_quotes.require_budget(dataclasses.replace(quoted, budget_usd=4.0))
    found = re.search(r"budget_usd from \$([\d.]+), or time_to_live_minutes up to (\d+)", str(caught.value))
    assert found
    endpoint_quotes.require_budget(dataclasses.replace(quoted, budget_usd=float(found[1])))
    assert quoted.usd_until_expiry is not None
    assert quoted.usd_until_expiry * int(found[2]) / 180 <= 4.0
    with pytest.raises(BudgetError) as caught:
        endpoint_quotes.require_budget(dataclasses.replace(quoted, budget_usd=0.05))
    assert "time_to_live_minutes up to" not in str(caught.value)  # less than an endpoint may live


def test_an_unknown_price_is_said_before_a_budget_is_asked_for(quoted: EndpointQuote) -> None:
    unknown = dataclasses.replace(quoted, price=None, usd_per_hour=None, usd_until_expiry=None)
    text = repr(endings.quote(unknown))
    assert "price unknown" in text
    assert "unknown at most" not in text
    assert "unknown a month" not in text
    with pytest.raises(BudgetError, match="llmtuner prices refresh"):
        endpoint_quotes.require_budget(unknown)


def test_what_does_not_fit_is_shown_and_refused(quoted: EndpointQuote) -> None:
    small = fit.serving_fit(catalog.base_model("llama-2-13b"), catalog.instance("ml.g5.xlarge"))
    made = dataclasses.replace(quoted, fit=small)
    assert "NO: " in repr(endings.quote(made))
    with pytest.raises(SettingsError, match="cannot be served"):
        endpoint_quotes.require_fit(made)
