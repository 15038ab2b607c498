"""Endpoints: their creation and deletion, and the states that DescribeEndpoint shows."""

from __future__ import annotations

import shutil
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import not_found, validation
from llmtuner_local.emulator.operations import deployments, endpoint_configs, fleets, listing, replicas, tags

KIND = "endpoint"
COMPONENT_KIND = "inference-component"
BUSY = {"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"}
SERVING = {"InService", "Updating", "RollingBack", "UpdateRollbackFailed"}
_REPLACING = {"Creating", "InService", "Updating", "RollingBack", "UpdateRollbackFailed"}


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
        "_changed": now,
        "_settings": endpoint_configs.settings_of(config),
        "_variants": fleets.variants_of(context, config),
        "_shadows": fleets.variants_of(context, config, "ShadowProductionVariants"),
        "_replicas": [],
    }
    context.store.put(KIND, name, document)
    tags.put(context, arn, params.get("Tags", []))
    shutil.rmtree(context.endpoint_folder(name), ignore_errors=True)
    started = fleets.start(context, name, all_variants(document))
    context.store.put(KIND, name, dict(document, _replicas=started))
    return {"EndpointArn": arn}


def all_variants(document: dict[str, Any]) -> list[fleets.Variant]:
    """Production and shadow variants of what serves now."""
    return [*document["_variants"], *document["_shadows"]]


def is_for_components(document: dict[str, Any]) -> bool:
    """Whether an endpoint's variants have no model of their own: inference components bring the models."""
    return not any(item["_containers"] for item in document["_variants"])


def refresh(context: Context, document: dict[str, Any]) -> dict[str, Any] | None:
    """Bring an endpoint up to what its supervisors have written since; None when its deletion has ended."""
    if document["EndpointStatus"] == "Deleting":
        return _finish_deletion(context, document)
    if document["EndpointStatus"] == "InService" and context.followed.is_fresh(
        KIND, document["EndpointName"], document
    ):
        return document
    name, replace = document["EndpointName"], document["EndpointStatus"] in _REPLACING
    changed = dict(document)
    changed["_replicas"] = fleets.follow(context, name, all_variants(document), document["_replicas"], replace=replace)
    if "_deployment" in document:
        green = document["_deployment"]
        variants = [*green["variants"], *green["shadows"]]
        found = fleets.follow(context, name, variants, green["replicas"], replace=replace)
        changed["_deployment"] = dict(green, replicas=found)
    retiring = document.get("_retiring", [])
    changed["_retiring"] = [item for item in retiring if not replicas.has_gone(context, name, item)]
    _advance(context, changed)
    if changed == document:
        context.followed.looked(KIND, name, document)
        return document
    if changed["EndpointStatus"] != document["EndpointStatus"]:
        changed["LastModifiedTime"] = context.now()
    return context.store.put(KIND, name, changed)


def _advance(context: Context, document: dict[str, Any]) -> None:
    """The next state, from what the replicas are now."""
    found = document["_replicas"]
    reason = fleets.first_failure(found)
    if "_deployment" in document:
        deployments.advance(context, document)
    elif document["EndpointStatus"] == "Creating":
        if reason is not None:
            document |= {"EndpointStatus": "Failed", "FailureReason": reason}
            fleets.retire(context, document, found)
        elif fleets.all_serve(found):
            document["EndpointStatus"] = "InService"
    elif document["EndpointStatus"] == "Updating":
        # More or fewer instances: those that cannot start are given up, the others go on serving.
        if reason is not None:
            failed = [item for item in found if item["state"] == "Failed"]
            document["FailureReason"] = reason
            fleets.retire(context, document, failed)
            document["_replicas"] = [item for item in found if item not in failed]
        if fleets.all_serve(document["_replicas"]):
            document["EndpointStatus"] = "InService"


def _finish_deletion(context: Context, document: dict[str, Any]) -> dict[str, Any] | None:
    name = document["EndpointName"]
    everyone = [*document["_replicas"], *document.get("_retiring", [])]
    if not all(replicas.has_gone(context, name, item) for item in everyone):
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


def changeable(context: Context, name: str) -> dict[str, Any]:
    """An endpoint that may be updated now."""
    document = require(context, name)
    if document["EndpointStatus"] in BUSY:
        raise validation(f'Cannot update in-progress endpoint "{document["EndpointArn"]}".')
    if document["EndpointStatus"] == "Failed":
        raise validation(f'Cannot update endpoint "{document["EndpointArn"]}" in status Failed; delete it instead.')
    return document


def describe(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    document = require(context, params["EndpointName"])
    answer = {key: value for key, value in document.items() if not key.startswith("_")} | document["_settings"]
    statuses = deployments.variant_statuses(document)
    if document["EndpointStatus"] != "Creating":
        for member, variants in (("ProductionVariants", "_variants"), ("ShadowProductionVariants", "_shadows")):
            answer[member] = [
                fleets.summary(item, document["_replicas"], document["_changed"], statuses)
                for item in document[variants]
            ] or None
    if pending := _pending(document, statuses):
        answer["PendingDeploymentSummary"] = pending
    return answer


def _pending(document: dict[str, Any], statuses: list[str]) -> dict[str, Any] | None:
    """PendingDeploymentSummary: the new fleet while an endpoint is created, or updated to another configuration."""
    if document["EndpointStatus"] == "Creating":
        config, started, found = document["EndpointConfigName"], document["CreationTime"], document["_replicas"]
        groups = (("ProductionVariants", document["_variants"]), ("ShadowProductionVariants", document["_shadows"]))
    elif document["EndpointStatus"] == "Updating" and "_deployment" in document:
        green = document["_deployment"]
        config, started, found = green["config"], green["started"], green["replicas"]
        groups = (("ProductionVariants", green["variants"]), ("ShadowProductionVariants", green["shadows"]))
    else:
        return None
    summaries: dict[str, Any] = {
        member: [fleets.summary(item, found, started, statuses) for item in variants] or None
        for member, variants in groups
    }
    return {"EndpointConfigName": config, "StartTime": started, **summaries}


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
    held = [
        item["InferenceComponentName"] for item in context.store.all(COMPONENT_KIND) if item["EndpointName"] == name
    ]
    if held:
        raise validation(
            f'Cannot delete endpoint "{document["EndpointArn"]}" while it has inference components: {", ".join(held)}.'
        )
    context.store.put(KIND, name, dict(document, EndpointStatus="Deleting", LastModifiedTime=context.now()))
    replicas.stop(context, name, document["_replicas"])
    return None
