"""The newest values of CloudWatch metrics that target tracking follows, kept fresh beside the event loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

_PERIOD_SECONDS = 60
_BACK_SECONDS = 180
_FORGET_SECONDS = 60.0


class Samples:
    """Metrics by their CustomizedMetricSpecification; `look` is the only part that waits for CloudWatch."""

    def __init__(self, client: Callable[[], Any]) -> None:
        self._client = client
        self._wanted: dict[str, float] = {}
        self._values: dict[str, float | None] = {}

    def value(self, specification: dict[str, Any]) -> float | None:
        """The metric's value over the last full or running minute; None while there is none."""
        key = json.dumps(specification, sort_keys=True)
        self._wanted[key] = time.monotonic()
        return self._values.get(key)

    @property
    def needed(self) -> bool:
        horizon = time.monotonic() - _FORGET_SECONDS
        self._wanted = {key: moment for key, moment in self._wanted.items() if moment > horizon}
        return bool(self._wanted)

    def look(self) -> None:
        """Ask CloudWatch. Blocks: call it in a thread."""
        self._values = {key: self._newest(json.loads(key)) for key in list(self._wanted)}

    def _newest(self, specification: dict[str, Any]) -> float | None:
        now, statistic = datetime.now(UTC), specification["Statistic"]
        points = self._client().get_metric_statistics(
            Namespace=specification["Namespace"],
            MetricName=specification["MetricName"],
            Dimensions=specification.get("Dimensions", []),
            StartTime=now - timedelta(seconds=_BACK_SECONDS),
            EndTime=now + timedelta(seconds=_PERIOD_SECONDS),
            Period=_PERIOD_SECONDS,
            Statistics=[statistic],
        )["Datapoints"]
        newest = max(points, key=lambda item: item["Timestamp"], default=None)
        return None if newest is None else float(newest[statistic])
