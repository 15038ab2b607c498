"""Application Auto Scaling that acts: target tracking, step scaling, scheduled actions, cooldowns."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from botocore.exceptions import ClientError
from emulator.conftest import Cloud
from emulator.hosting import ask, deploy, describe, model, remove, settled, variant
from llmtuner_local.emulator.errors import ServiceError
from llmtuner_local.emulator.operations import scaling
from llmtuner_local.emulator.operations.scaling import adjust
from llmtuner_local.emulator.operations.scaling_policies import next_time

STEPS = [
    {"MetricIntervalUpperBound": 0, "ScalingAdjustment": -1},
    {"MetricIntervalLowerBound": 0, "MetricIntervalUpperBound": 10, "ScalingAdjustment": 1},
    {"MetricIntervalLowerBound": 10, "ScalingAdjustment": 3},
]


@pytest.mark.parametrize(
    ("kind", "more", "current", "breach", "expected"),
    [
        ("ChangeInCapacity", {}, 2, 0, 3),
        ("ChangeInCapacity", {}, 2, 12, 5),
        ("ChangeInCapacity", {}, 2, -1, 1),
        ("ChangeInCapacity", {}, 0, -1, 0),
        ("ExactCapacity", {}, 7, 5, 1),
        ("PercentChangeInCapacity", {"StepAdjustments": [{"ScalingAdjustment": 50}]}, 4, 0, 6),
        ("PercentChangeInCapacity", {"StepAdjustments": [{"ScalingAdjustment": 10}]}, 4, 0, 5),
        ("PercentChangeInCapacity", {"StepAdjustments": [{"ScalingAdjustment": 50}]}, 5, 0, 7),
        ("PercentChangeInCapacity", {"StepAdjustments": [{"ScalingAdjustment": -50}]}, 5, 0, 3),
        ("PercentChangeInCapacity", {"StepAdjustments": [{"ScalingAdjustment": -10}]}, 4, 0, 3),
        (
            "PercentChangeInCapacity",
            {"StepAdjustments": [{"ScalingAdjustment": 10}], "MinAdjustmentMagnitude": 2},
            4,
            0,
            6,
        ),
    ],
)
def test_step_that_holds_the_breach_is_taken(
    kind: str, more: dict[str, Any], current: int, breach: float, expected: int
) -> None:
    assert adjust({"AdjustmentType": kind, "StepAdjustments": STEPS} | more, current, breach) == expected


@pytest.mark.parametrize(
    ("wanted", "last_out", "last_in", "now", "may"),
    [
        (3, 0.0, 90.0, 100.0, True),  # out: never waits for a scale-in
        (3, 95.0, 0.0, 100.0, False),  # out: 10 s after the last one
        (3, 90.0, 0.0, 100.0, True),
        (1, 0.0, 90.0, 100.0, False),  # in: 20 s after the last change of either kind
        (1, 90.0, 0.0, 100.0, False),
        (1, 80.0, 80.0, 100.0, True),
    ],
)
def test_a_change_waits_for_its_cooldown(wanted: int, last_out: float, last_in: float, now: float, may: bool) -> None:
    target, pauses = {"_last_out": last_out, "_last_in": last_in}, {"ScaleOutCooldown": 10, "ScaleInCooldown": 20}
    assert scaling._may(target, 2, wanted, pauses, now) == may
    direction = "Out" if wanted > 2 else "In"
    assert not scaling._may(
        target | {"SuspendedState": {f"DynamicScaling{direction}Suspended": True}}, 2, wanted, pauses, now
    )


def test_a_policy_that_disables_scale_in_adds_instances_and_takes_none_away(monkeypatch: pytest.MonkeyPatch) -> None:
    context, target = Mock(now=Mock(return_value=1e9)), {"MinCapacity": 1, "MaxCapacity": 4}
    plain = {"TargetValue": 1.0}

    def tracked(needed: int, *policies: dict[str, Any]) -> int | None:
        monkeypatch.setattr(scaling, "_needed", lambda *_: needed)
        named = [{"PolicyName": "p", "TargetTrackingScalingPolicyConfiguration": item} for item in policies]
        found = scaling._tracked(context, target, 2, named)
        return found[0] if found else None

    assert [tracked(needed, plain) for needed in (0, 1, 2, 3, 9)] == [1, 1, None, 3, 4]
    assert [tracked(needed, plain | {"DisableScaleIn": True}) for needed in (1, 3)] == [None, 3]
    assert tracked(1, plain | {"DisableScaleIn": True}, plain) is None


def test_schedules_are_read_or_refused() -> None:
    assert next_time("at(2026-01-02T03:04:05)", 0) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert next_time("rate(2 hours)", 100.0) == 7300.0
    with pytest.raises(ServiceError, match="is not emulated"):
        next_time("cron(0 8 * * ? *)", 0)


def target(endpoint: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def instances(quick: Cloud, name: str, count: int) -> None:
    """Wait until so many instances serve and the endpoint has settled."""
    quick.until(
        lambda: describe(quick, name),
        lambda item: (
            item["EndpointStatus"] == "InService" and item["ProductionVariants"][0]["CurrentInstanceCount"] == count
        ),
    )


def track(quick: Cloud, resource: dict[str, str], metric: str, value: float, **more: Any) -> None:
    tracking = {"TargetValue": value, "PredefinedMetricSpecification": {"PredefinedMetricType": metric}}
    quick.scaling.put_scaling_policy(
        **resource,
        PolicyName="track",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=tracking | {"ScaleOutCooldown": 0, "ScaleInCooldown": 0} | more,
    )


def test_load_brings_replicas_and_quiet_takes_them_away(quick: Cloud) -> None:
    """3 seconds of at most 60 requests are 1,200 a minute; the policy wants 100 on an instance, also of a slow machine."""
    name = deploy(quick, variant(model(quick)))
    resource = target(name)
    quick.scaling.register_scalable_target(**resource, MinCapacity=1, MaxCapacity=2)
    track(quick, resource, "SageMakerVariantInvocationsPerInstance", 100.0)
    stop, seen = threading.Event(), set()

    def load() -> None:
        while not stop.wait(0.05):
            seen.add(ask(quick, name)["who"])

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        try:
            instances(quick, name, 2)
            quick.until(lambda: len(seen), lambda count: count == 2)
        finally:
            stop.set()
        loading.result()
    instances(quick, name, 1)
    activities = quick.scaling.describe_scaling_activities(
        ServiceNamespace="sagemaker", ResourceId=resource["ResourceId"]
    )["ScalingActivities"]
    assert [item["Description"] for item in reversed(activities)] == [
        "Setting desired instance count to 2.",
        "Setting desired instance count to 1.",
    ]

    # Concurrency: four requests at once, two wanted on an instance; with a cooldown, what has come stays.
    track(quick, resource, "SageMakerVariantConcurrentRequestsPerModelHighResolution", 2.0, ScaleInCooldown=3600)
    with ThreadPoolExecutor(4) as pool:
        for answer in [pool.submit(ask, quick, name, b'{"sleep": 1.5}') for _ in range(8)]:
            answer.result()
    instances(quick, name, 2)
    quick.until(lambda: quick.scaling.describe_scaling_policies(ServiceNamespace="sagemaker"), bool)
    assert settled(quick, name)["ProductionVariants"][0]["DesiredInstanceCount"] == 2
    quick.scaling.deregister_scalable_target(**resource)
    assert not quick.scaling.describe_scaling_policies(ServiceNamespace="sagemaker", ResourceId=resource["ResourceId"])[
        "ScalingPolicies"
    ]
    with pytest.raises(ClientError, match="No scalable target found"):
        quick.scaling.deregister_scalable_target(**resource)
    remove(quick, name)


def test_scheduled_action_sets_bounds_and_capacity_follows(quick: Cloud) -> None:
    name = deploy(quick, variant(model(quick)))
    resource = target(name)
    with pytest.raises(ClientError, match="MinCapacity must be at least 1"):
        quick.scaling.register_scalable_target(**resource, MinCapacity=0, MaxCapacity=2)
    quick.scaling.register_scalable_target(**resource, MinCapacity=1, MaxCapacity=1)
    soon = (datetime.now(UTC) + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%S")
    quick.scaling.put_scheduled_action(
        **resource, ScheduledActionName="morning", Schedule=f"at({soon})",
        ScalableTargetAction={"MinCapacity": 2, "MaxCapacity": 2},
    )  # fmt: skip
    instances(quick, name, 2)
    (action,) = quick.scaling.describe_scheduled_actions(
        ServiceNamespace="sagemaker", ResourceId=resource["ResourceId"]
    )["ScheduledActions"]
    assert action["ScheduledActionName"] == "morning"
    quick.scaling.delete_scheduled_action(**resource, ScheduledActionName="morning")
    quick.scaling.deregister_scalable_target(**resource)
    remove(quick, name)
