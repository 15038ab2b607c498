"""The loop of Application Auto Scaling: what policies and scheduled actions make of the last minutes."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.endpoint_metrics import Meter
from llmtuner_local.emulator.operations import scalable_targets, scaling_policies

ACTIVITY = "scaling-activity"
COOLDOWN_SECONDS = 300
_KEPT_ACTIVITIES = 50


def act(context: Context) -> None:
    """One round over all targets."""
    _run_scheduled(context)
    for target in context.store.all(scalable_targets.KIND):
        current = scalable_targets.capacity(context, target)
        if current is None:
            continue
        policies = [
            item for item in context.store.all(scaling_policies.KIND) if item["ResourceId"] == target["ResourceId"]
        ]
        decision = _tracked(context, target, current, policies) or _stepped(context, target, current, policies)
        if target.get("_enforce"):
            bounded = min(target["MaxCapacity"], max(target["MinCapacity"], current))
            target = context.store.put(scalable_targets.KIND, target["ResourceId"], dict(target, _enforce=False))
            decision = decision or ((bounded, "scheduled action") if bounded != current else None)
        if decision:
            _apply(context, target, current, *decision)


def _apply(context: Context, target: dict[str, Any], current: int, wanted: int, cause: str) -> None:
    scalable_targets.set_capacity(context, target, wanted)
    mark = "_last_out" if wanted > current else "_last_in"
    context.store.put(scalable_targets.KIND, target["ResourceId"], dict(target, **{mark: context.now()}))
    what = "copy" if target["ScalableDimension"] == scalable_targets.COPIES else "instance"
    activity = {
        "ActivityId": str(uuid.uuid4()),
        "ServiceNamespace": "sagemaker",
        "ResourceId": target["ResourceId"],
        "ScalableDimension": target["ScalableDimension"],
        "Description": f"Setting desired {what} count to {wanted}.",
        "Cause": cause,
        "StartTime": context.now(),
        "EndTime": context.now(),
        "StatusCode": "Successful",
        "StatusMessage": f"Successfully set desired {what} count to {wanted}. Change successfully fulfilled by sagemaker.",
    }
    context.store.put(ACTIVITY, activity["ActivityId"], activity)
    for old in context.store.all(ACTIVITY)[:-_KEPT_ACTIVITIES]:
        context.store.delete(ACTIVITY, old["ActivityId"])


def describe_activities(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    wanted = params.get("ResourceId")
    found = [item for item in context.store.all(ACTIVITY) if not wanted or item["ResourceId"] == wanted]
    return {"ScalingActivities": sorted(found, key=lambda item: -item["StartTime"])}


def _tracked(
    context: Context, target: dict[str, Any], current: int, policies: list[dict[str, Any]]
) -> tuple[int, str] | None:
    """(capacity, cause) that target tracking asks for; the largest of several policies wins."""
    wishes = []
    for policy in policies:
        tracking = policy.get("TargetTrackingScalingPolicyConfiguration")
        needed = _needed(context, target, current, tracking) if tracking else None
        if tracking and needed is not None:
            wishes.append(
                (min(target["MaxCapacity"], max(target["MinCapacity"], needed)), policy["PolicyName"], tracking)
            )
    if not wishes:
        return None
    wanted, name, tracking = max(wishes, key=lambda item: item[0])
    if wanted < current and any(item[2].get("DisableScaleIn") for item in wishes):
        return None
    if wanted == current or not _may(target, current, wanted, tracking, context.now()):
        return None
    return wanted, f"policy {name}: the metric asks for {wanted} instead of {current}"


def _needed(context: Context, target: dict[str, Any], current: int, tracking: dict[str, Any]) -> int | None:
    """How many instances or copies bring the metric to its target; None when there is no data."""
    goal = tracking["TargetValue"]
    if custom := tracking.get("CustomizedMetricSpecification"):
        value = context.samples.value(custom)
        return None if value is None else math.ceil(current * value / goal - 1e-9)
    metric = tracking["PredefinedMetricSpecification"]["PredefinedMetricType"]
    place, limits, now = scalable_targets.place_of(target), context.limits, context.now()
    meter: Meter = context.metrics.component(place[0]) if len(place) == 1 else context.metrics.variant(*place)
    if metric in scaling_policies.CONCURRENCY:
        return math.ceil(meter.concurrency(limits.high_resolution_window_seconds, now) / goal - 1e-9)
    window = limits.scaling_window_seconds
    return math.ceil(meter.invocations(window, now) * 60 / window / goal - 1e-9)


def _may(target: dict[str, Any], current: int, wanted: int, tracking: dict[str, Any], now: float) -> bool:
    """Whether cooldowns and suspensions allow a change now. Scaling out never waits for a scale-in."""
    suspended = target.get("SuspendedState", {})
    last_out, last_in = target.get("_last_out", 0.0), target.get("_last_in", 0.0)
    if wanted > current:
        pause = tracking.get("ScaleOutCooldown", COOLDOWN_SECONDS)
        return not suspended.get("DynamicScalingOutSuspended") and now >= last_out + pause
    pause = tracking.get("ScaleInCooldown", COOLDOWN_SECONDS)
    return not suspended.get("DynamicScalingInSuspended") and now >= max(last_out, last_in) + pause


def _stepped(
    context: Context, target: dict[str, Any], current: int, policies: list[dict[str, Any]]
) -> tuple[int, str] | None:
    """(capacity, cause) that a step policy asks for while an alarm that names it as an action is in ALARM."""
    for policy in policies:
        steps = policy.get("StepScalingPolicyConfiguration")
        if steps is None:
            continue
        for alarm in context.alarms.with_action(policy["PolicyARN"]):
            adjusted = adjust(steps, current, _breach(alarm))
            wanted = min(target["MaxCapacity"], max(target["MinCapacity"], adjusted))
            cooldown = steps.get("Cooldown", COOLDOWN_SECONDS)
            pauses = {"ScaleOutCooldown": cooldown, "ScaleInCooldown": cooldown}
            if wanted != current and _may(target, current, wanted, pauses, context.now()):
                return (
                    wanted,
                    f"monitor alarm {alarm['AlarmName']} in state ALARM triggered policy {policy['PolicyName']}",
                )
    return None


def _breach(alarm: dict[str, Any]) -> float:
    """How far the alarm's newest value is above (below: negative) its threshold; 0 when CloudWatch does not tell."""
    try:
        points = json.loads(alarm.get("StateReasonData") or "{}").get("recentDatapoints") or []
    except ValueError:
        return 0.0
    return float(points[-1]) - float(alarm.get("Threshold", 0.0)) if points and points[-1] is not None else 0.0


