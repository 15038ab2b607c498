"""Scalable targets of Application Auto Scaling: endpoint variants and inference components, with their bounds."""

from __future__ import annotations

import uuid
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError, validation
from llmtuner_local.emulator.operations import endpoint_updates, endpoints, inference_components

KIND = "scalable-target"
INSTANCES = "sagemaker:variant:DesiredInstanceCount"
COPIES = "sagemaker:inference-component:DesiredCopyCount"


def register(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    place = place_of(params)
    known = context.store.get(KIND, params["ResourceId"]) or {}
    low = params.get("MinCapacity", known.get("MinCapacity"))
    high = params.get("MaxCapacity", known.get("MaxCapacity"))
    if low is None or high is None:
        raise validation("MinCapacity and MaxCapacity are required for a new scalable target.")
    lowest = _lowest(context, place, params["ResourceId"])
    if low < lowest or high < low:
        raise validation(
            f"MinCapacity must be at least {lowest} and MaxCapacity at least MinCapacity for this resource."
        )
    arn = (
        f"arn:aws:application-autoscaling:{context.region}:{context.account_id}:scalable-target/{uuid.uuid4().hex[:10]}"
    )
    target = {
        **{name: value for name, value in known.items() if name.startswith("_")},
        "ServiceNamespace": "sagemaker",
        "ResourceId": params["ResourceId"],
        "ScalableDimension": params["ScalableDimension"],
        "MinCapacity": low,
        "MaxCapacity": high,
        "RoleARN": f"arn:aws:iam::{context.account_id}:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
        "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint",
        "CreationTime": known.get("CreationTime", context.now()),
        "ScalableTargetARN": known.get("ScalableTargetARN", arn),
        "SuspendedState": known.get("SuspendedState", {}) | params.get("SuspendedState", {}),
    }
    context.store.put(KIND, params["ResourceId"], target)
    return {"ScalableTargetARN": target["ScalableTargetARN"]}


def place_of(params: dict[str, Any]) -> tuple[str, ...]:
    """(endpoint, variant) of `endpoint/NAME/variant/VARIANT`, or (component,) of `inference-component/NAME`."""
    parts, dimension = params["ResourceId"].split("/"), params.get("ScalableDimension")
    if params.get("ServiceNamespace") == "sagemaker":
        if len(parts) == 4 and (parts[0], parts[2]) == ("endpoint", "variant") and dimension == INSTANCES:
            return parts[1], parts[3]
        if len(parts) == 2 and parts[0] == "inference-component" and dimension == COPIES:
            return (parts[1],)
    raise validation(
        f"Unsupported service namespace, resource type or scalable dimension: {params['ResourceId']} {dimension}"
    )


def _lowest(context: Context, place: tuple[str, ...], resource_id: str) -> int:
    """The lowest MinCapacity of a resource, which must exist."""
    if len(place) == 1:
        inference_components.require(context, place[0])
        return 0
    document = endpoints.require(context, place[0])
    for variant in document["_variants"]:
        if variant["VariantName"] == place[1]:
            return 0 if endpoint_updates.may_be_empty(document, variant) else 1
    raise validation(f"ECS service, or SageMaker endpoint variant, doesn't exist: {resource_id}")


def missing(params: dict[str, Any]) -> ServiceError:
    text = (
        f"No scalable target found for service namespace: sagemaker, resource ID: {params['ResourceId']}, "
        f"scalable dimension: {params['ScalableDimension']}"
    )
    return ServiceError("ObjectNotFoundException", text)


def describe(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    wanted = params.get("ResourceIds")
    return {"ScalableTargets": [item for item in context.store.all(KIND) if not wanted or item["ResourceId"] in wanted]}


def deregister(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    """A target goes with its policies and scheduled actions."""
    if not context.store.get(KIND, params["ResourceId"]):
        raise missing(params)
    context.store.delete(KIND, params["ResourceId"])
    for kind in ("scaling-policy", "scheduled-action"):
        for key, item in context.store.items(kind):
            if item["ResourceId"] == params["ResourceId"]:
                context.store.delete(kind, key)
    return {}


def capacity(context: Context, target: dict[str, Any]) -> int | None:
    """How many instances or copies are wanted now; None while the resource cannot be changed, or is gone."""
    place = place_of(target)
    if len(place) == 1:
        component = context.store.get(inference_components.KIND, place[0])
        return component["_wanted"] if component and component["InferenceComponentStatus"] == "InService" else None
    endpoint = context.store.get(endpoints.KIND, place[0])
    if not endpoint or endpoint["EndpointStatus"] != "InService":
        return None
    counts = {item["VariantName"]: item["DesiredInstanceCount"] for item in endpoint["_variants"]}
    return counts.get(place[1])


def set_capacity(context: Context, target: dict[str, Any], count: int) -> None:
    """Do what the service does: call the operation that changes the number."""
    place = place_of(target)
    if len(place) == 1:
        change = {"InferenceComponentName": place[0], "DesiredRuntimeConfig": {"CopyCount": count}}
        inference_components.update_runtime_config(context, change)
        return
    wanted = [{"VariantName": place[1], "DesiredInstanceCount": count}]
    endpoint_updates.update_capacities(context, {"EndpointName": place[0], "DesiredWeightsAndCapacities": wanted})
