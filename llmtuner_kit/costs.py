"""Money: the price book, quotes, the running cost, the receipt.

A price that is not in the book is unknown and said to be so; nothing is guessed. Amounts are USD.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from llmtuner_kit.catalog import cache_folder
from llmtuner_kit.errors import SettingsError


@dataclass(frozen=True)
class Price:
    """What one instance costs, and how we know."""

    usd_per_hour: float
    date: str
    source: str


@dataclass(frozen=True)
class Money:
    """A range of USD; unknown when the price is not in the book."""

    low: float | None
    high: float | None

    @property
    def known(self) -> bool:
        return self.low is not None and self.high is not None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return "unknown (no price in the book)"
        if round(self.low, 2) == round(self.high, 2):
            return usd(self.high)
        return f"{usd(self.low)} to {usd(self.high)}"


def usd(amount: float | None) -> str:
    """An amount for people: cents, and more digits only below a cent."""
    if amount is None:
        return "unknown"
    return f"${amount:,.2f}" if amount >= 0.01 or amount == 0 else f"${amount:.4f}"


def refreshed_book() -> Path:
    """Where `llmtuner prices refresh` writes what the AWS Price List API says."""
    return cache_folder() / "prices.json"


@cache
def _books() -> tuple[dict[str, Any], ...]:
    packaged = json.loads(resources.files("llmtuner_kit.data").joinpath("prices.json").read_text())
    refreshed = refreshed_book()
    return (json.loads(refreshed.read_text()), packaged) if refreshed.exists() else (packaged,)


def price(instance_type: str, region: str) -> Price | None:
    """The hourly price of an instance type, or None when it is not known; a refreshed book goes first."""
    for book in _books():
        found = book["regions"].get(region, {}).get(instance_type)
        if found:
            return Price(**found)
    return None


def hourly(instance_type: str, region: str, count: int = 1) -> float | None:
    """USD per hour for a number of instances, or None."""
    found = price(instance_type, region)
    return found.usd_per_hour * count if found else None


def running_cost(instance_type: str, region: str, seconds: float, count: int = 1) -> float | None:
    """USD for a number of billable seconds on each instance, or None when the price is unknown."""
    rate = hourly(instance_type, region, count)
    return None if rate is None else rate * seconds / 3600


def cost_range(instance_type: str, region: str, seconds: tuple[float, float], count: int = 1) -> Money:
    """USD for a range of seconds."""
    return Money(
        running_cost(instance_type, region, seconds[0], count), running_cost(instance_type, region, seconds[1], count)
    )


@dataclass(frozen=True)
class Line:
    """One line of a receipt."""

    what: str
    instance_type: str
    seconds: float
    usd: float | None
    quoted: str
    verdict: str


@dataclass(frozen=True)
class Receipt:
    """What a run has cost against its quotes; `charged` says whether it appears on a bill."""

    run_name: str
    lines: tuple[Line, ...]
    charged: bool

    @property
    def total_usd(self) -> float | None:
        amounts = [line.usd for line in self.lines]
        return None if any(item is None for item in amounts) else sum(item for item in amounts if item is not None)


def verdict(amount: float | None, quoted: Money) -> str:
    """One word on an amount against its quote."""
    if amount is None or quoted.low is None or quoted.high is None:
        return "price unknown"
    if amount < quoted.low:
        return "below the quote"
    return "above the quote" if amount > quoted.high else "within the quote"


def parse_price_list(products: list[str], region: str, today: str) -> dict[str, dict[str, Any]]:
    """SageMaker hosting prices from answers of the AWS Price List API (`GetProducts`, one JSON text a product)."""
    found: dict[str, dict[str, Any]] = {}
    for text in products:
        product = json.loads(text)
        attributes = product["product"]["attributes"]
        name = attributes.get("instanceName") or attributes.get("instanceType", "")
        name = name.removesuffix("-Hosting").removesuffix("-Training")
        terms = product.get("terms", {}).get("OnDemand", {})
        for term in terms.values():
            for dimension in term["priceDimensions"].values():
                amount = float(dimension["pricePerUnit"].get("USD", 0))
                if amount and name.startswith("ml."):
                    found[name] = {"usd_per_hour": amount, "date": today, "source": f"AWS Price List API, {region}"}
    return found


def save_book(region: str, prices: dict[str, dict[str, Any]]) -> Path:
    """Add a region's prices to the refreshed book."""
    if not prices:
        raise SettingsError(f"The Price List API has no SageMaker price for {region}.", fix="check the region's name")
    path = refreshed_book()
    book = json.loads(path.read_text()) if path.exists() else {"regions": {}}
    book["regions"][region] = prices
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(book, indent=2))
    part.replace(path)
    _books.cache_clear()
    return path


def refresh(aws: Any, today: str) -> Path:
    """Read the prices of the connection's region from the AWS Price List API (served in us-east-1) into the book."""
    client = aws.session.client("pricing", region_name="us-east-1")
    texts: list[str] = []
    for page in client.get_paginator("get_products").paginate(
        ServiceCode="AmazonSageMaker",
        Filters=[
            {"Type": "TERM_MATCH", "Field": "regionCode", "Value": aws.region},
            {"Type": "TERM_MATCH", "Field": "component", "Value": "Hosting"},
        ],
    ):
        texts += page["PriceList"]
    return save_book(aws.region, parse_price_list(texts, aws.region, today))