def adjust(steps: dict[str, Any], current: int, breach: float) -> int:
    """The capacity after the step whose interval holds the breach; unchanged when none does."""
    for step in steps["StepAdjustments"]:
        low, high = step.get("MetricIntervalLowerBound", -math.inf), step.get("MetricIntervalUpperBound", math.inf)
        if not low <= breach < high:
            continue
        change = step["ScalingAdjustment"]
        if steps["AdjustmentType"] == "ExactCapacity":
            return int(change)
        if steps["AdjustmentType"] == "PercentChangeInCapacity":
            part = current * change / 100
            # Towards zero, but by one at least.
            change = math.trunc(part) if abs(part) > 1 else math.copysign(math.ceil(abs(part)), part)
            least = steps.get("MinAdjustmentMagnitude", 0)
            change = int(math.copysign(max(abs(change), least), part or step["ScalingAdjustment"]))
        return max(0, current + int(change))
    return current


def _run_scheduled(context: Context) -> None:
    """Scheduled actions that have come due set the bounds of their target."""
    now = context.now()
    for key, action in context.store.items(scaling_policies.SCHEDULED):
        due = scaling_policies.next_time(action["Schedule"], action["_last"])
        target = context.store.get(scalable_targets.KIND, action["ResourceId"])
        if not target or now < due or action["_last"] > due:
            continue
        if not target.get("SuspendedState", {}).get("ScheduledScalingSuspended"):
            bounds = action.get("ScalableTargetAction", {})
            context.store.put(scalable_targets.KIND, action["ResourceId"], target | bounds | {"_enforce": True})
        context.store.put(scaling_policies.SCHEDULED, key, dict(action, _last=now))
