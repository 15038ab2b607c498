"""Fleets: the variants of one endpoint configuration and the replicas that serve them."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.operations import models, replicas

Variant = dict[str, Any]
_SHOWN = ("ManagedInstanceScaling", "RoutingConfig")


def variants_of(context: Context, config: dict[str, Any], member: str = "ProductionVariants") -> list[Variant]:
    """What an endpoint remembers of the variants of a configuration, models included: both may be deleted."""
    return [_variant(context, item) for item in config.get(member, [])]


def _variant(context: Context, given: dict[str, Any]) -> Variant:
    model = models.require(context, given["ModelName"]) if "ModelName" in given else None
    variant = {
        "VariantName": given["VariantName"],
        "DesiredWeight": given["InitialVariantWeight"],
        "DesiredInstanceCount": given.get("InitialInstanceCount", 1),
        **{name: given[name] for name in _SHOWN if name in given},
        "_instance_type": given.get("InstanceType", ""),
        "_startup": given.get("ContainerStartupHealthCheckTimeoutInSeconds", context.limits.startup_seconds),
        "_containers": replicas.served_containers(model) if model else [],
        "_execution": (model or {}).get("InferenceExecutionConfig", {}).get("Mode", "Serial"),
    }
    if "ServerlessConfig" in given:
        variant["_serverless"] = given["ServerlessConfig"]
    return variant


def served(endpoint: str, variant: Variant) -> dict[str, Any]:
    """A variant as replicas.start wants it."""
    name = variant["VariantName"]
    return {
        "endpoint": endpoint,
        "variant": name,
        "containers": variant["_containers"],
        "startup": variant["_startup"],
        "described": f"production variant {name}",
        "log_group": f"/aws/sagemaker/Endpoints/{endpoint}",
        "dimensions": [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": name}],
    }


def start(context: Context, endpoint: str, variants: list[Variant]) -> list[replicas.Replica]:
    """Start as many replicas of each variant as it wants."""
    return [
        replicas.start(context, served(endpoint, variant))
        for variant in variants
        for _ in range(variant["DesiredInstanceCount"])
    ]


def follow(
    context: Context, endpoint: str, variants: list[Variant], found: list[replicas.Replica], *, replace: bool
) -> list[replicas.Replica]:
    """The replicas of a fleet as they are now."""
    by_name = {item["VariantName"]: item for item in variants}
    return [
        replicas.follow(context, served(endpoint, by_name[item["variant"]]), item, replace=replace) for item in found
    ]


def retire(context: Context, document: dict[str, Any], found: list[replicas.Replica]) -> None:
    """Give up replicas of an endpoint or a component; they stay on its list until they are gone."""
    retired = replicas.retired(context, document["EndpointName"], found)
    document["_retiring"] = [*document.get("_retiring", []), *retired]


def first_failure(found: list[replicas.Replica]) -> str | None:
    """Why the first failed replica failed; None when none has."""
    return next((item.get("reason", "") for item in found if item["state"] == "Failed"), None)


def all_serve(found: list[replicas.Replica]) -> bool:
    return all(item["state"] == "InService" for item in found)


def of_variant(found: list[replicas.Replica], name: str) -> list[replicas.Replica]:
    return [item for item in found if item["variant"] == name]


def summary(variant: Variant, found: list[replicas.Replica], since: float, statuses: list[str]) -> dict[str, Any]:
    """A variant as DescribeEndpoint shows it.

    Args:
        since: when its images were resolved and its statuses began, epoch seconds.
        statuses: VariantStatus values while something changes.
    """
    serving = [item for item in of_variant(found, variant["VariantName"]) if item["state"] == "InService"]
    answer = {
        "VariantName": variant["VariantName"],
        "CurrentWeight": variant["DesiredWeight"],
        "DesiredWeight": variant["DesiredWeight"],
        "CurrentInstanceCount": len(serving),
        "DesiredInstanceCount": variant["DesiredInstanceCount"],
        **{name: variant[name] for name in _SHOWN if name in variant},
    }
    images = [item["definition"]["Image"] for item in variant["_containers"]]
    if images:
        answer["DeployedImages"] = [
            {"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": since} for image in images
        ]
    if "_serverless" in variant:
        answer |= {"CurrentServerlessConfig": variant["_serverless"], "DesiredServerlessConfig": variant["_serverless"]}
        del answer["CurrentInstanceCount"], answer["DesiredInstanceCount"]
    if statuses:
        answer["VariantStatus"] = [{"Status": status, "StartTime": since} for status in statuses]
    return answer
