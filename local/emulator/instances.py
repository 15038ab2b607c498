"""What instance types hold, by AWS's naming: family and size give virtual CPUs, memory and accelerators."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MEMORY_GIB_PER_CPU = {
    "c": 2.0, "inf1": 2.0, "r": 8.0, "g6e": 8.0, "p3": 7.625, "p4d": 12.0, "p4de": 12.0, "p5": 10.67,
}  # fmt: skip
_ACCELERATORS = {
    "g4dn": {12: 4}, "g5": {12: 4, 24: 4, 48: 8}, "g6": {12: 4, 24: 4, 48: 8}, "g6e": {12: 4, 24: 4, 48: 8},
    "p3": {8: 4, 16: 8}, "p4d": {24: 8}, "p4de": {24: 8}, "p5": {48: 8},
    "inf1": {6: 4, 24: 16}, "inf2": {24: 6, 48: 12}, "trn1": {32: 16},
}  # fmt: skip
# Families with NVMe disks of their own, besides those with a `d` after their generation.
_OWN_DISKS = re.compile(
    r"ml\.(g4dn|g5|g6|gr6|g6e|p3dn|p4d|p4de|p5|p5e|p5en|p6-\w+|trn1|trn1n|trn2|[a-z]+\d[a-z]*d[a-z]*)\..+"
)


@dataclass(frozen=True)
class Resources:
    """Virtual CPUs, memory in MB, accelerator devices: of an instance, or what a copy of a component needs."""

    cpus: float = 0.0
    memory_mb: float = 0.0
    accelerators: float = 0.0

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.cpus - other.cpus, self.memory_mb - other.memory_mb, self.accelerators - other.accelerators
        )

    def holds(self, other: Resources) -> bool:
        return self.cpus >= other.cpus and self.memory_mb >= other.memory_mb and self.accelerators >= other.accelerators


def resources_of(instance_type: str) -> Resources:
    """What an instance type such as `ml.g5.2xlarge` holds."""
    found = re.fullmatch(r"ml\.([a-z0-9-]+)\.(?:(\d*)xlarge|(\w+))", instance_type)
    if not found:
        return Resources()
    family, times = found.group(1), int(found.group(2) or 1) if found.group(3) is None else 0
    cpus = 4.0 * times if times else 2.0
    kind = family if family in _MEMORY_GIB_PER_CPU else family[0]
    memory = cpus * _MEMORY_GIB_PER_CPU.get(kind, 4.0) * 1024
    devices = _ACCELERATORS.get(family)
    return Resources(cpus, memory, 0.0 if devices is None else float(devices.get(times, 1)))


def has_own_disks(instance_type: str) -> bool:
    """Whether an instance keeps its data on NVMe disks of its own instead of a volume."""
    return _OWN_DISKS.fullmatch(instance_type) is not None
