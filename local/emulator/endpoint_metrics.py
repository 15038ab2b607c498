"""The metrics of invocations: counted on the way of a request at no cost to speak of, delivered to CloudWatch in batches.

A `Meter` belongs to one endpoint variant or one inference component. Scaling reads the same counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NAMESPACE = "AWS/SageMaker"
_KEPT_SECONDS = 300  # of the counts that scaling looks at
_UNITS = {
    "ModelLatency": "Microseconds", "OverheadLatency": "Microseconds",
    "TimeInBacklog": "Milliseconds", "TotalProcessingTime": "Milliseconds",
}  # fmt: skip
_ERRORS = ("Invocation4XXErrors", "Invocation5XXErrors", "InvocationModelErrors")  # told also when there are none


@dataclass
class Distribution:
    """A CloudWatch statistic set: what came in since the last delivery."""

    count: int = 0
    total: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0

    def add(self, value: float) -> None:
        self.lowest = value if not self.count or value < self.lowest else self.lowest
        self.highest = max(self.highest, value)
        self.count += 1
        self.total += value

    def values(self) -> dict[str, float]:
        return {"SampleCount": self.count, "Sum": self.total, "Minimum": self.lowest, "Maximum": self.highest}


@dataclass
class Meter:
    """Counts of one variant or component; `dimensions` as CloudWatch names it."""

    dimensions: dict[str, str]
    share: str = "InvocationsPerInstance"  # how a count is called that is divided by what serves
    in_flight: int = 0
    serving: int = 1
    counts: dict[str, float] = field(default_factory=dict)
    distributions: dict[str, Distribution] = field(default_factory=dict)
    seconds: deque[list[float]] = field(default_factory=deque)  # [epoch second, invocations]
    samples: deque[tuple[float, int]] = field(default_factory=deque)  # (moment, requests in flight)

    def enter(self) -> None:
        """A request has come."""
        self.in_flight += 1
        second = float(int(time.time()))
        if not self.seconds or self.seconds[-1][0] != second:
            self.seconds.append([second, 0.0])
            while self.seconds[0][0] < second - _KEPT_SECONDS:
                self.seconds.popleft()
        self.seconds[-1][1] += 1

    def leave(self, status: int, model_seconds: float, overhead_seconds: float) -> None:
        """The request has its answer; `status` is the container's, 0 when it gave none."""
        self.in_flight -= 1
        self.count("Invocations")
        if not 200 <= status < 300:
            self.count("InvocationModelErrors")
            self.count("Invocation4XXErrors" if 400 <= status < 500 else "Invocation5XXErrors")
        self.observe("ModelLatency", model_seconds * 1e6)
        self.observe("OverheadLatency", overhead_seconds * 1e6)
        self.observe("ConcurrentRequestsPerModel", self.in_flight + 1)

    def count(self, name: str, value: float = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + value

    def observe(self, name: str, value: float) -> None:
        found = self.distributions.get(name)
        if found is None:
            found = self.distributions[name] = Distribution()
        found.add(value)

    def invocations(self, window: float, now: float) -> float:
        """How many requests came in the last `window` seconds."""
        return sum(item[1] for item in self.seconds if item[0] > now - window)

    def concurrency(self, window: float, now: float) -> float:
        """How many requests were in flight at once, on average over the samples of the last `window` seconds."""
        found = [count for moment, count in self.samples if moment > now - window]
        return sum(found) / len(found) if found else 0.0

    def sample(self, now: float) -> None:
        """Note how many requests are in flight."""
        self.samples.append((now, self.in_flight))
        while self.samples[0][0] < now - _KEPT_SECONDS:
            self.samples.popleft()

    def take(self) -> list[dict[str, Any]]:
        """What has come in since the last call, as metric data."""
        counts, self.counts = self.counts, {}
        distributions, self.distributions = self.distributions, {}
        base = {"Dimensions": [{"Name": name, "Value": value} for name, value in self.dimensions.items()]}
        if invocations := counts.get("Invocations"):
            counts[self.share] = invocations / max(1, self.serving)
            for name in _ERRORS:
                counts.setdefault(name, 0.0)
        data = [base | {"MetricName": name, "Value": float(value), "Unit": "Count"} for name, value in counts.items()]
        for name, found in distributions.items():
            unit = _UNITS.get(name, "Count")
            data.append(base | {"MetricName": name, "StatisticValues": found.values(), "Unit": unit})
        return data


class Metrics:
    """Every meter of an emulator, and other points that wait for delivery."""

    def __init__(self, client: Callable[[], Any]) -> None:
        self._client = client
        self._meters: dict[tuple[str, str], Meter] = {}
        self._points: list[dict[str, Any]] = []

    def variant(self, endpoint: str, variant: str) -> Meter:
        key = (endpoint, variant)
        if key not in self._meters:
            self._meters[key] = Meter({"EndpointName": endpoint, "VariantName": variant})
        return self._meters[key]

    def component(self, name: str) -> Meter:
        key = ("", name)
        if key not in self._meters:
            self._meters[key] = Meter({"InferenceComponentName": name}, "InvocationsPerCopy")
        return self._meters[key]

    def point(self, name: str, value: float, unit: str = "Count", **dimensions: str) -> None:
        """Queue one value of AWS/SageMaker."""
        named = [{"Name": key, "Value": item} for key, item in dimensions.items()]
        self._points.append({"MetricName": name, "Value": float(value), "Unit": unit, "Dimensions": named})

    def sample(self) -> None:
        """Note for every meter how many requests are in flight."""
        now = time.time()
        for meter in self._meters.values():
            meter.sample(now)

    def take(self) -> list[dict[str, Any]]:
        """All data since the last delivery. Call it in the event loop; deliver it in a thread."""
        points, self._points = self._points, []
        return [*points, *(item for meter in self._meters.values() if meter.counts for item in meter.take())]

    def deliver(self, data: list[dict[str, Any]]) -> None:
        """Send data to CloudWatch. Blocks."""
        for start in range(0, len(data), 500):
            self._client().put_metric_data(Namespace=NAMESPACE, MetricData=data[start : start + 500])
