"""The requests that make an endpoint, as pure functions of a model, an instance type and the settings."""

from __future__ import annotations

from typing import Any

from llmtuner_kit import catalog, fit
from llmtuner_kit.settings import DeploySettings

VARIANT = "AllTraffic"
# Loading 13B weights from a packed archive takes minutes; SageMaker takes 60 to 3600.
STARTUP_SECONDS = 1800


def model_request(
    name: str,
    model: catalog.BaseModel,
    settings: DeploySettings,
    image: str,
    model_data_url: str,
    role_arn: str,
    tags: list[dict[str, str]],
) -> dict[str, Any]:
    """The CreateModel request. Pure."""
    environment = serving_environment(model, catalog.instance(settings.instance_type))
    container = {"Image": image, "ModelDataUrl": model_data_url, "Environment": environment}
    request = {"ModelName": name, "PrimaryContainer": container, "ExecutionRoleArn": role_arn, "Tags": tags}
    return request | settings.vpc_config


def serving_environment(model: catalog.BaseModel, instance: catalog.Instance) -> dict[str, str]:
    """What the serving image needs to know.

    vLLM's SageMaker image turns SM_VLLM_X_Y into --x-y; the archive unpacked at /opt/ml/model is the model.
    The Hugging Face inference image runs code/inference.py of the archive.
    """
    if model.family == "causal":
        return {
            "SM_VLLM_MODEL": "/opt/ml/model",
            "SM_VLLM_SERVED_MODEL_NAME": "tuned",
            "SM_VLLM_DTYPE": "bfloat16",
            "SM_VLLM_MAX_MODEL_LEN": str(min(model.context, fit.SERVING_CONTEXT)),
            "SM_VLLM_GPU_MEMORY_UTILIZATION": str(fit.SERVING_SHARE),
            "SM_VLLM_TENSOR_PARALLEL_SIZE": str(fit.tensor_parallel(model, instance)),
        }
    return {
        "HF_TASK": "text2text-generation",
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
    }


def endpoint_config_request(
    name: str, settings: DeploySettings, ami: str, tags: list[dict[str, str]]
) -> dict[str, Any]:
    """The CreateEndpointConfig request. Pure. `ami`: the host image whose driver runs the container's CUDA."""
    request: dict[str, Any] = {
        "EndpointConfigName": name,
        "ProductionVariants": [
            {
                "VariantName": VARIANT,
                "ModelName": name,
                "InstanceType": settings.instance_type,
                "InitialInstanceCount": settings.min_instances,
                "InitialVariantWeight": 1.0,
                "InferenceAmiVersion": ami,
                "ContainerStartupHealthCheckTimeoutInSeconds": STARTUP_SECONDS,
                "ModelDataDownloadTimeoutInSeconds": STARTUP_SECONDS,
            }
        ],
        "Tags": tags,
    }
    if settings.kms_key_id:
        request["KmsKeyId"] = settings.kms_key_id
    return request
