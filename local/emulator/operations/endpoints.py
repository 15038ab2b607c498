"""Endpoints: replicas that serve, and the states that DescribeEndpoint shows."""

from __future__ import annotations

import shutil
import uuid
from collections import deque
from pathlib import Path
from typing import Any

from llmtuner_local.emulator import images, supervisors
from llmtuner_local.emulator.containers import process as containers
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import not_found, validation
from llmtuner_local.emulator.operations import endpoint_configs, listing, models, tags
from llmtuner_local.emulator.shim import journal

KIND = "endpoint"
BUSY = {"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"}
_STARTUP_SECONDS = 600


def create(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    name = params["EndpointName"]
    arn = context.arn(KIND, name)
    if context.store.get(KIND, name):
        raise validation(f'Cannot create already existing endpoint "{arn}".')
    config = endpoint_configs.require(context, params["EndpointConfigName"])
    for variant in config["ProductionVariants"]:
        if "InstanceType" in variant:
            count = variant.get("InitialInstanceCount", 1)
            context.faults.check_quota("endpoint usage", variant["InstanceType"], count, name)
    now = context.now()
    document = {
        "EndpointName": name,
        "EndpointArn": arn,
        "EndpointConfigName": params["EndpointConfigName"],
        "EndpointStatus": "Creating",
        "CreationTime": now,
        "LastModifiedTime": now,
        "_variants": [_variant(context, item) for item in config["ProductionVariants"]],
        "_replicas": [],
    }
    context.store.put(KIND, name, document)
    tags.put(context, arn, params.get("Tags", []))
    shutil.rmtree(context.endpoint_folder(name), ignore_errors=True)
    replicas = [
        launch_replica(context, document, variant)
        for variant in document["_variants"]
        for _ in range(variant["DesiredInstanceCount"])
    ]
    context.store.put(KIND, name, dict(document, _replicas=replicas))
    return {"EndpointArn": arn}


def _variant(context: Context, variant: dict[str, Any]) -> dict[str, Any]:
    """What an endpoint remembers of a variant, model included: both may be deleted while it serves."""
    model = models.require(context, variant["ModelName"]) if "ModelName" in variant else None
    count = variant.get("InitialInstanceCount", 1)
    return {
        "VariantName": variant["VariantName"],
        "DesiredWeight": variant["InitialVariantWeight"],
        "DesiredInstanceCount": count,
        "_startup": variant.get("ContainerStartupHealthCheckTimeoutInSeconds", _STARTUP_SECONDS),
        "_container": models.containers_of(model)[0] if model else None,
    }


def launch_replica(context: Context, document: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """Start one replica of a variant; returns what the endpoint remembers of it."""
    replica = {"variant": variant["VariantName"], "id": f"i-{uuid.uuid4().hex[:17]}", "state": "Starting", "offset": 0}
    _launch(context, document, variant, replica)
    return replica


def _launch(context: Context, document: dict[str, Any], variant: dict[str, Any], replica: dict[str, Any]) -> None:
    container = variant["_container"]
    if container is None:
        raise validation(
            "A production variant without a model needs inference components, which are not emulated here."
        )
    archive, prefix = models.data_uri(container)
    name = document["EndpointName"]
    spec = {
        "endpoint": name,
        "variant": variant["VariantName"],
        "model_data_url": archive,
        "model_prefix": prefix,
        "command": images.command(container["Image"], "serve", context.home),
        "environment": supervisors.container_environment(context, container.get("Environment", {})),
        "mode": containers.best_mode(),
        "hide": str(context.home),
        "localstack_url": context.localstack_url,
        "startup_seconds": variant["_startup"],
        "log_group": f"/aws/sagemaker/Endpoints/{name}",
        "log_stream": f"{variant['VariantName']}/{replica['id']}",
        **context.faults.for_replica(name),
    }
    supervisors.launch(context, "replica", _folder(context, name, replica), "replica.json", spec)


def _folder(context: Context, name: str, replica: dict[str, Any]) -> Path:
    return context.endpoint_folder(name) / replica["variant"] / replica["id"]


def refresh(context: Context, document: dict[str, Any]) -> dict[str, Any] | None:
    """Bring an endpoint up to what its supervisors have written since; None when its deletion has ended."""
    if document["EndpointStatus"] == "Deleting":
        return _finish_deletion(context, document)
    changed = dict(document)
    changed["_replicas"] = [_refresh_replica(context, document, item) for item in document["_replicas"]]
    if document.get("_green"):
        green = dict(document["_green"])
        green["replicas"] = [_refresh_replica(context, document, item, green) for item in green["replicas"]]
        changed["_green"] = green
    changed["_retiring"] = [item for item in document.get("_retiring", []) if not _retired(context, document, item)]
    _advance(context, changed)
    if changed == document:
        return document
    if changed["EndpointStatus"] != document["EndpointStatus"]:
        changed["LastModifiedTime"] = context.now()
    return context.store.put(KIND, document["EndpointName"], changed)


def _advance(context: Context, document: dict[str, Any]) -> None:
    """The next state, from what the replicas are now."""
    replicas = document["_replicas"]
    failed = [item for item in replicas if item["state"] == "Failed"]
    status = document["EndpointStatus"]
    if status == "Creating":
        if failed:
            document |= {"EndpointStatus": "Failed", "FailureReason": failed[0].get("reason", "")}
            retire(context, document, replicas)
        elif replicas and all(item["state"] == "InService" for item in replicas):
            document["EndpointStatus"] = "InService"
    elif status == "Updating" and document.get("_green"):
        _advance_update(context, document, document["_green"])
    elif status == "Updating":
        # More or fewer instances: those that cannot start are given up, the others go on serving.
        if failed:
            document["FailureReason"] = failed[0].get("reason", "")
            retire(context, document, failed)
            document["_replicas"] = [item for item in replicas if item["state"] != "Failed"]
        if all(item["state"] == "InService" for item in document["_replicas"]):
            document["EndpointStatus"] = "InService"
    elif status == "RollingBack" and not document["_retiring"]:
        document["EndpointStatus"] = "InService"


def _advance_update(context: Context, document: dict[str, Any], green: dict[str, Any]) -> None:
    """Blue/green: all traffic moves when the whole new fleet is healthy; a new fleet that fails is dropped."""
    failed = [item for item in green["replicas"] if item["state"] == "Failed"]
    if failed:
        document |= {"EndpointStatus": "RollingBack", "FailureReason": failed[0].get("reason", "")}
        retire(context, document, green["replicas"])
        document.pop("_green")
    elif all(item["state"] == "InService" for item in green["replicas"]):
        retire(context, document, document["_replicas"])
        document |= {
            "EndpointStatus": "InService",
            "EndpointConfigName": green["config"],
            "_variants": green["variants"],
            "_replicas": green["replicas"],
        }
        document.pop("_green")
        document.pop("FailureReason", None)


def retire(context: Context, document: dict[str, Any], replicas: list[dict[str, Any]]) -> None:
    """Stop replicas; they stay on the list until they are gone."""
    for replica in replicas:
        supervisors.signal_stop(_folder(context, document["EndpointName"], replica))
    document["_retiring"] = [*document.get("_retiring", []), *replicas]


def _retired(context: Context, document: dict[str, Any], replica: dict[str, Any]) -> bool:
    folder = _folder(context, document["EndpointName"], replica)
    if supervisors.alive(folder):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _refresh_replica(
    context: Context, document: dict[str, Any], replica: dict[str, Any], fleet: dict[str, Any] | None = None
) -> dict[str, Any]:
    folder = _folder(context, document["EndpointName"], replica)
    was_alive = supervisors.alive(folder)
    lines, offset = journal.read(folder / "journal.jsonl", replica["offset"])
    for line in lines:
        replica = dict(replica, offset=offset)
        if "state" in line and not (line["state"] == "Stopped" and replica["state"] == "Failed"):
            replica["state"] = line["state"]
            replica |= {key: line[key] for key in ("port", "reason") if key in line}
    if (
        not was_alive
        and replica["state"] != "Failed"
        and document["EndpointStatus"] in ("Creating", "InService", "Updating")
    ):
        # Its supervisor was killed, or the machine was started again: the instance is replaced.
        variants = fleet["variants"] if fleet else document["_variants"]
        variant = next(item for item in variants if item["VariantName"] == replica["variant"])
        (folder / "journal.jsonl").unlink(missing_ok=True)
        replica = dict(replica, state="Starting", offset=0)
        _launch(context, document, variant, replica)
    return replica


def _finish_deletion(context: Context, document: dict[str, Any]) -> dict[str, Any] | None:
    name = document["EndpointName"]
    everyone = [*document["_replicas"], *document.get("_retiring", [])]
    if any(supervisors.alive(_folder(context, name, item)) for item in everyone):
        return document
    context.store.delete(KIND, name)
    tags.drop(context, document["EndpointArn"])
    shutil.rmtree(context.endpoint_folder(name), ignore_errors=True)
    return None


def require(context: Context, name: str) -> dict[str, Any]:
    """A living endpoint by name; AWS names it by its ARN when it is missing."""
    document = context.store.get(KIND, name)
    found = refresh(context, document) if document else None
    if found is None:
        raise not_found(f'Could not find endpoint "{context.arn(KIND, name)}".')
    return found


def describe(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    document = require(context, params["EndpointName"])
    answer = {key: value for key, value in document.items() if not key.startswith("_")}
    if document["EndpointStatus"] != "Creating":
        answer["ProductionVariants"] = [_summary(document, item) for item in document["_variants"]]
    return answer


def _summary(document: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    serving = [
        item
        for item in document["_replicas"]
        if item["variant"] == variant["VariantName"] and item["state"] == "InService"
    ]
    image = (variant["_container"] or {}).get("Image", "")
    return {
        "VariantName": variant["VariantName"],
        "DeployedImages": [
            {"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": document["CreationTime"]}
        ],
        "CurrentWeight": variant["DesiredWeight"],
        "DesiredWeight": variant["DesiredWeight"],
        "CurrentInstanceCount": len(serving),
        "DesiredInstanceCount": variant["DesiredInstanceCount"],
    }


def list_endpoints(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    found = [item for item in (refresh(context, item) for item in context.store.all(KIND)) if item]
    names = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
    return listing.page(
        found, params, name="EndpointName", output="Endpoints", summary=listing.pick(*names), status="EndpointStatus"
    )


def delete(context: Context, params: dict[str, Any]) -> dict[str, Any] | None:
    document = require(context, params["EndpointName"])
    if document["EndpointStatus"] in BUSY:
        raise validation(f'Cannot update in-progress endpoint "{document["EndpointArn"]}".')
    name = document["EndpointName"]
    context.store.put(KIND, name, dict(document, EndpointStatus="Deleting", LastModifiedTime=context.now()))
    for replica in document["_replicas"]:
        supervisors.signal_stop(_folder(context, name, replica))
    return None


def update(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    """UpdateEndpoint: a new fleet beside the old one, which serves until the new one is healthy."""
    document = _changeable(context, params["EndpointName"])
    config = endpoint_configs.require(context, params["EndpointConfigName"])
    variants = [_variant(context, item) for item in config["ProductionVariants"]]
    if params.get("RetainAllVariantProperties"):
        old = {item["VariantName"]: item for item in document["_variants"]}
        for variant in variants:
            if variant["VariantName"] in old:
                kept = old[variant["VariantName"]]
                variant |= {name: kept[name] for name in ("DesiredWeight", "DesiredInstanceCount")}
    replicas = [
        launch_replica(context, document, variant)
        for variant in variants
        for _ in range(variant["DesiredInstanceCount"])
    ]
    green = {"config": params["EndpointConfigName"], "variants": variants, "replicas": replicas}
    changed = dict(document, EndpointStatus="Updating", LastModifiedTime=context.now(), _green=green)
    context.store.put(KIND, document["EndpointName"], changed)
    return {"EndpointArn": document["EndpointArn"]}


def update_capacities(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    """UpdateEndpointWeightsAndCapacities: weights at once, instances as they start and stop."""
    document = _changeable(context, params["EndpointName"])
    wanted = params["DesiredWeightsAndCapacities"]
    names = [item["VariantName"] for item in wanted]
    for name in names:
        if names.count(name) > 1:
            raise validation(f'The variant name "{name}" was non-unique within the request.')
    known = {item["VariantName"] for item in document["_variants"]}
    missing = [name for name in names if name not in known]
    if missing:
        listed = ", ".join(f'"{name}"' for name in missing)
        config = document["EndpointConfigName"]
        raise validation(f'The variant name(s) {listed} is/are not present within endpoint configuration "{config}".')
    changed = dict(document, EndpointStatus="Updating", LastModifiedTime=context.now())
    by_name = {item["VariantName"]: item for item in wanted}
    changed["_variants"] = [_resized(item, by_name.get(item["VariantName"], {})) for item in document["_variants"]]
    for variant in changed["_variants"]:
        mine = [item for item in changed["_replicas"] if item["variant"] == variant["VariantName"]]
        surplus = mine[variant["DesiredInstanceCount"] :]
        retire(context, changed, surplus)
        changed["_replicas"] = [item for item in changed["_replicas"] if item not in surplus]
        for _ in range(variant["DesiredInstanceCount"] - len(mine)):
            changed["_replicas"].append(launch_replica(context, changed, variant))
    context.store.put(KIND, document["EndpointName"], changed)
    return {"EndpointArn": document["EndpointArn"]}


def _resized(variant: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return variant | {name: change[name] for name in ("DesiredWeight", "DesiredInstanceCount") if name in change}


def _changeable(context: Context, name: str) -> dict[str, Any]:
    document = require(context, name)
    if document["EndpointStatus"] in BUSY:
        raise validation(f'Cannot update in-progress endpoint "{document["EndpointArn"]}".')
    if document["EndpointStatus"] == "Failed":
        raise validation(f'Cannot update endpoint "{document["EndpointArn"]}" in status Failed; delete it instead.')
    return document


class Router:
    """Chooses the replica for an invocation: by weight between variants, in turn within one."""

    def __init__(self) -> None:
        self._turns: dict[str, deque[int]] = {}
        self._served: dict[tuple[str, str], float] = {}

    def choose(self, document: dict[str, Any], target_variant: str | None) -> tuple[str, int] | None:
        """(variant, port) of the next replica, or None when nothing serves."""
        ports: dict[str, list[int]] = {}
        for item in document["_replicas"]:
            if item["state"] == "InService":
                ports.setdefault(item["variant"], []).append(item["port"])
        name = document["EndpointName"]
        weights = {item["VariantName"]: item["DesiredWeight"] for item in document["_variants"]}
        candidates = [item for item in ports if (item == target_variant if target_variant else weights[item] > 0)]
        if not candidates:
            return None
        # The variant that is furthest behind its share; exact over any window, unlike drawing lots.
        variant = min(candidates, key=lambda item: self._served.get((name, item), 0.0))
        step = 1.0 / weights[variant] if weights[variant] else 1.0
        self._served[name, variant] = self._served.get((name, variant), 0.0) + step
        turn = self._turns.setdefault(f"{name}/{variant}", deque())
        if set(turn) != set(ports[variant]):
            turn.clear()
            turn.extend(ports[variant])
        turn.rotate(-1)
        return variant, turn[-1]
