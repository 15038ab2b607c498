"""Money: the price book, amounts as ranges, the running cost, the lines of a receipt.

A price that is not in the book is unknown and said to be so; nothing is guessed. Amounts are USD.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from llmtuner_kit.catalog import cache_folder
from llmtuner_kit.errors import DataError

Use = Literal["hosting", "processing", "training"]
HOURS_PER_MONTH = 730


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
        low, high = usd(self.low), usd(self.high)
        return high if low == high else f"{low} to {high}"


def usd(amount: float | Decimal | None) -> str:
    """An amount for people: cents, and more digits only below a cent; a Decimal, which is rounded already, as it is."""
    if amount is None:
        return "unknown"
    return f"${amount if isinstance(amount, Decimal) else shown(amount):,}"


def shown(amount: float) -> Decimal:
    """An amount rounded as it is shown."""
    return Decimal(f"{amount:.2f}" if amount >= 0.01 or amount == 0 else f"{amount:.4f}")


def usd_up(amount: float | None) -> str:
    """An amount that is needed, rounded up: who gives what is shown has given enough."""
    return usd(None if amount is None else math.ceil(amount * 100 - 1e-9) / 100)


def at_most(amount: float | Decimal | None) -> str:
    """`, $2.82 at most` for the end of a sentence; nothing for an unknown amount, as its price is said to be unknown."""
    return "" if amount is None else f", {usd(amount)} at most"


def priced(price: Price | None) -> str:
    """A price for people, with where it comes from; for an unknown one how to make it known."""
    if price is None:
        return "price unknown: `llmtuner prices refresh` asks AWS, `llmtuner prices set` takes what you know"
    return f"{usd(price.usd_per_hour)} an hour ({price.source}, {price.date})"


def refreshed_book() -> Path:
    """Where `llmtuner prices refresh` writes what the AWS Price List API says."""
    return cache_folder() / "prices.json"


@cache
def _packaged() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(resources.files("llmtuner_kit.data").joinpath("prices.json").read_text())
    return found


def _refreshed() -> dict[str, Any]:
    path = refreshed_book()
    try:
        found = json.loads(path.read_text())
        found["regions"].items()
    except FileNotFoundError:
        return {"regions": {}}
    except PermissionError as error:  # in a cache that several people share
        raise DataError(
            f"The refreshed price book {path} cannot be read: {error.strerror}",
            fix="ask its owner to let others read it, or set LLMTUNER_CACHE to a folder of your own",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"The refreshed price book {path} cannot be read: {error}",
            fix="delete the file, or run `llmtuner prices refresh` again",
        ) from None
    return dict(found)


def price_book(region: str) -> Mapping[str, Price]:
    """Instance type -> hosting price of a region; refreshed prices stand before the packaged ones."""
    return _prices_of(region, "hosting")


def _prices_of(region: str, use: Use) -> dict[str, Price]:
    books = (_packaged(), _refreshed())
    return {
        name: Price(entry.get(f"{use}_usd_per_hour", entry["usd_per_hour"]), entry["date"], entry["source"])
        for book in books
        for name, entry in book["regions"].get(region, {}).items()
    }


def price(instance_type: str, region: str, use: Use = "hosting") -> Price | None:
    """The hourly price of an instance type, or None when it is not known."""
    return _prices_of(region, use).get(instance_type)


def hourly(instance_type: str, region: str, count: int = 1, use: Use = "hosting") -> float | None:
    """USD per hour for a number of instances, or None."""
    found = price(instance_type, region, use)
    return found.usd_per_hour * count if found else None


def elapsed_seconds(begin: datetime, end: datetime | None = None) -> float:
    """What has passed until the end, or until now; never below zero, as this machine's clock may differ from AWS's."""
    return max(0.0, ((end or datetime.now(UTC)) - begin).total_seconds())


def running_cost(
    instance_type: str, region: str, seconds: float, count: float = 1, use: Use = "hosting"
) -> float | None:
    """USD for a number of billable seconds on each instance, or None when the price is unknown."""
    found = price(instance_type, region, use)
    return None if found is None else found.usd_per_hour * count * seconds / 3600


def spot_saving(job: Mapping[str, Any]) -> float | None:
    """Share of the price on demand that managed spot has saved, 0 to 1, by AWS's own seconds of a described training job.

    None before the job has ended, and for one that is not on spot.
    """
    trained, billed = job.get("TrainingTimeInSeconds"), job.get("BillableTimeInSeconds")
    if not job.get("EnableManagedSpotTraining") or not trained or billed is None:
        return None
    return max(0.0, 1 - float(billed) / float(trained))


def storage_per_month(size: int, region: str) -> float | None:
    """USD a month for so many bytes in S3 Standard, or None when the region's price is unknown."""
    found = _packaged()["storage_usd_per_gb_month"].get(region)
    return None if found is None else found["usd"] * size / 1e9


def cost_range(
    instance_type: str, region: str, seconds: tuple[float, float], count: int = 1, use: Use = "training"
) -> Money:
    """USD for a range of seconds."""
    low, high = (running_cost(instance_type, region, each, count, use) for each in seconds)
    return Money(low, high)


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
    def total_usd(self) -> Decimal | None:
        """The sum of the lines as they are shown, so that who adds them up finds the same; None with an unknown price."""
        amounts = [None if line.usd is None else shown(line.usd) for line in self.lines]
        known = [amount for amount in amounts if amount is not None]
        return sum(known, Decimal("0.00")) if len(known) == len(amounts) else None


def verdict(amount: float | None, quoted: Money) -> str:
    """One phrase on an amount against its quote, both as they are shown."""
    if amount is None or quoted.low is None or quoted.high is None:
        return "price unknown"
    if shown(amount) < shown(quoted.low):
        return "below the quote"
    return "above the quote" if shown(amount) > shown(quoted.high) else "within the quote"
