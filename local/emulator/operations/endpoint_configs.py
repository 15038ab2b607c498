"""Endpoint configurations: variants of models on instances."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import validation
from llmtuner_local.emulator.operations import models
from llmtuner_local.emulator.operations.records import RecordKind

CONFIGS = RecordKind("endpoint-config", "endpoint configuration", "EndpointConfig", "EndpointConfigs")
require, describe, list_configs, delete = CONFIGS.require, CONFIGS.describe, CONFIGS.list, CONFIGS.delete
_COPIED = (
    "ProductionVariants", "DataCaptureConfig", "KmsKeyId", "AsyncInferenceConfig", "ExplainerConfig",
    "ShadowProductionVariants", "ExecutionRoleArn", "VpcConfig", "EnableNetworkIsolation",
)  # fmt: skip


def create(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    CONFIGS.must_not_exist(context, params["EndpointConfigName"])
    _check_variants(context, params)
    return CONFIGS.put(context, params, {member: params[member] for member in _COPIED if member in params})


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What an endpoint takes over from its configuration besides the variants, as DescribeEndpoint shows it."""
    kept = ("AsyncInferenceConfig", "ExplainerConfig")
    found: dict[str, Any] = {name: config[name] for name in kept if name in config}
    if capture := config.get("DataCaptureConfig"):
        enabled = capture.get("EnableCapture", False)
        found["DataCaptureConfig"] = {
            "EnableCapture": enabled,
            "CaptureStatus": "Started" if enabled else "Stopped",
            "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
            "DestinationS3Uri": capture["DestinationS3Uri"],
            "KmsKeyId": capture.get("KmsKeyId", ""),
        }
    return found


def _check_variants(context: Context, params: dict[str, Any]) -> None:
    shadows = params.get("ShadowProductionVariants", [])
    if shadows and (len(params["ProductionVariants"]) > 1 or len(shadows) > 1):
        raise validation("One production variant and one shadow variant can be specified in shadow mode.")
    seen = set()
    for variant in [*params["ProductionVariants"], *shadows]:
        if variant["VariantName"] in seen:
            raise validation(f'The variant name "{variant["VariantName"]}" was non-unique within the request.')
        seen.add(variant["VariantName"])
        variant.setdefault("InitialVariantWeight", 1.0)
        if "ServerlessConfig" in variant:
            _check_serverless(params, variant)
        elif not ("InstanceType" in variant and "InitialInstanceCount" in variant):
            raise validation("InstanceType and InitialInstanceCount, or ServerlessConfig, are required for a variant.")
        if "ModelName" not in variant and "ExecutionRoleArn" not in params:
            raise validation("ExecutionRoleArn is required for variants without a ModelName.")
        if "ModelName" in variant:
            if "ManagedInstanceScaling" in variant:
                raise validation("ManagedInstanceScaling is only supported for inference component endpoints.")
            models.require(context, variant["ModelName"])
    output = params.get("AsyncInferenceConfig", {}).get("OutputConfig", {"S3OutputPath": ""})
    if "S3OutputPath" not in output:
        raise validation("AsyncInferenceConfig.OutputConfig.S3OutputPath is required here; it has no default.")
    if len({"ModelName" in variant for variant in params["ProductionVariants"]}) > 1:
        raise validation("Either all variants have a ModelName, or none: then inference components bring the models.")


def _check_serverless(params: dict[str, Any], variant: dict[str, Any]) -> None:
    name, serverless = variant["VariantName"], variant["ServerlessConfig"]
    if "InstanceType" in variant or "InitialInstanceCount" in variant:
        raise validation(f'Variant "{name}": ServerlessConfig excludes InstanceType and InitialInstanceCount.')
    if "ModelName" not in variant or "AsyncInferenceConfig" in params:
        raise validation(f'Variant "{name}": ServerlessConfig needs a ModelName and no AsyncInferenceConfig.')
    if serverless["MemorySizeInMB"] % 1024:
        raise validation(f"MemorySizeInMB must be a multiple of 1024; it is {serverless['MemorySizeInMB']}.")
    if serverless.get("ProvisionedConcurrency", 0) > serverless["MaxConcurrency"]:
        raise validation("ProvisionedConcurrency must be at most MaxConcurrency.")
