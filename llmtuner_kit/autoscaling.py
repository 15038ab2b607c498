"""Autoscaling of an endpoint: target tracking on invocations per instance, through Application Auto Scaling."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from llmtuner_kit.aws import ClientError, error_code, error_message, is_error
from llmtuner_kit.errors import KitError
from llmtuner_kit.hosting import VARIANT
from llmtuner_kit.settings import DeploySettings
from llmtuner_kit.workspace import Workspace

_DESIRED = re.compile(r"desired instance count to (\d+)")
_COOLDOWN_SECONDS = {"ScaleInCooldown": 300, "ScaleOutCooldown": 60}


def follow_load(workspace: Workspace, settings: DeploySettings, name: str) -> str:
    """Register target tracking on invocations per instance; returns what was set, or why it could not be."""
    client = workspace.aws.client("application-autoscaling")
    target = scaling_target(name)
    try:
        client.register_scalable_target(
            **target, MinCapacity=settings.min_instances, MaxCapacity=settings.max_instances
        )
        client.put_scaling_policy(
            **target,
            PolicyName=f"{name}-invocations",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": float(settings.invocations_per_instance),
                "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
                **_COOLDOWN_SECONDS,
            },
        )
    except (ClientError, KitError) as error:
        return f"not set; run 06_deploy again once the endpoint is in service. {_why(error)}"
    return (
        f"{settings.min_instances} to {settings.max_instances} instances at "
        f"{settings.invocations_per_instance} invocations a minute each"
    )


def stay(workspace: Workspace, settings: DeploySettings, name: str) -> str:
    """The fewest instances and no scaling any more; returns what was set, or why it could not be."""
    sagemaker, scaling = (workspace.aws.client(service) for service in ("sagemaker", "application-autoscaling"))
    wanted = {"VariantName": VARIANT, "DesiredInstanceCount": settings.min_instances}
    try:
        (variant,) = sagemaker.describe_endpoint(EndpointName=name)["ProductionVariants"]
        if variant["DesiredInstanceCount"] != settings.min_instances:  # as it was scaled to: nobody would bring it back
            sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=[wanted])
        scaling.deregister_scalable_target(**scaling_target(name))
    except (ClientError, KitError) as error:
        if is_error(error, "ObjectNotFoundException"):
            return "off"
        return f"not switched off; run 06_deploy again once the endpoint is in service. {_why(error)}"
    return "off"


def _why(error: Exception) -> str:
    return f"{error_code(error) or type(error).__name__}: {error_message(error)}"


@dataclass(frozen=True)
class Scaled:
    """How many instances an endpoint has had since a moment."""

    since: datetime
    instances: int


def history(workspace: Workspace, name: str, begun: datetime, end: datetime, instances: int) -> list[Scaled]:
    """The instances of an endpoint over its life, from Application Auto Scaling's own record of the last six weeks.

    An added instance counts from the moment it was asked for, a removed one up to the moment it had gone.
    Raises ClientError or KitError where the record cannot be read.
    """
    pages = (
        workspace.aws.client("application-autoscaling")
        .get_paginator("describe_scaling_activities")
        .paginate(**scaling_target(name))
    )
    found = [item for page in pages for item in page["ScalingActivities"] if item["StatusCode"] == "Successful"]
    made = [Scaled(begun, instances)]
    for item in sorted(found, key=lambda item: item["StartTime"]):
        wanted = _DESIRED.search(item["Description"])
        if wanted and begun <= item["StartTime"] <= end:
            more = int(wanted[1]) > made[-1].instances
            since = item["StartTime"] if more else item.get("EndTime", item["StartTime"])
            made.append(Scaled(max(made[-1].since, min(since, end)), int(wanted[1])))
    return made


def instance_seconds(steps: list[Scaled], end: datetime) -> float:
    """What is billed: the seconds of each number of instances times that number."""
    ends = [*(item.since for item in steps[1:]), end]
    return sum(item.instances * (until - item.since).total_seconds() for item, until in zip(steps, ends, strict=True))


def scaling_target(name: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
