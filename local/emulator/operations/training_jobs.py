"""Training jobs: create, describe, list, update, stop and delete."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator import images
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError, validation
from llmtuner_local.emulator.operations import jobs, listing, tags, training_checks, training_status, warm_pools

KIND, JOBS = training_status.KIND, training_status.JOBS
refresh, settled = training_status.refresh, training_status.settled
_COPIED = (
    "HyperParameters", "AlgorithmSpecification", "RoleArn", "InputDataConfig", "OutputDataConfig", "ResourceConfig",
    "VpcConfig", "StoppingCondition", "EnableNetworkIsolation", "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining", "CheckpointConfig", "DebugHookConfig", "DebugRuleConfigurations",
    "TensorBoardOutputConfig", "ExperimentConfig", "ProfilerConfig", "Environment", "RetryStrategy",
    "RemoteDebugConfig", "InfraCheckConfig", "SessionChainingConfig",
)  # fmt: skip
_PROFILING = ("ProfilerConfig", "ProfilerRuleConfigurations")


def create(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    name = params["TrainingJobName"]
    arn = context.arn(KIND, name)
    JOBS.must_not_exist(context, name)
    training_checks.check(context, params)
    now = context.now()
    document = {
        "TrainingJobName": name,
        "TrainingJobArn": arn,
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Starting",
        "ModelArtifacts": {"S3ModelArtifacts": _model_uri(params)},
        "CreationTime": now,
        "LastModifiedTime": now,
        "SecondaryStatusTransitions": [
            {"Status": "Starting", "StartTime": now, "StatusMessage": "Starting the training job"}
        ],
        "EnableNetworkIsolation": False,
        "EnableInterContainerTrafficEncryption": False,
        "EnableManagedSpotTraining": False,
        **{member: params[member] for member in _COPIED if member in params},
        "_offset": 0,
    }
    if warm_pools.asked(params):
        warm_pools.take(context, params)
        document["WarmPoolStatus"] = {"Status": "InUse"}
    context.store.put(KIND, name, document)
    tags.put(context, arn, params.get("Tags", []))
    _launch(context, params, arn)
    return {"TrainingJobArn": arn}


def _output_uri(params: dict[str, Any]) -> str:
    return f"{params['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{params['TrainingJobName']}/output/"


def _uncompressed(params: dict[str, Any]) -> bool:
    return params["OutputDataConfig"].get("CompressionType") == "NONE"


def _model_uri(params: dict[str, Any]) -> str:
    return _output_uri(params) + ("model/" if _uncompressed(params) else "model.tar.gz")


def _launch(context: Context, params: dict[str, Any], arn: str) -> None:
    name = params["TrainingJobName"]
    algorithm = params["AlgorithmSpecification"]
    image = algorithm.get("TrainingImage") or algorithm["AlgorithmName"]
    jobs.launch(
        context,
        "training",
        context.job_folder(name),
        {
            "name": name,
            "request": params,
            "command": jobs.command(
                algorithm.get("ContainerEntrypoint", []),
                algorithm.get("ContainerArguments", []),
                images.command(image, "train", context.home),
            ),
            "environment": {"TRAINING_JOB_NAME": name, "TRAINING_JOB_ARN": arn, **params.get("Environment", {})},
            "volume_gb": params["ResourceConfig"].get("VolumeSizeInGB", 0),
            "model_uri": _model_uri(params),
            "output_uri": _output_uri(params) + ("data/" if _uncompressed(params) else "output.tar.gz"),
            **context.faults.for_job(name, spot=params.get("EnableManagedSpotTraining", False)),
        },
    )


def describe(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    return warm_pools.refresh(context, JOBS.describe(context, params))


def list_jobs(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    found = jobs.refreshed(context, KIND, settled, refresh)
    if wanted := params.get("WarmPoolStatusEquals"):
        found = [item for item in found if warm_pools.status(item) == wanted]
    names = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime")
    return listing.page(
        found,
        params,
        name="TrainingJobName",
        output="TrainingJobSummaries",
        summary=listing.pick(*names, "TrainingJobStatus", "SecondaryStatus", "WarmPoolStatus"),
        status="TrainingJobStatus",
        default_order="Ascending",
    )


def update(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    document = describe(context, params)
    if "ResourceConfig" in params:
        document = warm_pools.keep_alive(context, document, params["ResourceConfig"]["KeepAlivePeriodInSeconds"])
    kept: dict[str, Any] = {name: params[name] for name in _PROFILING if name in params}
    if "RemoteDebugConfig" in params:
        if document["SecondaryStatus"] not in ("Downloading", "Training"):
            raise validation(
                "RemoteDebugConfig can be updated only while the SecondaryStatus is Downloading or Training; it is "
                f"{document['SecondaryStatus']}."
            )
        kept["RemoteDebugConfig"] = params["RemoteDebugConfig"]
    changed = dict(document, LastModifiedTime=context.now(), **kept)
    context.store.put(KIND, document["TrainingJobName"], changed)
    return {"TrainingJobArn": document["TrainingJobArn"]}


stop = JOBS.stop


def delete(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    document = context.store.get(KIND, params["TrainingJobName"])
    if document and warm_pools.status(refresh(context, document)) == "Available":
        raise ServiceError("ResourceInUse", "Training job has a warm pool in status Available.")
    return JOBS.delete(context, params)
