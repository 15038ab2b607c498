"""Endpoint configurations: variants of models on instances."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import not_found, validation
from llmtuner_local.emulator.operations import listing, models, tags

KIND = "endpoint-config"
_COPIED = (
    "ProductionVariants", "DataCaptureConfig", "KmsKeyId", "AsyncInferenceConfig", "ExplainerConfig",
    "ShadowProductionVariants", "ExecutionRoleArn", "VpcConfig", "EnableNetworkIsolation",
)  # fmt: skip


def create(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    name = params["EndpointConfigName"]
    arn = context.arn(KIND, name)
    if context.store.get(KIND, name):
        raise validation(f'Cannot create already existing endpoint configuration "{arn}".')
    seen = set()
    for variant in params["ProductionVariants"]:
        if variant["VariantName"] in seen:
            raise validation(f'The variant name "{variant["VariantName"]}" was non-unique within the request.')
        seen.add(variant["VariantName"])
        if "ServerlessConfig" not in variant and not ("InstanceType" in variant and "InitialInstanceCount" in variant):
            raise validation("InstanceType and InitialInstanceCount, or ServerlessConfig, are required for a variant.")
        if "ModelName" in variant:
            models.require(context, variant["ModelName"])
        variant.setdefault("InitialVariantWeight", 1.0)
    document = {
        "EndpointConfigName": name,
        "EndpointConfigArn": arn,
        "CreationTime": context.now(),
        **{member: params[member] for member in _COPIED if member in params},
    }
    context.store.put(KIND, name, document)
    tags.put(context, arn, params.get("Tags", []))
    return {"EndpointConfigArn": arn}


def require(context: Context, name: str) -> dict[str, Any]:
    """A configuration by name; AWS names it by its ARN when it is missing."""
    document = context.store.get(KIND, name)
    if document is None:
        raise not_found(f'Could not find endpoint configuration "{context.arn(KIND, name)}".')
    return document


def describe(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    return require(context, params["EndpointConfigName"])


def list_configs(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    summary = listing.pick("EndpointConfigName", "EndpointConfigArn", "CreationTime")
    documents = context.store.all(KIND)
    return listing.page(documents, params, name="EndpointConfigName", output="EndpointConfigs", summary=summary)


def delete(context: Context, params: dict[str, Any]) -> dict[str, Any] | None:
    document = require(context, params["EndpointConfigName"])
    context.store.delete(KIND, params["EndpointConfigName"])
    tags.drop(context, document["EndpointConfigArn"])
    return None
