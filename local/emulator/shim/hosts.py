"""The machines of a job: algo-1 to algo-n, each with a /opt/ml and an address of its own on this machine."""

from __future__ import annotations

import hashlib
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOMOGENEOUS = "homogeneousCluster"
MOST = 250  # what one block of loopback addresses holds


@dataclass(frozen=True)
class Host:
    """One machine. `alias` is the name the job finds in resourceconfig.json."""

    name: str
    alias: str
    address: str
    base: Path
    group: str
    instance_type: str
    interface: str  # over which it reaches the others


def plan(groups: list[tuple[str, str, int]], *, job: str, base: Path, mode: str) -> list[Host]:
    """The hosts of (group, instance type, count), numbered through.

    Each job has a block of 127.0.0.0/8, so that several jobs can use the same ports. Where a job cannot have an
    /etc/hosts of its own (path mapping) the hosts of a job with several are known by their addresses.
    """
    digest = hashlib.sha256(job.encode()).digest()
    block = f"127.{1 + digest[0] % 254}.{digest[1]}"
    several = sum(count for *_, count in groups) > 1
    interface = "eth0" if mode == "docker" else loopback()
    found: list[Host] = []
    for group, instance_type, count in groups:
        for _ in range(count):
            number = len(found) + 1
            name, address = f"algo-{number}", f"{block}.{number}"
            alias = address if mode == "mapped" and several else name
            found.append(Host(name, alias, address, base / name, group, instance_type, interface))
    return found


def of_training(request: dict[str, Any]) -> list[tuple[str, str, int]]:
    """The instance groups of a training job."""
    resources = request["ResourceConfig"]
    groups = resources.get("InstanceGroups")
    if groups:
        return [(item["InstanceGroupName"], item["InstanceType"], item["InstanceCount"]) for item in groups]
    return [(HOMOGENEOUS, resources.get("InstanceType", ""), resources.get("InstanceCount", 1))]


def names_file(path: Path, hosts: list[Host]) -> Path:
    """An /etc/hosts in which the hosts of a job find each other."""
    lines = "".join(f"{host.address} {host.name}\n" for host in hosts)
    path.write_text(Path("/etc/hosts").read_text() + "\n" + lines)
    return path


def loopback() -> str:
    """The network interface over which processes of this machine reach each other."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])


def resource_config(host: Host, hosts: list[Host]) -> dict[str, Any]:
    """resourceconfig.json in its newest known shape; `topology` is set for UltraServer jobs only."""
    names = list(dict.fromkeys(item.group for item in hosts))
    groups = []
    for name in names:
        members = [item for item in hosts if item.group == name]
        groups.append(
            {
                "instance_group_name": name,
                "instance_type": members[0].instance_type,
                "hosts": [item.alias for item in members],
            }
        )
    return {
        "current_host": host.alias,
        "current_instance_type": host.instance_type,
        "current_group_name": host.group,
        "hosts": [item.alias for item in hosts],
        "instance_groups": groups,
        "network_interface_name": host.interface,
        "topology": None,
    }
