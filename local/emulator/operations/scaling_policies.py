"""Scaling policies (target tracking, step scaling) and scheduled actions of Application Auto Scaling."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError, validation
from llmtuner_local.emulator.operations import scalable_targets

KIND, SCHEDULED = "scaling-policy", "scheduled-action"
INVOCATIONS = {"SageMakerVariantInvocationsPerInstance", "SageMakerInferenceComponentInvocationsPerCopy"}
CONCURRENCY = {
    "SageMakerVariantConcurrentRequestsPerModelHighResolution",
    "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution",
}
_UNITS = {"minute": 60, "hour": 3600, "day": 86400}


def put(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    if not context.store.get(scalable_targets.KIND, params["ResourceId"]):
        raise scalable_targets.missing(params)
    kind = params.get("PolicyType", "StepScaling")
    member = f"{kind}PolicyConfiguration"
    if kind == "PredictiveScaling" or member not in params:
        raise validation(f"{member} is required; TargetTrackingScaling and StepScaling are emulated.")
    (_check_tracking if kind == "TargetTrackingScaling" else _check_steps)(params[member])
    key = f"{params['ResourceId']}/{params['PolicyName']}"
    arn = f"arn:aws:autoscaling:{context.region}:{context.account_id}:scalingPolicy:{uuid.uuid4()}:resource/sagemaker/{key}"
    known = context.store.get(KIND, key) or {}
    policy = {
        "PolicyARN": known.get("PolicyARN", arn),
        "PolicyName": params["PolicyName"],
        "ServiceNamespace": "sagemaker",
        "ResourceId": params["ResourceId"],
        "ScalableDimension": params["ScalableDimension"],
        "PolicyType": kind,
        member: params[member],
        "CreationTime": known.get("CreationTime", context.now()),
    }
    context.store.put(KIND, key, policy)
    return {"PolicyARN": policy["PolicyARN"], "Alarms": []}


def _check_tracking(tracking: dict[str, Any]) -> None:
    if tracking["TargetValue"] <= 0:
        raise validation(f"TargetValue must be above 0; it is {tracking['TargetValue']}.")
    predefined = tracking.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType")
    custom = tracking.get("CustomizedMetricSpecification")
    if (predefined is None) == (custom is None):
        raise validation("Exactly one of PredefinedMetricSpecification and CustomizedMetricSpecification is required.")
    known = INVOCATIONS | CONCURRENCY
    if predefined is not None and predefined not in known:
        raise validation(f"Metric {predefined} is not emulated; {', '.join(sorted(known))} are.")
    if custom is not None and not {"MetricName", "Namespace", "Statistic"} <= custom.keys():
        raise validation(
            "A CustomizedMetricSpecification needs MetricName, Namespace and Statistic; Metrics is not emulated."
        )


def _check_steps(configuration: dict[str, Any]) -> None:
    if not configuration.get("StepAdjustments") or "AdjustmentType" not in configuration:
        raise validation("StepScalingPolicyConfiguration needs AdjustmentType and StepAdjustments.")


def describe(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    return {"ScalingPolicies": _found(context, KIND, params, "PolicyName")}


def delete(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    return _delete(context, KIND, params, "PolicyName", "scaling policy")


def _found(context: Context, kind: str, params: dict[str, Any], member: str) -> list[dict[str, Any]]:
    """What a Describe asks for, by resource and by names; `member` is what holds a name."""
    wanted, names = params.get("ResourceId"), params.get(f"{member}s")
    return [
        item
        for item in context.store.all(kind)
        if (not wanted or item["ResourceId"] == wanted) and (not names or item[member] in names)
    ]


def _delete(context: Context, kind: str, params: dict[str, Any], member: str, words: str) -> dict[str, Any]:
    key = f"{params['ResourceId']}/{params[member]}"
    if not context.store.get(kind, key):
        raise ServiceError("ObjectNotFoundException", f"No {words} found: {params[member]}")
    context.store.delete(kind, key)
    return {}


def put_scheduled(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    if not context.store.get(scalable_targets.KIND, params["ResourceId"]):
        raise scalable_targets.missing(params)
    key = f"{params['ResourceId']}/{params['ScheduledActionName']}"
    known = context.store.get(SCHEDULED, key) or {}
    if "Schedule" not in params and "Schedule" not in known:
        raise validation("Schedule is required for a new scheduled action.")
    now = context.now()
    next_time(str(params.get("Schedule", known.get("Schedule"))), now)  # raises for what cannot be read
    arn = f"arn:aws:autoscaling:{context.region}:{context.account_id}:scheduledAction:{uuid.uuid4()}:resource/sagemaker/{key}"
    action = (
        known | params | {"ScheduledActionARN": known.get("ScheduledActionARN", arn), "CreationTime": now, "_last": now}
    )
    context.store.put(SCHEDULED, key, action)
    return {}


def describe_scheduled(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    return {"ScheduledActions": _found(context, SCHEDULED, params, "ScheduledActionName")}


def delete_scheduled(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    return _delete(context, SCHEDULED, params, "ScheduledActionName", "scheduled action")


def next_time(schedule: str, after: float) -> float:
    """When `at(...)` (UTC) or `rate(...)` comes due after a moment, epoch seconds."""
    if found := re.fullmatch(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)", schedule):
        return datetime.fromisoformat(found.group(1)).replace(tzinfo=UTC).timestamp()
    if found := re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", schedule):
        return after + int(found.group(1)) * _UNITS[found.group(2)]
    raise validation(
        f"Schedule {schedule!r} is not emulated; at(yyyy-mm-ddThh:mm:ss) and rate(N minutes|hours|days) are."
    )
