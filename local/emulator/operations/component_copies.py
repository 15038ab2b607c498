"""The copies of an inference component: placed on instances, started, followed, replaced by those of a new version."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.operations import endpoints, fleets, placement, replicas

_NO_ROOM = (
    "The instances of variant {variant} do not have the compute resources for {count} more copies of inference component "
    "{name}. Add instances, or lower its ComputeResourceRequirements."
)


def advance(context: Context, document: dict[str, Any]) -> None:
    """The next step of a component, from what its copies and the instances are now. Changes the document."""
    name, endpoint_name = document["InferenceComponentName"], document["EndpointName"]
    document["_retiring"] = [
        item for item in document["_retiring"] if not replicas.has_gone(context, endpoint_name, item)
    ]
    if document["InferenceComponentStatus"] in ("Deleting", "Failed"):
        fleets.retire(context, document, document["_copies"])
        document["_copies"] = []
        return
    document["_copies"] = [
        replicas.follow(context, served(context, document), item, replace=True) for item in document["_copies"]
    ]
    endpoint = context.store.get(endpoints.KIND, endpoint_name)
    if endpoint is None:
        document["InferenceComponentStatus"] = "Deleting"
        return
    if "_next" in document:
        _replace_version(context, document, dict(document["_next"]))
    else:
        missing = _fill(context, document, endpoint)
        _settle(
            document, _NO_ROOM.format(variant=document["VariantName"], count=missing, name=name) if missing else None
        )


def served(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """A component as replicas.start wants it."""
    name, startup = document["InferenceComponentName"], document["_specification"].get("StartupParameters", {})
    return {
        "endpoint": document["EndpointName"],
        "variant": document["VariantName"],
        "containers": document["_containers"],
        "startup": startup.get("ContainerStartupHealthCheckTimeoutInSeconds", context.limits.startup_seconds),
        "described": f"inference component {name}",
        "log_group": f"/aws/sagemaker/InferenceComponents/{name}",
        "dimensions": [{"Name": "InferenceComponentName", "Value": name}],
    }


def _fill(context: Context, document: dict[str, Any], endpoint: dict[str, Any]) -> int:
    """Bring the number of copies to what is wanted; returns how many find no place."""
    _move_from_lost_instances(context, document, endpoint)
    surplus = document["_copies"][document["_wanted"] :]
    fleets.retire(context, document, surplus)
    document["_copies"] = document["_copies"][: document["_wanted"]]
    while len(document["_copies"]) < document["_wanted"]:
        context.store.put(placement.KIND, document["InferenceComponentName"], document)  # what has a place takes room
        instance, endpoint = _place(context, document, endpoint)
        if instance is None:
            return int(document["_wanted"] - len(document["_copies"]))
        copy = replicas.start(context, served(context, document)) | {"instance": instance}
        document["_copies"] = [*document["_copies"], copy]
    return 0


def _place(context: Context, document: dict[str, Any], endpoint: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """(instance for one more copy, the endpoint, which may have got an instance for it)."""
    variant = next(item for item in endpoint["_variants"] if item["VariantName"] == document["VariantName"])
    specification = document["_specification"]
    strategy = specification.get("SchedulingConfig", {}).get("PlacementStrategy", "SPREAD")
    held = [item["instance"] for item in document["_copies"]]
    wanted = placement.needs(specification)
    found = placement.choose(placement.room(context, endpoint, variant), wanted, held, strategy)
    if found is None and (grown := placement.grow(context, endpoint, variant)):
        variant = next(item for item in grown["_variants"] if item["VariantName"] == document["VariantName"])
        return placement.choose(placement.room(context, grown, variant), wanted, held, strategy), grown
    return found, endpoint


def _move_from_lost_instances(context: Context, document: dict[str, Any], endpoint: dict[str, Any]) -> None:
    """Copies whose instance has gone (fewer instances, another configuration) move to one with room, or end."""
    living = {item["id"] for item in endpoint["_replicas"]}
    for copy in [item for item in document["_copies"] if item["instance"] not in living]:
        document["_copies"] = [item for item in document["_copies"] if item is not copy]
        context.store.put(placement.KIND, document["InferenceComponentName"], document)
        instance, _ = _place(context, document, endpoint)
        if instance is None:
            fleets.retire(context, document, [copy])
        else:
            document["_copies"] = [*document["_copies"], dict(copy, instance=instance)]


def _settle(document: dict[str, Any], problem: str | None) -> None:
    """The status that follows from the copies; `problem`: why there are fewer than wanted."""
    reason = fleets.first_failure(document["_copies"])
    if document["InferenceComponentStatus"] == "Creating" and (reason is not None or problem):
        document |= {"InferenceComponentStatus": "Failed", "FailureReason": reason if reason is not None else problem}
        return
    if reason is not None or problem:
        document["FailureReason"] = reason if reason is not None else problem
    is_new = document["InferenceComponentStatus"] != "InService"
    if is_new and reason is None and fleets.all_serve(document["_copies"]):
        document["InferenceComponentStatus"] = "InService"
        if not problem:
            document.pop("FailureReason", None)


def _replace_version(context: Context, document: dict[str, Any], green: dict[str, Any]) -> None:
    """UpdateInferenceComponent: the new version's copies take over when all are healthy, or are dropped."""
    as_new = document | green
    if "_copies" not in green:
        homes = [item["instance"] for item in document["_copies"]]
        homes += homes[-1:] * (document["_wanted"] - len(homes))
        green["_copies"] = [
            replicas.start(context, served(context, as_new)) | {"instance": home}
            for home in homes[: document["_wanted"]]
        ]
    green["_copies"] = [
        replicas.follow(context, served(context, as_new), item, replace=True) for item in green["_copies"]
    ]
    document["_next"] = green
    reason = fleets.first_failure(green["_copies"])
    if reason is not None:
        fleets.retire(context, document, green["_copies"])
        document |= {"InferenceComponentStatus": "InService", "FailureReason": reason}
        document.pop("_next")
    elif fleets.all_serve(green["_copies"]):
        fleets.retire(context, document, document["_copies"])
        document |= green | {"InferenceComponentStatus": "InService"}
        document.pop("_next")
