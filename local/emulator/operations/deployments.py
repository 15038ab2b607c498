"""Deployments: how traffic moves from an endpoint's old fleet (blue) to a new one (green), and back when that fails.

A deployment is the member `_deployment` of an endpoint while it is Updating or RollingBack:
`config`, `variants`, `shadows`, `settings`, `replicas` (green), `policy` (the DeploymentConfig), `stage` (Creating, Baking,
Deleting), `share` of the traffic that green has, `until` (when the stage may end) and `started`.
"""

from __future__ import annotations

import math
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import validation
from llmtuner_local.emulator.operations import fleets

ALL_AT_ONCE = {
    "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}}
}
_STATUS = {"Creating": "Creating", "Baking": "Baking", "Deleting": "ActivatingTraffic"}


def check(policy: dict[str, Any]) -> None:
    """Cross-field rules of a DeploymentConfig; raises ValidationException."""
    if "BlueGreenUpdatePolicy" in policy and "RollingUpdatePolicy" in policy:
        raise validation("Only one of BlueGreenUpdatePolicy and RollingUpdatePolicy can be specified.")
    if "RollingUpdatePolicy" in policy:
        _check_size(policy["RollingUpdatePolicy"]["MaximumBatchSize"], "MaximumBatchSize", 5, 50)
        return
    routing = policy.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    for kind, member, low in (("CANARY", "CanarySize", 1), ("LINEAR", "LinearStepSize", 10)):
        if (routing.get("Type") == kind) != (member in routing):
            raise validation(f"{member} must be specified if, and only if, the traffic routing type is {kind}.")
        if member in routing:
            _check_size(routing[member], member, low, 50)


def _check_size(size: dict[str, Any], name: str, low: int, high: int) -> None:
    if size["Type"] == "CAPACITY_PERCENT" and not low <= size["Value"] <= high:
        raise validation(f"{name} must be between {low} and {high} percent of the capacity; it is {size['Value']}.")


def shares(policy: dict[str, Any], instances: int) -> list[float]:
    """The steps in which green gets its share of the traffic, ending with all of it."""
    routing = policy.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    if routing.get("Type") == "CANARY":
        return [part_of(routing["CanarySize"], instances), 1.0]
    if routing.get("Type") == "LINEAR":
        step = part_of(routing["LinearStepSize"], instances)
        return [min(1.0, step * number) for number in range(1, math.ceil(1 / step - 1e-9) + 1)]
    return [1.0]


def part_of(size: dict[str, Any], instances: int) -> float:
    """A CapacitySize as a part of the fleet, above 0 and at most 1."""
    part = size["Value"] / 100 if size["Type"] == "CAPACITY_PERCENT" else size["Value"] / max(1, instances)
    return min(1.0, part)


def begin(context: Context, document: dict[str, Any], green: dict[str, Any], policy: dict[str, Any]) -> None:
    """Start moving an endpoint to a new fleet.

    Args:
        green: `config`, `variants`, `shadows` and `settings` of the new fleet.
    """
    now = context.now()
    deployment = green | {
        "replicas": [],
        "policy": policy,
        "stage": "Creating",
        "share": 0.0,
        "until": 0.0,
        "started": now,
    }
    document |= {"EndpointStatus": "Updating", "LastModifiedTime": now, "_deployment": deployment}
    context.alarms.watch(_alarms(policy))
    name = document["EndpointName"]
    if "RollingUpdatePolicy" in policy:
        _next_batch(context, document, deployment)
    else:
        deployment["replicas"] = fleets.start(context, name, green["variants"])
    deployment["replicas"] += fleets.start(context, name, green["shadows"])


def advance(context: Context, document: dict[str, Any]) -> None:
    """The next step of a deployment, from what the replicas and the alarms are now. Changes the document."""
    deployment = document["_deployment"] = dict(document["_deployment"])
    if document["EndpointStatus"] == "RollingBack":
        _finish_roll_back(context, document, deployment)
        return
    reason = _trouble(context, deployment)
    if reason is not None:
        _roll_back(context, document, deployment, reason)
    elif deployment["stage"] == "Creating":
        if fleets.all_serve(deployment["replicas"]):
            _shift(context, document, deployment)
    elif context.now() >= deployment["until"]:
        _after_wait(context, document, deployment)


def _trouble(context: Context, deployment: dict[str, Any]) -> str | None:
    """Why the deployment must be taken back; None when all is well."""
    reason = fleets.first_failure(deployment["replicas"])
    if reason is not None:
        return reason
    if deployment["stage"] == "Baking" and (firing := context.alarms.firing(_alarms(deployment["policy"]))):
        return f"One or more of the auto rollback alarms went into ALARM state: {', '.join(firing)}."
    policy = deployment["policy"].get("RollingUpdatePolicy") or deployment["policy"].get("BlueGreenUpdatePolicy", {})
    longest = policy.get("MaximumExecutionTimeoutInSeconds")
    if longest and context.now() > deployment["started"] + longest:
        return f"The deployment did not complete within MaximumExecutionTimeoutInSeconds ({longest})."
    return None


def _alarms(policy: dict[str, Any]) -> list[str]:
    return [item["AlarmName"] for item in policy.get("AutoRollbackConfiguration", {}).get("Alarms", [])]


