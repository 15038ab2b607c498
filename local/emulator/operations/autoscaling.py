"""Application Auto Scaling for endpoints: scalable targets, target tracking, and the loop that acts on it."""

from __future__ import annotations

import math
import uuid
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError, validation
from llmtuner_local.emulator.operations import endpoint_updates, endpoints

TARGET, POLICY, ACTIVITY = "scalable-target", "scaling-policy", "scaling-activity"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
METRIC = "SageMakerVariantInvocationsPerInstance"
COOLDOWN_SECONDS = 300
_KEPT_ACTIVITIES = 50


def register(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    name, variant = _endpoint_of(params)
    document = endpoints.require(context, name)
    if variant not in {item["VariantName"] for item in document["_variants"]}:
        raise validation(f"ECS service, or SageMaker endpoint variant, doesn't exist: {params['ResourceId']}")
    known = context.store.get(TARGET, params["ResourceId"]) or {}
    low = params.get("MinCapacity", known.get("MinCapacity"))
    high = params.get("MaxCapacity", known.get("MaxCapacity"))
    if low is None or high is None:
        raise validation("MinCapacity and MaxCapacity are required for a new scalable target.")
    if low < 1 or high < low:
        raise validation("MinCapacity must be at least 1 and MaxCapacity at least MinCapacity for this resource.")
    arn = (
        f"arn:aws:application-autoscaling:{context.region}:{context.account_id}:scalable-target/{uuid.uuid4().hex[:10]}"
    )
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": params["ResourceId"],
        "ScalableDimension": params["ScalableDimension"],
        "MinCapacity": low,
        "MaxCapacity": high,
        "RoleARN": f"arn:aws:iam::{context.account_id}:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
        "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint",
        "CreationTime": known.get("CreationTime", context.now()),
        "ScalableTargetARN": known.get("ScalableTargetARN", arn),
    }
    context.store.put(TARGET, params["ResourceId"], target)
    return {"ScalableTargetARN": target["ScalableTargetARN"]}


def _endpoint_of(params: dict[str, Any]) -> tuple[str, str]:
    """(endpoint, variant) of a ResourceId `endpoint/NAME/variant/VARIANT`."""
    parts = params["ResourceId"].split("/")
    if (
        params.get("ServiceNamespace") != "sagemaker"
        or len(parts) != 4
        or parts[0] != "endpoint"
        or parts[2] != "variant"
    ):
        raise validation(f"Unsupported service namespace, resource type or scalable dimension: {params['ResourceId']}")
    if params.get("ScalableDimension") != DIMENSION:
        raise validation(f"Unsupported scalable dimension: {params.get('ScalableDimension')}")
    return parts[1], parts[3]


def _missing(params: dict[str, Any]) -> ServiceError:
    text = (
        f"No scalable target found for service namespace: sagemaker, resource ID: {params['ResourceId']}, "
        f"scalable dimension: {params['ScalableDimension']}"
    )
    return ServiceError("ObjectNotFoundException", text)


