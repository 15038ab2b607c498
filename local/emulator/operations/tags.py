"""Tags, kept beside the resources by ARN."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import validation

KIND = "tags"
LIMIT = 50


def put(context: Context, arn: str, tags: list[dict[str, str]]) -> list[dict[str, str]]:
    """Add tags to what an ARN has; returns all of them."""
    known = dict((context.store.get(KIND, arn) or {}).get("tags", {}))
    known |= {item["Key"]: item["Value"] for item in tags}
    if len(known) > LIMIT:
        raise validation(f"The number of tags for {arn} would be {len(known)}; the limit is {LIMIT}.")
    if known:
        context.store.put(KIND, arn, {"tags": known})
    return _pairs(known)


def of(context: Context, arn: str) -> list[dict[str, str]]:
    """The tags of an ARN."""
    return _pairs((context.store.get(KIND, arn) or {}).get("tags", {}))


def drop(context: Context, arn: str) -> None:
    """Forget the tags of a deleted resource."""
    context.store.delete(KIND, arn)


def _pairs(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def add(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    _require(context, params["ResourceArn"])
    return {"Tags": put(context, params["ResourceArn"], params["Tags"])}


def list_tags(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    _require(context, params["ResourceArn"])
    return {"Tags": of(context, params["ResourceArn"])}


def delete(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    arn = params["ResourceArn"]
    _require(context, arn)
    known = dict((context.store.get(KIND, arn) or {}).get("tags", {}))
    for key in params["TagKeys"]:
        known.pop(key, None)
    context.store.put(KIND, arn, {"tags": known})
    return {}


_ARN_MEMBERS = {
    "training-job": ("training-job", "TrainingJobArn"),
    "processing-job": ("processing-job", "ProcessingJobArn"),
    "model": ("model", "ModelArn"),
    "endpoint-config": ("endpoint-config", "EndpointConfigArn"),
    "endpoint": ("endpoint", "EndpointArn"),
    "inference-component": ("inference-component", "InferenceComponentArn"),
}


def _require(context: Context, arn: str) -> None:
    """The resource of an ARN must exist; its name is lower-cased there, so it is looked up by the ARN."""
    kind = arn.partition(":sagemaker:")[2].split(":")[-1].partition("/")[0]
    found = _ARN_MEMBERS.get(kind)
    if found is None or not any(item.get(found[1]) == arn for item in context.store.all(found[0])):
        raise validation(f"Could not find resource {arn}.")
