"""The operation table: AWS's operation names and the functions that answer them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.operations import (
    endpoint_configs,
    endpoint_updates,
    endpoints,
    inference_components,
    models,
    processing_jobs,
    scalable_targets,
    scaling,
    scaling_policies,
    search,
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
    "CreateInferenceComponent": inference_components.create,
    "DescribeInferenceComponent": inference_components.describe,
    "ListInferenceComponents": inference_components.list_components,
    "UpdateInferenceComponent": inference_components.update,
    "UpdateInferenceComponentRuntimeConfig": inference_components.update_runtime_config,
    "DeleteInferenceComponent": inference_components.delete,
    "Search": search.search,
    "AddTags": tags.add,
    "ListTags": tags.list_tags,
    "DeleteTags": tags.delete,
}

AUTOSCALING: dict[str, Operation] = {
    "RegisterScalableTarget": scalable_targets.register,
    "DescribeScalableTargets": scalable_targets.describe,
    "DeregisterScalableTarget": scalable_targets.deregister,
    "PutScalingPolicy": scaling_policies.put,
    "DescribeScalingPolicies": scaling_policies.describe,
    "DeleteScalingPolicy": scaling_policies.delete,
    "PutScheduledAction": scaling_policies.put_scheduled,
    "DescribeScheduledActions": scaling_policies.describe_scheduled,
    "DeleteScheduledAction": scaling_policies.delete_scheduled,
    "DescribeScalingActivities": scaling.describe_activities,
}