def describe_targets(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    wanted = params.get("ResourceIds")
    return {
        "ScalableTargets": [item for item in context.store.all(TARGET) if not wanted or item["ResourceId"] in wanted]
    }


def deregister(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    if not context.store.get(TARGET, params["ResourceId"]):
        raise _missing(params)
    context.store.delete(TARGET, params["ResourceId"])
    for key, policy in context.store.items(POLICY):
        if policy["ResourceId"] == params["ResourceId"]:
            context.store.delete(POLICY, key)
    return {}


def put_policy(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    if not context.store.get(TARGET, params["ResourceId"]):
        raise _missing(params)
    tracking = params.get("TargetTrackingScalingPolicyConfiguration")
    if params.get("PolicyType") != "TargetTrackingScaling" or not tracking:
        raise validation("Only TargetTrackingScaling policies are emulated for endpoint variants.")
    metric = tracking.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType")
    if metric != METRIC:
        raise validation(f"Metric {metric} is not emulated; {METRIC} is.")
    key = f"{params['ResourceId']}/{params['PolicyName']}"
    arn = f"arn:aws:autoscaling:{context.region}:{context.account_id}:scalingPolicy:{uuid.uuid4()}:resource/sagemaker/{key}"
    known = context.store.get(POLICY, key) or {}
    policy = {
        "PolicyARN": known.get("PolicyARN", arn),
        "PolicyName": params["PolicyName"],
        "ServiceNamespace": "sagemaker",
        "ResourceId": params["ResourceId"],
        "ScalableDimension": params["ScalableDimension"],
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": tracking,
        "CreationTime": known.get("CreationTime", context.now()),
    }
    context.store.put(POLICY, key, policy)
    return {"PolicyARN": policy["PolicyARN"], "Alarms": []}


def describe_policies(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    wanted, names = params.get("ResourceId"), params.get("PolicyNames")
    return {
        "ScalingPolicies": [
            item
            for item in context.store.all(POLICY)
            if (not wanted or item["ResourceId"] == wanted) and (not names or item["PolicyName"] in names)
        ]
    }


def delete_policy(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    key = f"{params['ResourceId']}/{params['PolicyName']}"
    if not context.store.get(POLICY, key):
        raise ServiceError("ObjectNotFoundException", f"No scaling policy found: {params['PolicyName']}")
    context.store.delete(POLICY, key)
    return {}


def describe_activities(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    wanted = params.get("ResourceId")
    found = [item for item in context.store.all(ACTIVITY) if not wanted or item["ResourceId"] == wanted]
    return {"ScalingActivities": sorted(found, key=lambda item: -item["StartTime"])}


def desired_instances(per_minute: float, target_value: float, low: int, high: int) -> int:
    """Target tracking: as many instances as bring invocations per minute and instance to the target."""
    return min(high, max(low, math.ceil(per_minute / target_value)))


def act(context: Context) -> None:
    """One round of the loop: count the last minute, and change instances where a policy asks for it."""
    for policy in context.store.all(POLICY):
        target = context.store.get(TARGET, policy["ResourceId"])
        _, name, _, variant_name = policy["ResourceId"].split("/")
        document = context.store.get(endpoints.KIND, name)
        if not target or not document or document["EndpointStatus"] != "InService":
            continue
        variant = next((item for item in document["_variants"] if item["VariantName"] == variant_name), None)
        if variant is None:
            continue
        now = context.now()
        recent = context.metrics.variant(name, variant_name).invocations(context.limits.scaling_window_seconds, now)
        tracking = policy["TargetTrackingScalingPolicyConfiguration"]
        current = variant["DesiredInstanceCount"]
        wanted = desired_instances(recent, tracking["TargetValue"], target["MinCapacity"], target["MaxCapacity"])
        side = "ScaleOutCooldown" if wanted > current else "ScaleInCooldown"
        if wanted == current or now < target.get("_last", 0.0) + tracking.get(side, COOLDOWN_SECONDS):
            continue
        change = {
            "EndpointName": name,
            "DesiredWeightsAndCapacities": [{"VariantName": variant_name, "DesiredInstanceCount": wanted}],
        }
        endpoint_updates.update_capacities(context, change)
        context.store.put(TARGET, policy["ResourceId"], dict(target, _last=now))
        _note(context, policy, current, wanted, int(recent))


def _note(context: Context, policy: dict[str, Any], current: int, wanted: int, invocations: int) -> None:
    identifier = str(uuid.uuid4())
    activity = {
        "ActivityId": identifier,
        "ServiceNamespace": "sagemaker",
        "ResourceId": policy["ResourceId"],
        "ScalableDimension": policy["ScalableDimension"],
        "Description": f"Setting desired instance count to {wanted}.",
        "Cause": f"{invocations} invocations in the last minute on {current} instance(s), policy {policy['PolicyName']}",
        "StartTime": context.now(),
        "StatusCode": "Successful",
    }
    context.store.put(ACTIVITY, identifier, activity)
    for old in context.store.all(ACTIVITY)[:-_KEPT_ACTIVITIES]:
        context.store.delete(ACTIVITY, old["ActivityId"])
