"""Short ways to inference components."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError
from emulator.conftest import Cloud


def make(quick: Cloud, endpoint: str, specification: dict[str, Any], copies: int | None = 1) -> str:
    """A component that has settled."""
    name, more = quick.name("ic"), {}
    if copies is not None:
        more = {"VariantName": "AllTraffic", "RuntimeConfig": {"CopyCount": copies}}
    quick.sagemaker.create_inference_component(
        InferenceComponentName=name, EndpointName=endpoint, Specification=specification, **more
    )
    settle(quick, name)
    return name


def component(quick: Cloud, name: str) -> dict[str, Any]:
    found: dict[str, Any] = quick.sagemaker.describe_inference_component(InferenceComponentName=name)
    return found


def settle(quick: Cloud, name: str) -> dict[str, Any]:
    found: dict[str, Any] = quick.until(
        lambda: component(quick, name), lambda item: item["InferenceComponentStatus"] not in ("Creating", "Updating")
    )
    return found


def delete(quick: Cloud, name: str) -> None:
    quick.sagemaker.delete_inference_component(InferenceComponentName=name)

    def is_gone() -> bool:
        try:
            component(quick, name)
        except ClientError as error:
            return "Could not find inference component" in str(error)
        return False

    quick.until(is_gone, bool)


def needs(memory: int = 1024, **more: float) -> dict[str, Any]:
    """ComputeResourceRequirements of a small copy."""
    return {"MinMemoryRequiredInMb": memory, "NumberOfCpuCoresRequired": 1, **more}
