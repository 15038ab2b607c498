"""The operation table: AWS's operation names and the functions that answer them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.operations import (
    autoscaling,
    endpoint_configs,
    endpoint_updates,
    endpoints,
    models,
    processing_jobs,
    tags,
    training_jobs,
)

Operation = Callable[[Context, dict[str, Any]], dict[str, Any] | None]

SAGEMAKER: dict[str, Operation] = {
    "CreateTrainingJob": training_jobs.create,
    "DescribeTrainingJob": training_jobs.describe,
    "ListTrainingJobs": training_jobs.list_jobs,
    "UpdateTrainingJob": training_jobs.update,
    "StopTrainingJob": training_jobs.stop,
    "DeleteTrainingJob": training_jobs.delete,
    "CreateProcessingJob": processing_jobs.create,
    "DescribeProcessingJob": processing_jobs.describe,
    "ListProcessingJobs": processing_jobs.list_jobs,
    "StopProcessingJob": processing_jobs.stop,
    "DeleteProcessingJob": processing_jobs.delete,
    "CreateModel": models.create,
    "DescribeModel": models.describe,
    "ListModels": models.list_models,
    "DeleteModel": models.delete,
    "CreateEndpointConfig": endpoint_configs.create,
    "DescribeEndpointConfig": endpoint_configs.describe,
    "ListEndpointConfigs": endpoint_configs.list_configs,
    "DeleteEndpointConfig": endpoint_configs.delete,
    "CreateEndpoint": endpoints.create,
    "DescribeEndpoint": endpoints.describe,
    "ListEndpoints": endpoints.list_endpoints,
    "UpdateEndpoint": endpoint_updates.update,
    "UpdateEndpointWeightsAndCapacities": endpoint_updates.update_capacities,
    "DeleteEndpoint": endpoints.delete,
    "AddTags": tags.add,
    "ListTags": tags.list_tags,
    "DeleteTags": tags.delete,
}

AUTOSCALING: dict[str, Operation] = {
    "RegisterScalableTarget": autoscaling.register,
    "DescribeScalableTargets": autoscaling.describe_targets,
    "DeregisterScalableTarget": autoscaling.deregister,
    "PutScalingPolicy": autoscaling.put_policy,
    "DescribeScalingPolicies": autoscaling.describe_policies,
    "DeleteScalingPolicy": autoscaling.delete_policy,
    "DescribeScalingActivities": autoscaling.describe_activities,
}
