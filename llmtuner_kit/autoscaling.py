"""Autoscaling of an endpoint: target tracking on invocations per instance, through Application Auto Scaling."""

from __future__ import annotations

from llmtuner_kit.aws import ClientError, error_code, error_message
from llmtuner_kit.errors import KitError
from llmtuner_kit.hosting import VARIANT
from llmtuner_kit.settings import DeploySettings
from llmtuner_kit.workspace import Workspace

_COOLDOWN_SECONDS = {"ScaleInCooldown": 300, "ScaleOutCooldown": 60}


def follow_load(workspace: Workspace, settings: DeploySettings, name: str) -> str:
    """Register target tracking on invocations per instance; returns what was set, or why it could not be."""
    client = workspace.aws.client("application-autoscaling")
    target = scaling_target(name)
    try:
        client.register_scalable_target(
            **target, MinCapacity=settings.min_instances, MaxCapacity=settings.max_instances
        )
        client.put_scaling_policy(
            **target,
            PolicyName=f"{name}-invocations",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": float(settings.invocations_per_instance),
                "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
                **_COOLDOWN_SECONDS,
            },
        )
    except (ClientError, KitError) as error:
        return f"not set: {error_code(error) or type(error).__name__}: {error_message(error)}"
    return (
        f"{settings.min_instances} to {settings.max_instances} instances at "
        f"{settings.invocations_per_instance} invocations a minute each"
    )


def scaling_target(name: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
