"""Inference components: models with compute needs of their own, copies of which share an endpoint's instances.

A component with BaseInferenceComponentName is a LoRA adapter: `adapters` loads it into the copies of its base.
"""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context, engine
from llmtuner_local.emulator.errors import not_found, validation
from llmtuner_local.emulator.operations import component_copies, endpoints, listing, models, placement, replicas, tags

KIND = endpoints.COMPONENT_KIND


def create(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    name = params["InferenceComponentName"]
    arn = context.arn(KIND, name)
    if context.store.get(KIND, name):
        raise validation(f'Cannot create already existing inference component "{arn}".')
    endpoint = endpoints.require(context, params["EndpointName"])
    if endpoint["EndpointStatus"] not in endpoints.SERVING:
        raise validation(
            f'Endpoint "{endpoint["EndpointArn"]}" is in status {endpoint["EndpointStatus"]}; inference components can be '
            "created on endpoints in service."
        )
    if any(item["_containers"] for item in endpoint["_variants"]):
        raise validation(
            f'Endpoint "{endpoint["EndpointArn"]}" has variants with a ModelName; inference components need variants '
            "without one."
        )
    specification = params.get("Specification")
    if specification is None:
        raise validation("Specification is required for an inference component; Specifications is not emulated.")
    now = context.now()
    document = {
        "InferenceComponentName": name,
        "InferenceComponentArn": arn,
        "EndpointName": endpoint["EndpointName"],
        "EndpointArn": endpoint["EndpointArn"],
        "InferenceComponentStatus": "Creating",
        "CreationTime": now,
        "LastModifiedTime": now,
        "_specification": specification,
        "_copies": [],
        "_retiring": [],
    }
    if base := specification.get("BaseInferenceComponentName"):
        document |= _adapter_of(context, params, base)
    else:
        document |= _own_model(context, params, endpoint)
    context.store.put(KIND, name, document)
    tags.put(context, arn, params.get("Tags", []))
    refresh(context, document)
    return {"InferenceComponentArn": arn}


def _own_model(context: Context, params: dict[str, Any], endpoint: dict[str, Any]) -> dict[str, Any]:
    variant = params.get("VariantName")
    if variant is None:
        raise validation("VariantName is required for an inference component without BaseInferenceComponentName.")
    if variant not in {item["VariantName"] for item in endpoint["_variants"]}:
        raise validation(f'Variant "{variant}" is not present in endpoint "{endpoint["EndpointArn"]}".')
    if "RuntimeConfig" not in params:
        raise validation("RuntimeConfig is required for an inference component without BaseInferenceComponentName.")
    if not params["RuntimeConfig"]["CopyCount"]:  # none are left by scaling later on
        raise validation("The copy count of an inference component that is created must be an integer larger than 0.")
    return {
        "VariantName": variant,
        "_wanted": params["RuntimeConfig"]["CopyCount"],
        "_containers": _containers(context, params["Specification"]),
    }


def _containers(context: Context, specification: dict[str, Any]) -> list[dict[str, Any]]:
    """What a copy runs: a model's container, or the one of the specification itself."""
    if ("ModelName" in specification) == ("Container" in specification):
        raise validation("Specify either a ModelName or a Container for an inference component, and not both.")
    if "ComputeResourceRequirements" not in specification:
        raise validation("ComputeResourceRequirements is required for an inference component with a model of its own.")
    if "ModelName" in specification:
        return replicas.served_containers(models.require(context, specification["ModelName"]))
    given = specification["Container"]
    if "Image" not in given:
        raise validation("Container.Image is required for an inference component without BaseInferenceComponentName.")
    definition = {"Image": given["Image"], "Environment": given.get("Environment", {})}
    if uri := given.get("ArtifactUrl"):
        models.check_access(context, uri, "archive", "")
        definition["ModelDataUrl"] = uri
    return [{"name": "primary", "definition": definition, "engine": engine.get()}]


def _adapter_of(context: Context, params: dict[str, Any], base: str) -> dict[str, Any]:
    found = require(context, base)
    uri = params["Specification"].get("Container", {}).get("ArtifactUrl")
    if found["EndpointName"] != params["EndpointName"] or "_base" in found:
        raise validation(f'"{base}" is not a base inference component on endpoint "{params["EndpointName"]}".')
    if found["InferenceComponentStatus"] != "InService":
        raise validation(f'Base inference component "{base}" is in status {found["InferenceComponentStatus"]}.')
    if not uri or "ComputeResourceRequirements" in params["Specification"] or "VariantName" in params:
        raise validation(
            "An adapter inference component needs Container.ArtifactUrl, and inherits VariantName and "
            "ComputeResourceRequirements from its base."
        )
    models.check_access(context, uri, "archive", "")
    return {"VariantName": found["VariantName"], "_base": base, "_wanted": 1, "_containers": [], "_loaded": {}}


def refresh(context: Context, document: dict[str, Any]) -> dict[str, Any] | None:
    """Bring a component up to date; None when its deletion has ended. Adapters are kept by `adapters`."""
    changed = dict(document)
    if "_base" not in document:
        component_copies.advance(context, changed)
    if document["InferenceComponentStatus"] == "Deleting" and not changed["_retiring"] and not changed.get("_loaded"):
        context.store.delete(KIND, document["InferenceComponentName"])
        tags.drop(context, document["InferenceComponentArn"])
        return None
    if changed == document:
        return document
    if changed["InferenceComponentStatus"] != document["InferenceComponentStatus"]:
        changed["LastModifiedTime"] = context.now()
    return context.store.put(KIND, document["InferenceComponentName"], changed)


def require(context: Context, name: str) -> dict[str, Any]:
    """A living component by name; AWS names it by its ARN when it is missing."""
    document = context.store.get(KIND, name)
    found = refresh(context, document) if document else None
    if found is None:
        raise not_found(f'Could not find inference component "{context.arn(KIND, name)}".')
    return found


def _changeable(context: Context, name: str) -> dict[str, Any]:
    document = require(context, name)
    if document["InferenceComponentStatus"] in ("Creating", "Updating", "Deleting"):
        raise validation(f'Cannot update in-progress inference component "{document["InferenceComponentArn"]}".')
    return document


def describe(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    document = require(context, params["InferenceComponentName"])
    answer = {key: value for key, value in document.items() if not key.startswith("_")}
    specification = dict(document["_specification"])
    if given := specification.get("Container"):
        image = given.get("Image")
        resolved = {"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": document["CreationTime"]}
        specification["Container"] = dict(given) | ({"DeployedImage": resolved} if image else {})
    serving = sum(item["state"] == "InService" for item in document["_copies"]) or len(document.get("_loaded", {}))
    counts = {"DesiredCopyCount": document["_wanted"], "CurrentCopyCount": min(serving, max(1, document["_wanted"]))}
    if "_base" not in document:
        counts["CurrentCopyCount"] = serving
    return answer | {"Specification": specification, "RuntimeConfig": counts}


def list_components(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    found = [item for item in (refresh(context, item) for item in context.store.all(KIND)) if item]
    for member in ("EndpointName", "VariantName"):
        wanted = params.get(f"{member}Equals")
        found = [item for item in found if wanted in (None, item[member])]
    names = ("CreationTime", "InferenceComponentArn", "InferenceComponentName", "EndpointArn", "EndpointName")
    summary = listing.pick(*names, "VariantName", "InferenceComponentStatus", "LastModifiedTime")
    return listing.page(
        found,
        params,
        name="InferenceComponentName",
        output="InferenceComponents",
        summary=summary,
        status="InferenceComponentStatus",
    )


def update(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    """UpdateInferenceComponent: copies of the new version beside the old ones, which serve until those are healthy."""
    document = dict(_changeable(context, params["InferenceComponentName"]))
    if "_base" in document:
        raise validation("An adapter inference component cannot be updated; delete it and create it again.")
    if specification := params.get("Specification"):
        document["_next"] = {"_specification": specification, "_containers": _containers(context, specification)}
        if "DeploymentConfig" in params:
            document["LastDeploymentConfig"] = params["DeploymentConfig"]
    if "RuntimeConfig" in params:
        document["_wanted"] = params["RuntimeConfig"]["CopyCount"]
    return _updating(context, document)


def update_runtime_config(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    document = dict(_changeable(context, params["InferenceComponentName"]))
    if "_base" in document:
        raise validation("The copies of an adapter inference component are those of its base.")
    document["_wanted"] = params["DesiredRuntimeConfig"]["CopyCount"]
    return _updating(context, document)


def _updating(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    document |= {"InferenceComponentStatus": "Updating", "LastModifiedTime": context.now()}
    document.pop("FailureReason", None)
    refresh(context, context.store.put(KIND, document["InferenceComponentName"], document))
    return {"InferenceComponentArn": document["InferenceComponentArn"]}


def delete(context: Context, params: dict[str, Any]) -> dict[str, Any] | None:
    document = dict(require(context, params["InferenceComponentName"]))
    if document["InferenceComponentStatus"] == "Deleting":
        return None
    name = document["InferenceComponentName"]
    adapters = [item for item in context.store.all(KIND) if item.get("_base") == name]
    if adapters:
        raise validation(
            f'Inference component "{name}" is the base of {", ".join(item["InferenceComponentName"] for item in adapters)}; '
            "delete those first."
        )
    document |= {"InferenceComponentStatus": "Deleting", "LastModifiedTime": context.now(), "_wanted": 0}
    context.store.put(KIND, name, document)
    refresh(context, document)
    return None


def give_back_instances(context: Context) -> None:
    """Instances that no copy needs any longer go, where ManagedInstanceScaling allows it."""
    for endpoint in context.store.all(endpoints.KIND):
        if endpoints.is_for_components(endpoint):
            placement.shrink(context, endpoint)
