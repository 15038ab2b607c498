"""UpdateEndpoint and UpdateEndpointWeightsAndCapacities."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import validation
from llmtuner_local.emulator.operations import deployments, endpoint_configs, endpoints, fleets, replicas

_RETAINED = ("DesiredWeight", "DesiredInstanceCount")


def update(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    """UpdateEndpoint: a new fleet beside the old one, which serves until the new one has taken over."""
    document = dict(endpoints.changeable(context, params["EndpointName"]))
    config = endpoint_configs.require(context, params["EndpointConfigName"])
    policy = params.get("DeploymentConfig")
    if policy is None and params.get("RetainDeploymentConfig"):
        policy = document.get("LastDeploymentConfig")
    policy = policy or deployments.ALL_AT_ONCE
    deployments.check(policy)
    variants = fleets.variants_of(context, config)
    settings = endpoint_configs.settings_of(config)
    if params.get("RetainAllVariantProperties"):
        excluded = {item["VariantPropertyType"] for item in params.get("ExcludeRetainedVariantProperties", [])}
        _retain(document, variants, settings, excluded)
    green = {
        "config": params["EndpointConfigName"],
        "variants": variants,
        "shadows": fleets.variants_of(context, config, "ShadowProductionVariants"),
        "settings": settings,
    }
    deployments.begin(context, document, green, policy)
    document["LastDeploymentConfig"] = policy
    context.store.put(endpoints.KIND, document["EndpointName"], document)
    return {"EndpointArn": document["EndpointArn"]}


def _retain(
    document: dict[str, Any], variants: list[fleets.Variant], settings: dict[str, Any], excluded: set[str]
) -> None:
    """Keep what the endpoint's variants have now, whatever the new configuration says."""
    old = {item["VariantName"]: item for item in document["_variants"]}
    for variant in variants:
        kept = old.get(variant["VariantName"], {})
        variant |= {name: kept[name] for name in _RETAINED if name in kept and name not in excluded}
    if "DataCaptureConfig" in document["_settings"] and "DataCaptureConfig" not in excluded:
        settings["DataCaptureConfig"] = document["_settings"]["DataCaptureConfig"]


def update_capacities(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    """UpdateEndpointWeightsAndCapacities: weights at once, instances as they start and stop."""
    document = endpoints.changeable(context, params["EndpointName"])
    wanted = params["DesiredWeightsAndCapacities"]
    _check_names(document, [item["VariantName"] for item in wanted])
    by_name = {item["VariantName"]: item for item in wanted}
    changed = dict(document, EndpointStatus="Updating", LastModifiedTime=context.now())
    changed["_variants"] = [
        _resized(document, item, by_name.get(item["VariantName"], {})) for item in document["_variants"]
    ]
    changed["_replicas"] = list(document["_replicas"])
    for variant in changed["_variants"]:
        resize(context, changed, variant)
    context.store.put(endpoints.KIND, document["EndpointName"], changed)
    return {"EndpointArn": document["EndpointArn"]}


def _check_names(document: dict[str, Any], names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise validation(f'The variant name "{name}" was non-unique within the request.')
    known = {item["VariantName"] for item in document["_variants"]}
    missing = [name for name in names if name not in known]
    if missing:
        listed = ", ".join(f'"{name}"' for name in missing)
        config = document["EndpointConfigName"]
        raise validation(f'The variant name(s) {listed} is/are not present within endpoint configuration "{config}".')


def _resized(document: dict[str, Any], variant: fleets.Variant, change: dict[str, Any]) -> fleets.Variant:
    count = change.get("DesiredInstanceCount")
    if count is not None and "_serverless" in variant:
        raise validation(f'The variant "{variant["VariantName"]}" is serverless; it has no instance count.')
    if count == 0 and not may_be_empty(document, variant):
        raise validation(
            f'DesiredInstanceCount of variant "{variant["VariantName"]}" must be at least 1; 0 is for asynchronous '
            "endpoints and for inference components with ManagedInstanceScaling."
        )
    return variant | {name: change[name] for name in _RETAINED if name in change}


def may_be_empty(document: dict[str, Any], variant: fleets.Variant) -> bool:
    """Whether a variant may have no instance at all."""
    lowest = variant.get("ManagedInstanceScaling", {}).get("MinInstanceCount", 1)
    return "AsyncInferenceConfig" in document["_settings"] or (not variant["_containers"] and lowest == 0)


def resize(context: Context, document: dict[str, Any], variant: fleets.Variant) -> None:
    """Start or retire instances of a variant until there are as many as it wants. Changes the document."""
    mine = fleets.of_variant(document["_replicas"], variant["VariantName"])
    surplus = mine[variant["DesiredInstanceCount"] :]
    fleets.retire(context, document, surplus)
    kept = [item for item in document["_replicas"] if item not in surplus]
    served = fleets.served(document["EndpointName"], variant)
    started = [replicas.start(context, served) for _ in range(variant["DesiredInstanceCount"] - len(mine))]
    document["_replicas"] = [*kept, *started]