def _shift(context: Context, document: dict[str, Any], deployment: dict[str, Any]) -> None:
    """Green is healthy: give it more of the traffic, then bake."""
    policy = deployment["policy"]
    if rolling := policy.get("RollingUpdatePolicy"):
        _replace_batch(context, document, deployment)
        wait = rolling["WaitIntervalInSeconds"]
    else:
        steps = shares(policy, _wanted(deployment))
        deployment["share"] = next(item for item in steps if item > deployment["share"])
        blue_green = policy.get("BlueGreenUpdatePolicy", ALL_AT_ONCE["BlueGreenUpdatePolicy"])
        wait = blue_green["TrafficRoutingConfiguration"]["WaitIntervalInSeconds"]
    deployment |= {"stage": "Baking", "until": context.now() + wait}
    if not wait:
        _after_wait(context, document, deployment)


def _after_wait(context: Context, document: dict[str, Any], deployment: dict[str, Any]) -> None:
    if deployment["stage"] == "Deleting" or (deployment["share"] >= 1 and not _termination_wait(deployment)):
        _finish(context, document, deployment)
    elif deployment["share"] >= 1:
        deployment |= {"stage": "Deleting", "until": context.now() + _termination_wait(deployment)}
    elif "RollingUpdatePolicy" in deployment["policy"]:
        _next_batch(context, document, deployment)
        deployment["stage"] = "Creating"
    else:
        _shift(context, document, deployment)


def _wanted(deployment: dict[str, Any]) -> int:
    return sum(item["DesiredInstanceCount"] for item in deployment["variants"])


def _termination_wait(deployment: dict[str, Any]) -> int:
    return int(deployment["policy"].get("BlueGreenUpdatePolicy", {}).get("TerminationWaitInSeconds", 0))


def _next_batch(context: Context, document: dict[str, Any], deployment: dict[str, Any]) -> None:
    """Rolling: start the next instances of each variant."""
    size = deployment["policy"]["RollingUpdatePolicy"]["MaximumBatchSize"]
    for variant in deployment["variants"]:
        wanted = variant["DesiredInstanceCount"]
        missing = wanted - len(fleets.of_variant(deployment["replicas"], variant["VariantName"]))
        batch = dict(variant, DesiredInstanceCount=min(missing, max(1, math.floor(part_of(size, wanted) * wanted))))
        deployment["replicas"] = deployment["replicas"] + fleets.start(context, document["EndpointName"], [batch])


def _replace_batch(context: Context, document: dict[str, Any], deployment: dict[str, Any]) -> None:
    """Rolling: what green can do now, blue need not do any longer."""
    surplus, ready = [], 0
    for variant in deployment["variants"]:
        name = variant["VariantName"]
        green = len(fleets.of_variant(deployment["replicas"], name))
        surplus += fleets.of_variant(document["_replicas"], name)[variant["DesiredInstanceCount"] - green :]
        ready += green
    deployment["share"] = min(1.0, ready / max(1, _wanted(deployment)))
    fleets.retire(context, document, surplus)
    document["_replicas"] = [item for item in document["_replicas"] if item not in surplus]


def _finish(context: Context, document: dict[str, Any], deployment: dict[str, Any]) -> None:
    fleets.retire(context, document, document["_replicas"])
    document |= {
        "EndpointStatus": "InService",
        "EndpointConfigName": deployment["config"],
        "_settings": deployment["settings"],
        "_variants": deployment["variants"],
        "_shadows": deployment["shadows"],
        "_replicas": deployment["replicas"],
        "_changed": context.now(),
    }
    document.pop("_deployment")
    document.pop("FailureReason", None)


def _roll_back(context: Context, document: dict[str, Any], deployment: dict[str, Any], reason: str) -> None:
    """Blue takes all of the traffic again; what a rolling update has already stopped of it is started anew."""
    document |= {"EndpointStatus": "RollingBack", "FailureReason": reason}
    for variant in document["_variants"]:
        missing = variant["DesiredInstanceCount"] - len(
            fleets.of_variant(document["_replicas"], variant["VariantName"])
        )
        again = dict(variant, DesiredInstanceCount=max(0, missing))
        document["_replicas"] = document["_replicas"] + fleets.start(context, document["EndpointName"], [again])
    if fleets.all_serve(document["_replicas"]):
        deployment["share"] = 0.0
    failed = [item for item in deployment["replicas"] if item["state"] != "InService" or not deployment["share"]]
    fleets.retire(context, document, failed)
    deployment["replicas"] = [item for item in deployment["replicas"] if item not in failed]


def _finish_roll_back(context: Context, document: dict[str, Any], deployment: dict[str, Any]) -> None:
    if (reason := fleets.first_failure(document["_replicas"])) is not None:
        document |= {"EndpointStatus": "UpdateRollbackFailed", "FailureReason": reason}
        fleets.retire(context, document, deployment["replicas"])
        document.pop("_deployment")
    elif fleets.all_serve(document["_replicas"]):
        deployment["share"] = 0.0
        fleets.retire(context, document, deployment["replicas"])
        deployment["replicas"] = []
        if not document["_retiring"]:
            document["EndpointStatus"] = "InService"
            document.pop("_deployment")


def variant_statuses(document: dict[str, Any]) -> list[str]:
    """VariantStatus of an endpoint's variants while something changes."""
    if "_deployment" in document:
        return [_STATUS[document["_deployment"]["stage"]]] if document["EndpointStatus"] == "Updating" else ["Updating"]
    return {"Creating": ["Creating"], "Updating": ["Updating"], "Deleting": ["Deleting"]}.get(
        document["EndpointStatus"], []
    )
