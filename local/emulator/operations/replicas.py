"""Replicas: the processes behind endpoints and inference components. Each is a document inside its owner's and a
folder with a supervisor: started, followed through its journal, retired.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from llmtuner_local.emulator import images, supervisors
from llmtuner_local.emulator.context import Context, engine
from llmtuner_local.emulator.operations import models
from llmtuner_local.emulator.shim import journal

Replica = dict[str, Any]


def served_containers(model: dict[str, Any]) -> list[dict[str, Any]]:
    """What a replica must know of each container of a model, which may be deleted while it serves; `engine` is
    "docker" for one that came through the profile of target local-docker.
    """
    return [
        {"name": models.name_of(model, number), "definition": definition, "engine": engine.get()}
        for number, definition in enumerate(models.containers_of(model))
    ]


def start(context: Context, served: dict[str, Any]) -> Replica:
    """Start one replica; returns what its owner remembers of it.

    Args:
        served: `endpoint`, `variant`, `containers` (of served_containers; none: an instance that waits for inference
            components), `startup` seconds, `described` (how messages call it), `log_group`, `dimensions`.
    """
    replica = {"variant": served["variant"], "id": f"i-{uuid.uuid4().hex[:17]}", "state": "Starting", "offset": 0}
    if not served["containers"]:
        return replica | {"state": "InService", "bare": True}
    _launch(context, served, replica)
    return replica


def _launch(context: Context, served: dict[str, Any], replica: Replica) -> None:
    spec = {
        "endpoint": served["endpoint"],
        "served": served["described"],
        "mode": served["containers"][0].get("engine") or context.mode,
        "hide": str(context.home),
        "localstack_url": context.localstack_url,
        "startup_seconds": served["startup"],
        "ping_seconds": context.limits.ping_seconds,
        "metrics_seconds": context.limits.metrics_seconds,
        "log_group": served["log_group"],
        "dimensions": served["dimensions"],
        "containers": [_container(context, served, replica, number) for number in range(len(served["containers"]))],
        **context.faults.for_replica(served["endpoint"]),
    }
    supervisors.launch(context, "replica", folder(context, served["endpoint"], replica), "replica.json", spec)


def _container(context: Context, served: dict[str, Any], replica: Replica, number: int) -> dict[str, Any]:
    name, definition = served["containers"][number]["name"], served["containers"][number]["definition"]
    several = len(served["containers"]) > 1
    stream = f"{replica['variant']}/{replica['id']}"
    return {
        "name": name,
        "image": definition["Image"],
        "command": images.command(definition["Image"], "serve", context.home),
        "environment": supervisors.container_environment(context, definition.get("Environment", {})),
        "sources": models.sources(definition),
        "folder": "opt-ml" if number == 0 else f"opt-ml-{number + 1}",
        "log_stream": f"{stream}/{name}" if several else stream,
    }


def folder(context: Context, endpoint: str, replica: Replica) -> Path:
    return context.endpoint_folder(endpoint) / replica["variant"] / replica["id"]


def follow(context: Context, served: dict[str, Any], replica: Replica, *, replace: bool) -> Replica:
    """A replica as its supervisor has last described it.

    Args:
        replace: start it again when its supervisor is gone (killed, or the machine was started again).
    """
    if replica.get("bare"):
        return replica
    place = folder(context, served["endpoint"], replica)
    was_alive = supervisors.alive(place)  # asked before reading: what a dead one wrote is all there
    lines, offset = journal.read(place / "journal.jsonl", replica["offset"])
    for line in lines:
        replica = dict(replica, offset=offset)
        if "state" in line and not (line["state"] == "Stopped" and replica["state"] == "Failed"):
            replica["state"] = line["state"]
            replica |= {key: line[key] for key in ("port", "ports", "reason") if key in line}
    if not was_alive and replica["state"] != "Failed" and replace:
        supervisors.clear(place)
        replica = dict(replica, state="Starting", offset=0)
        _launch(context, served, replica)
    return replica


def stop(context: Context, endpoint: str, found: list[Replica]) -> None:
    """Ask replicas to stop, whatever they are doing; `has_gone` tells when they have."""
    for replica in found:
        if not replica.get("bare"):
            supervisors.signal_stop(folder(context, endpoint, replica))


def retired(context: Context, endpoint: str, found: list[Replica]) -> list[Replica]:
    """Replicas that get no more requests. An idle one is asked to stop, the others by `has_gone` when they are drained."""
    stop(context, endpoint, [item for item in found if not context.in_flight[item["id"]]])
    return [item | {"retired": context.now()} for item in found]


def _is_drained(context: Context, replica: Replica) -> bool:
    """Whether a replica has no request any more, or has had its time to answer. A deleted endpoint's has none."""
    deadline = replica.get("retired", 0.0) + context.limits.drain_seconds
    return not context.in_flight[replica["id"]] or context.now() >= deadline


def has_gone(context: Context, endpoint: str, replica: Replica) -> bool:
    """Whether a retired or stopping replica has ended; its folder goes with it. It is asked to stop once drained."""
    place = folder(context, endpoint, replica)
    if replica.get("bare"):
        return True
    if supervisors.alive(place):
        if _is_drained(context, replica):
            supervisors.signal_stop(place)  # again: the emulator may have been killed before it asked
        return False
    supervisors.clear(place)
    shutil.rmtree(place, ignore_errors=True)
    return True
