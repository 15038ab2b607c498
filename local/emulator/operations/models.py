"""Models: an image, its environment and where the weights are."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import not_found, validation
from llmtuner_local.emulator.operations import listing, tags
from llmtuner_local.emulator.shim import cloud

KIND = "model"
_COPIED = ("PrimaryContainer", "Containers", "InferenceExecutionConfig", "ExecutionRoleArn", "VpcConfig")


def create(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    name = params["ModelName"]
    arn = context.arn(KIND, name)
    if context.store.get(KIND, name):
        raise validation(f'Cannot create already existing model "{arn}".')
    if ("PrimaryContainer" in params) == ("Containers" in params):
        raise validation("You must specify either PrimaryContainer or Containers, and not both.")
    for container in containers_of(params):
        _check_data(context, container, params.get("ExecutionRoleArn", ""))
    document = {
        "ModelName": name,
        "ModelArn": arn,
        "CreationTime": context.now(),
        "EnableNetworkIsolation": params.get("EnableNetworkIsolation", False),
        **{member: params[member] for member in _COPIED if member in params},
    }
    context.store.put(KIND, name, document)
    tags.put(context, arn, params.get("Tags", []))
    return {"ModelArn": arn}


def containers_of(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The container definitions of a model, one or more."""
    return [model["PrimaryContainer"]] if "PrimaryContainer" in model else model["Containers"]


def data_uri(container: dict[str, Any]) -> tuple[str, str]:
    """Where a container's model data is: (archive URI, prefix URI), at most one of them not empty."""
    if uri := container.get("ModelDataUrl"):
        return uri, ""
    source = container.get("ModelDataSource", {}).get("S3DataSource")
    if not source:
        return "", ""
    if source.get("CompressionType") == "Gzip":
        return source["S3Uri"], ""
    return "", source["S3Uri"]


def _check_data(context: Context, container: dict[str, Any], role: str) -> None:
    archive, prefix = data_uri(container)
    uri = archive or prefix
    if not uri:
        return
    if "ModelDataUrl" in container and "ModelDataSource" in container:
        raise validation("You cannot specify both ModelDataUrl and ModelDataSource.")
    bucket, key = cloud.split_uri(uri)
    client = context.s3
    try:
        if archive:
            client.head_object(Bucket=bucket, Key=key)
            return
        if client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("KeyCount"):
            return
    except client.exceptions.ClientError:
        pass
    raise validation(
        f'Could not access model data at {uri}. Please ensure that the role "{role}" exists and that its trust '
        'relationship policy allows the action "sts:AssumeRole" for the service principal "sagemaker.amazonaws.com". '
        f'Also ensure that the role has "s3:GetObject" permissions and that the object is located in {context.region}. '
        'If your Model uses multiple models or uncompressed models, please ensure that the role has "s3:ListBucket" '
        "permission."
    )


def require(context: Context, name: str) -> dict[str, Any]:
    """A model by name; AWS names it by its ARN when it is missing."""
    document = context.store.get(KIND, name)
    if document is None:
        raise not_found(f'Could not find model "{context.arn(KIND, name)}".')
    return document


def describe(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    return require(context, params["ModelName"])


def list_models(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    summary = listing.pick("ModelName", "ModelArn", "CreationTime")
    return listing.page(context.store.all(KIND), params, name="ModelName", output="Models", summary=summary)


def delete(context: Context, params: dict[str, Any]) -> dict[str, Any] | None:
    document = require(context, params["ModelName"])
    context.store.delete(KIND, params["ModelName"])
    tags.drop(context, document["ModelArn"])
    return None
