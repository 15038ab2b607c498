"""Numbers of a job for CloudWatch: what MetricDefinitions find in its log, and how much of its machines it uses."""

from __future__ import annotations

import math
import re
import threading
import time
from pathlib import Path
from typing import Any


class AlgorithmMetrics:
    """Applies MetricDefinitions to every line; the last value of each is the final one."""

    def __init__(self, job: str, definitions: list[dict[str, str]]) -> None:
        self._dimensions = [{"Name": "TrainingJobName", "Value": job}]
        self._definitions = [(item["Name"], re.compile(item["Regex"])) for item in definitions]
        self._last: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()  # one reader a host

    def points(self, line: str) -> list[dict[str, Any]]:
        """The data points of one line."""
        now = time.time()
        found = [(name, _number(pattern.search(line))) for name, pattern in self._definitions]
        values = [(name, value) for name, value in found if value is not None]
        with self._lock:
            for name, value in values:
                self._last[name] = {"MetricName": name, "Value": value, "Timestamp": round(now, 3)}
        return [
            {"MetricName": name, "Dimensions": self._dimensions, "Timestamp": now, "Value": value}
            for name, value in values
        ]

    def final(self) -> list[dict[str, Any]]:
        """FinalMetricDataList."""
        return list(self._last.values())


def _number(found: re.Match[str] | None) -> float | None:
    try:
        value = float(found.group(1)) if found else math.nan
    except (IndexError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


class MachineMetrics:
    """CPUUtilization (0 to 100 a core), MemoryUtilization and DiskUtilization of one host."""

    def __init__(self, job: str, host: str, base: Path, volume_gb: int) -> None:
        self._dimensions = [{"Name": "Host", "Value": f"{job}/{host}"}]
        self._base, self._volume = base, max(1, volume_gb) * 1024**3
        self._before = (time.monotonic(), 0.0)

    def points(self, cpu_seconds: float, memory_share: float) -> list[dict[str, Any]]:
        """Data points from the CPU time used so far (seconds) and the memory in use (0 to 1)."""
        moment, used = self._before
        now = time.monotonic()
        self._before = (now, cpu_seconds)
        values = {
            "CPUUtilization": max(0.0, 100 * (cpu_seconds - used) / max(0.001, now - moment)),
            "MemoryUtilization": 100 * memory_share,
            "DiskUtilization": min(100.0, 100 * _size(self._base) / self._volume),
        }
        return [
            {"MetricName": name, "Dimensions": self._dimensions, "Timestamp": time.time(), "Value": value}
            for name, value in values.items()
        ]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue  # the job works on it
    return total
