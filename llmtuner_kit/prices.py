"""Fresh prices: what the AWS Price List API says today, put beside the packaged price book."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from llmtuner_kit import catalog, costs
from llmtuner_kit.aws import Aws
from llmtuner_kit.errors import DataError, SettingsError

# The API is served in a few regions only; it knows the prices of all.
_API_REGION = "us-east-1"
# Usage types name use and instance: `USE1-Host:ml.g5.xlarge`, `EUC1-Train:ml.g5.xlarge`, `EU-Processing:ml.m5.large`.
_USAGE = re.compile(r"(?:^|-)(Host|Processing|Train):(ml\.[a-z0-9-]+\.[a-z0-9-]+)$")
_USES: dict[str, costs.Use] = {"Host": "hosting", "Processing": "processing", "Train": "training"}

Uses = dict[costs.Use, float]
"""USD per hour by what an instance is used for."""


@dataclass(frozen=True)
class Refreshed:
    """What a refresh found: instance types with a price, and those whose price is another than before."""

    path: Path
    region: str
    known: int
    changed: dict[str, tuple[float | None, float]]


def refresh(aws: Aws, today: date | None = None) -> Refreshed:
    """Read the SageMaker prices of the connection's region into the refreshed book.

    Raises SettingsError where the connection is not AWS itself, DataError when AWS names no price for the region.
    """
    if not aws.charged:
        raise SettingsError(f"Target {aws.target!r} has no prices: they come from AWS.", fix="use target aws")
    client = aws.session.client("pricing", region_name=_API_REGION)
    pages = client.get_paginator("get_products").paginate(
        ServiceCode="AmazonSageMaker", Filters=[{"Type": "TERM_MATCH", "Field": "regionCode", "Value": aws.region}]
    )
    products = (text for page in pages for text in page["PriceList"])
    return save(aws.region, parse(products), today or datetime.now(UTC).date())


def parse(products: Iterable[str]) -> dict[str, Uses]:
    """Instance type -> {"hosting": USD per hour, "training": ...} from answers of GetProducts, one JSON text each."""
    found: dict[str, Uses] = {}
    for text in products:
        product = json.loads(text)
        usage = _USAGE.search(product["product"]["attributes"].get("usagetype", ""))
        if usage is None:
            continue
        for term in product.get("terms", {}).get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                amount = float(dimension["pricePerUnit"].get("USD", 0))
                # Free tiers are dimensions of their own with a price of zero.
                if amount > 0 and dimension.get("unit", "Hrs").lower().startswith("h"):
                    found.setdefault(usage[2], {})[_USES[usage[1]]] = amount
    return found


def save(region: str, found: dict[str, Uses], today: date) -> Refreshed:
    """Put a region's prices into the refreshed book, whole or not at all."""
    if not found:
        raise DataError(
            f"The AWS Price List API names no SageMaker instance price for region {region!r}.",
            fix="check the name of the region; the packaged prices stay in use",
        )
    before = costs.price_book(region)
    book = _own_book()
    book["regions"][region] = {
        name: _entry(uses, f"AWS Price List API, {region}", today) for name, uses in sorted(found.items())
    }
    path = _write(book)
    after = costs.price_book(region)
    changed = {
        name: (before[name].usd_per_hour if name in before else None, now.usd_per_hour)
        for name, now in after.items()
        if name not in before or before[name].usd_per_hour != now.usd_per_hour
    }
    return Refreshed(path, region, len(found), changed)


def enter(instance_type: str, usd_per_hour: float, region: str, today: date | None = None) -> Path:
    """Put a price the user knows into the user's own book, for every use; it stands until the next refresh.

    Raises SettingsError for an instance type the kit does not use and for an amount that is no price.
    """
    known = catalog.instance_types()
    if instance_type not in known:
        raise catalog.unknown("instance type", instance_type, known, "the instance type")
    if not 0 < usd_per_hour < 1000:
        raise SettingsError(
            f"{usd_per_hour} is no price of an instance.", valid="USD per hour, more than 0, such as 1.41"
        )
    book = _own_book()
    entry = _entry({"hosting": usd_per_hour}, "entered by you", today or datetime.now(UTC).date())
    book["regions"].setdefault(region, {})[instance_type] = entry
    return _write(book)


def _own_book() -> dict[str, Any]:
    path = costs.refreshed_book()
    return json.loads(path.read_text()) if path.exists() else {"regions": {}}


def _write(book: dict[str, Any]) -> Path:
    path = costs.refreshed_book()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(book, indent=2))
    part.replace(path)
    return path


def _entry(uses: Uses, source: str, today: date) -> dict[str, Any]:
    """One price for all uses, and beside it those that differ."""
    main = uses.get("hosting") or uses.get("training") or uses["processing"]
    others = {f"{use}_usd_per_hour": amount for use, amount in uses.items() if amount != main}
    return {"usd_per_hour": main, **others, "date": today.isoformat(), "source": source}
