"""What the AWS Price List API says, what the user enters, and what is not known."""

from __future__ import annotations

import errno
import json
from datetime import date
from pathlib import Path
from unittest.mock import Mock

import pytest

from llmtuner_kit import costs, prices
from llmtuner_kit.errors import DataError, SettingsError
from llmtuner_kit.workspace import Workspace

TODAY = date(2026, 11, 26)


@pytest.fixture(autouse=True)
def own_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "refreshed_book", lambda: tmp_path / "prices.json")


def product(usage: str, usd: str, unit: str = "Hrs") -> str:
    dimension = {"unit": unit, "pricePerUnit": {"USD": usd}}
    terms = {"OnDemand": {"t": {"priceDimensions": {"d": dimension}}}}
    return json.dumps({"product": {"attributes": {"usagetype": usage}}, "terms": terms})


def test_usage_types_of_jobs_endpoints_and_processing_are_read_and_others_left() -> None:
    found = prices.parse(
        [
            product("USE1-Host:ml.m5.large", "0.115"),
            product("USE1-Processing:ml.m5.large", "0.116"),
            product("Train:ml.g5.xlarge", "1.4"),
            product("USE1-Host:ml.g5.xlarge", "0"),
            product("USE1-Notebk:ml.m5.large", "9"),
            product("USE1-Host:ml.m5.large", "7", unit="GB"),
        ]
    )
    assert found == {"ml.m5.large": {"hosting": 0.115, "processing": 0.116}, "ml.g5.xlarge": {"training": 1.4}}


def test_a_refreshed_price_stands_before_the_packaged_one_and_uses_may_differ() -> None:
    before = costs.price("ml.m5.2xlarge", "us-east-1", "processing")
    assert before is not None
    done = prices.save("us-east-1", {"ml.m5.2xlarge": {"hosting": 0.5, "processing": 0.6}}, TODAY)
    assert done.changed == {"ml.m5.2xlarge": (before.usd_per_hour, 0.5)}
    now = costs.price("ml.m5.2xlarge", "us-east-1", "processing")
    assert now == costs.Price(0.6, "2026-11-26", "AWS Price List API, us-east-1")
    assert costs.price("ml.g5.xlarge", "us-east-1") is not None


def test_a_region_without_prices_changes_nothing() -> None:
    with pytest.raises(DataError, match="names no SageMaker instance price"):
        prices.save("mars-1", {}, TODAY)
    assert not costs.refreshed_book().exists()


def test_an_unknown_price_is_said_to_be_unknown_until_the_user_enters_it() -> None:
    assert "price unknown" in costs.priced(costs.price("ml.m5.4xlarge", "eu-central-1", "processing"))
    prices.enter("ml.m5.4xlarge", 1.1, "eu-central-1", TODAY)
    for use in ("hosting", "processing", "training"):
        assert costs.price("ml.m5.4xlarge", "eu-central-1", use) == costs.Price(1.1, "2026-11-26", "entered by you")  # type: ignore[arg-type]
    assert costs.price("ml.m5.2xlarge", "eu-central-1") is None


@pytest.mark.parametrize(("name", "amount"), [("ml.m5.4xlrge", 1.0), ("ml.m5.4xlarge", 0.0), ("ml.m5.4xlarge", -2.0)])
def test_what_is_no_price_of_an_instance_is_refused(name: str, amount: float) -> None:
    with pytest.raises(SettingsError):
        prices.enter(name, amount, "us-east-1", TODAY)


def test_the_local_cloud_has_no_prices_to_refresh(workspace: Workspace) -> None:
    with pytest.raises(SettingsError, match="come from AWS"):
        prices.refresh(workspace.aws)


def test_a_price_book_of_somebody_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = PermissionError(errno.EACCES, "Permission denied")
    costs.price("ml.g5.xlarge", "us-east-1")  # the packaged book is read and kept
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=closed))
    with pytest.raises(DataError, match=r"prices\.json cannot be read: Permission denied(?s:.*)LLMTUNER_CACHE"):
        costs.price("ml.g5.xlarge", "us-east-1")
