"""Models: an image, its environment and where the weights are."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import validation
from llmtuner_local.emulator.operations import jobs
from llmtuner_local.emulator.operations.records import RecordKind
from llmtuner_local.emulator.shim import cloud

KIND = "model"
MODELS = RecordKind(KIND, "model", "Model", "Models")
require, describe, list_models, delete = MODELS.require, MODELS.describe, MODELS.list, MODELS.delete
_COPIED = ("PrimaryContainer", "Containers", "InferenceExecutionConfig", "ExecutionRoleArn", "VpcConfig")


def create(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    MODELS.must_not_exist(context, params["ModelName"])
    if ("PrimaryContainer" in params) == ("Containers" in params):
        raise validation("You must specify either PrimaryContainer or Containers, and not both.")
    _check_containers(context, params)
    document = {
        "EnableNetworkIsolation": params.get("EnableNetworkIsolation", False),
        **{member: params[member] for member in _COPIED if member in params},
    }
    return MODELS.put(context, params, document)


def containers_of(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The container definitions of a model, one or more."""
    return [model["PrimaryContainer"]] if "PrimaryContainer" in model else model["Containers"]


def name_of(model: dict[str, Any], number: int) -> str:
    """How AWS's messages call a container: a single one is `primary`, others go by their host name."""
    found = containers_of(model)
    if len(found) == 1:
        return "primary"
    return found[number].get("ContainerHostname") or f"container-{number + 1}"


def sources(container: dict[str, Any]) -> list[dict[str, str]]:
    """What a container needs from S3: `uri`, `kind` (archive, object, prefix) and `folder` below /opt/ml."""
    found = []
    if uri := container.get("ModelDataUrl"):
        found.append({"uri": uri, "kind": "archive", "folder": "model"})
    if source := container.get("ModelDataSource", {}).get("S3DataSource"):
        found.append(_source(source, "model"))
    for item in container.get("AdditionalModelDataSources", []):
        found.append(_source(item["S3DataSource"], f"additional-model-data-sources/{item['ChannelName']}"))
    return found


def _source(source: dict[str, Any], folder: str) -> dict[str, str]:
    kind = "archive" if source["CompressionType"] == "Gzip" else "object"
    if source["S3DataType"] == "S3Prefix":
        kind = "prefix"
    return {"uri": source["S3Uri"], "kind": kind, "folder": folder}


def _check_containers(context: Context, params: dict[str, Any]) -> None:
    containers = containers_of(params)
    names = [name_of(params, number) for number in range(len(containers))]
    if len(set(names)) != len(names):
        raise validation("Container host names must be unique within a model.")
    if params.get("InferenceExecutionConfig", {}).get("Mode") == "Direct" and not all(
        "ContainerHostname" in item for item in containers
    ):
        raise validation(
            "ContainerHostname is required for every container of a model with InferenceExecutionConfig Direct."
        )
    for container in containers:
        if container.get("Mode") == "MultiModel":
            raise validation(
                "Containers in Mode MultiModel exist on AWS; the local SageMaker emulator does not have them."
            )
        if "Image" not in container:
            raise validation("Image is required for a container; model packages are not emulated.")
        _check_data(context, container, params.get("ExecutionRoleArn", ""))


def _check_data(context: Context, container: dict[str, Any], role: str) -> None:
    if "ModelDataUrl" in container and "ModelDataSource" in container:
        raise validation("You cannot specify both ModelDataUrl and ModelDataSource.")
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    if source.get("S3DataType") == "S3Prefix":
        if source["CompressionType"] == "Gzip":
            raise validation("CompressionType Gzip needs S3DataType S3Object: one archive.")
        if not source["S3Uri"].endswith("/"):
            raise validation(f"S3Uri {source['S3Uri']} must end with a forward slash (/) when S3DataType is S3Prefix.")
    for item in sources(container):
        check_access(context, item["uri"], item["kind"], role)


def _is_there(context: Context, uri: str, kind: str) -> bool:
    bucket, key = cloud.split_uri(uri)
    client = context.s3
    try:
        if kind == "prefix":
            return bool(client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("KeyCount"))
        client.head_object(Bucket=bucket, Key=key)
    except client.exceptions.ClientError:
        return False
    return True


def check_access(context: Context, uri: str, kind: str, role: str) -> None:
    """Refuse model data that is not there, or that a role which cannot be assumed would fetch, in AWS's words."""
    if _is_there(context, uri, kind) and (not role or jobs.can_assume(context, role)):
        return
    raise validation(
        f'Could not access model data at {uri}. Please ensure that the role "{role}" exists and that its trust '
        'relationship policy allows the action "sts:AssumeRole" for the service principal "sagemaker.amazonaws.com". '
        f'Also ensure that the role has "s3:GetObject" permissions and that the object is located in {context.region}. '
        'If your Model uses multiple models or uncompressed models, please ensure that the role has "s3:ListBucket" '
        "permission."
    )
