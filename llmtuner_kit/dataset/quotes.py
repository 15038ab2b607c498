"""The quote of a processing job: time and money of preparing some files, before anything is started.

Billable time = starting and installing + bytes / speed + writing the result, each as a range. The speed is modelled
from what two cores of a laptop do with JSON lines and with documents; a job never runs longer than its limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmtuner_kit import catalog, costs
from llmtuner_kit.dataset import kinds
from llmtuner_kit.dataset.sources import Listing
from llmtuner_kit.errors import BudgetError
from llmtuner_kit.settings import PrepareSettings
from llmtuner_kit.workspace import Workspace

# Fetching the image, starting, and installing what the image lacks. Modelled.
START_SECONDS = (90.0, 420.0)
# Bytes of unpacked files per second and vCPU: rows with many findings and long documents, plain JSON lines.
RATE = (0.3e6, 3e6)
# Bytes per second at which files come from S3 and the version goes there.
TRANSFER = (50e6, 250e6)
# A compressed file may grow tenfold; beside the files lie the work folder and the splits.
_GROWTH, _COPIES = 10, 4
_DENSE = frozenset({"zip", "tar", "parquet", "xlsx", "docx"})


@dataclass(frozen=True)
class JobQuote:
    """What a processing job will take, as ranges.

    Attributes:
        files, bytes: what it reads, as stored.
        seconds: billable seconds (low, high).
        most: USD when it runs until its limit; None when the price is unknown.
    """

    instance_type: str
    files: int
    bytes: int
    seconds: tuple[float, float]
    money: costs.Money
    price: costs.Price | None
    max_runtime_seconds: int
    most: float | None
    budget_usd: float
    charged: bool


def quote(workspace: Workspace, settings: PrepareSettings, listing: Listing) -> JobQuote:
    """The quote of preparing these files on the machine of the settings."""
    region = workspace.aws.region
    price = costs.price(settings.instance_type, region, "processing")
    seconds = _seconds(listing, catalog.processing_instance(settings.instance_type).vcpus)
    limit = _limit(settings, price if workspace.aws.charged else None)
    return JobQuote(
        instance_type=settings.instance_type,
        files=len(listing.files),
        bytes=listing.bytes,
        seconds=seconds,
        money=costs.cost_range(settings.instance_type, region, seconds, use="processing"),
        price=price,
        max_runtime_seconds=limit,
        most=costs.running_cost(settings.instance_type, region, limit, use="processing"),
        budget_usd=settings.budget_usd,
        charged=workspace.aws.charged,
    )


def require_budget(made: JobQuote) -> None:
    """Raises BudgetError for a budget below the low end of the quote, and where jobs are charged and none is set."""
    if made.charged and not made.budget_usd:
        most = f"{costs.usd(made.most)} at most" if made.price else "its price is not in the price book"
        raise BudgetError(
            f"A processing job on {made.instance_type} is charged and no budget is set; the quote is {made.money}, and "
            f"with a limit of {made.max_runtime_seconds / 60:.0f} minutes: {most}.",
            fix="set budget_usd, or prepare here",
        )
    if made.budget_usd and made.money.low is not None and made.money.low > made.budget_usd:
        raise BudgetError(
            f"The quote is {made.money}; the budget is {costs.usd(made.budget_usd)}.",
            valid=f"budget_usd from {costs.usd_up(made.money.low)}",
            fix="raise budget_usd, choose a smaller instance_type, or prepare here",
        )


def volume_gb(listing: Listing) -> int:
    """Disk for the files, what they unpack to, the work and the result."""
    return min(16384, max(30, math.ceil(_unpacked(listing) * _COPIES / 1e9) + 20))


def _unpacked(listing: Listing) -> int:
    """The bytes of the files once they are unpacked, at most."""
    return sum(
        item.size * (_GROWTH if kinds.compression_of(item.name) or kinds.kind_of(item.name) in _DENSE else 1)
        for item in listing.files
    )


def _seconds(listing: Listing, vcpus: int) -> tuple[float, float]:
    low = START_SECONDS[0] + listing.bytes / (RATE[1] * vcpus) + 2 * listing.bytes / TRANSFER[1]
    most = _unpacked(listing)
    return low, START_SECONDS[1] + most / (RATE[0] * vcpus) + 2 * most / TRANSFER[0]


def _limit(settings: PrepareSettings, price: costs.Price | None) -> int:
    """The job's limit in seconds: max_runtime_minutes, or less where the budget buys less at a known price."""
    limit = settings.max_runtime_minutes * 60
    if price is None or not settings.budget_usd:
        return limit
    return min(limit, max(60, int(settings.budget_usd / price.usd_per_hour * 3600)))
