"""Training jobs: the rules of CreateTrainingJob and the life that DescribeTrainingJob shows."""

from __future__ import annotations

import math
import re
import shutil
from typing import Any

from llmtuner_local.emulator import images, supervisors
from llmtuner_local.emulator.containers import process as containers
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError, not_found, validation
from llmtuner_local.emulator.operations import listing, tags
from llmtuner_local.emulator.shim import cloud, journal

KIND = "training-job"
TERMINAL = {"Completed", "Failed", "Stopped"}
# The supervisor's own phases do not change the outer status; only its end does.
_LOST = "InternalServerError: We encountered an internal error. Please try again."
_COPIED = (
    "HyperParameters", "AlgorithmSpecification", "RoleArn", "InputDataConfig", "OutputDataConfig", "ResourceConfig",
    "VpcConfig", "StoppingCondition", "EnableNetworkIsolation", "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining", "CheckpointConfig", "DebugHookConfig", "DebugRuleConfigurations",
    "TensorBoardOutputConfig", "ExperimentConfig", "ProfilerConfig", "Environment", "RetryStrategy",
)  # fmt: skip


def create(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    name = params["TrainingJobName"]
    arn = context.arn(KIND, name)
    if context.store.get(KIND, name):
        raise ServiceError(
            "ResourceInUse",
            "Training job names must be unique within an AWS account and region, and a training job with this name "
            f"already exists ({arn})",
        )
    _check(context, params)
    resources = params["ResourceConfig"]
    spot = params.get("EnableManagedSpotTraining", False)
    context.faults.check_quota(
        "spot training job usage" if spot else "training job usage",
        resources.get("InstanceType", ""),
        resources.get("InstanceCount", 1),
        name,
    )
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
        **{member: params[member] for member in _COPIED if member in params},
        "_offset": 0,
    }
    document.setdefault("EnableNetworkIsolation", False)
    document.setdefault("EnableInterContainerTrafficEncryption", False)
    document.setdefault("EnableManagedSpotTraining", False)
    context.store.put(KIND, name, document)
    tags.put(context, arn, params.get("Tags", []))
    _launch(context, params, arn)
    return {"TrainingJobArn": arn}


def _check(context: Context, params: dict[str, Any]) -> None:
    for member in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
        if member not in params:
            path = member[:1].lower() + member[1:]
            raise validation(
                f"1 validation error detected: Value 'null' at '{path}' failed to satisfy constraint: Member must not be null"
            )
    algorithm, resources, stopping = (
        params["AlgorithmSpecification"],
        params["ResourceConfig"],
        params["StoppingCondition"],
    )
    if ("TrainingImage" in algorithm) == ("AlgorithmName" in algorithm):
        raise validation("You must specify either a training image or an algorithm name, and not both.")
    if "InstanceGroups" in resources and ("InstanceType" in resources or "InstanceCount" in resources):
        raise validation("InstanceType or InstanceCount cannot be specified with InstanceGroups")
    wait, runtime = stopping.get("MaxWaitTimeInSeconds"), stopping.get("MaxRuntimeInSeconds", 86400)
    if wait is not None and not params.get("EnableManagedSpotTraining"):
        raise validation("MaxWaitTimeInSeconds can be specified only when EnableManagedSpotTraining is set to true.")
    if wait is not None and wait < runtime:
        raise validation("MaxWaitTimeInSeconds must be greater than or equal to MaxRuntimeInSeconds.")
    for definition in algorithm.get("MetricDefinitions", []):
        try:
            re.compile(definition["Regex"])
        except re.error:
            raise validation(f"Invalid regular expression in metric definition '{definition['Name']}'.") from None
    names = [item["ChannelName"] for item in params.get("InputDataConfig", [])]
    if len(set(names)) != len(names):
        raise validation("Channel names must be unique within a training job.")
    for channel in params.get("InputDataConfig", []):
        _check_objects(context, channel, params["RoleArn"])


def _check_objects(context: Context, channel: dict[str, Any], role: str) -> None:
    source = channel.get("DataSource", {}).get("S3DataSource")
    if source is None:
        raise validation(f"Channel '{channel['ChannelName']}' has no S3DataSource.")
    bucket, prefix = cloud.split_uri(source["S3Uri"])
    client = context.s3
    reason = ""
    try:
        if client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("KeyCount"):
            return
    except client.exceptions.ClientError as error:
        reason = f" Error message from S3: {error.response['Error'].get('Message', '')}"
    raise validation(
        f'No S3 objects found under S3 URL "{source["S3Uri"]}" given in input data source. Please ensure that the bucket '
        f"exists in the selected region ({context.region}), that objects exist under that S3 prefix, and that the role "
        f'"{role}" has "s3:ListBucket" permissions on bucket "{bucket}".{reason}'
    )


def _model_uri(params: dict[str, Any]) -> str:
    base = f"{params['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{params['TrainingJobName']}/output"
    return f"{base}/model/" if params["OutputDataConfig"].get("CompressionType") == "NONE" else f"{base}/model.tar.gz"


def _launch(context: Context, params: dict[str, Any], arn: str) -> None:
    name = params["TrainingJobName"]
    output = f"{params['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output"
    extra = {"TRAINING_JOB_NAME": name, "TRAINING_JOB_ARN": arn, **params.get("Environment", {})}
    spec = {
        "request": params,
        "command": _command(context, params["AlgorithmSpecification"]),
        "environment": supervisors.container_environment(context, extra),
        "mode": containers.best_mode(),
        "hide": str(context.home),
        "localstack_url": context.localstack_url,
        "model_uri": _model_uri(params),
        "output_uri": f"{output}/output.tar.gz",
        **context.faults.for_job(name, spot=params.get("EnableManagedSpotTraining", False)),
    }
    supervisors.launch(context, "training", context.job_folder(name), "job.json", spec)


def _command(context: Context, algorithm: dict[str, Any]) -> list[str]:
    """Docker's rule: the entrypoint replaces the image's, arguments follow; without both it is `IMAGE train`."""
    entrypoint, arguments = algorithm.get("ContainerEntrypoint", []), algorithm.get("ContainerArguments", [])
    if entrypoint:
        return [*entrypoint, *arguments]
    image = algorithm.get("TrainingImage") or algorithm["AlgorithmName"]
    return arguments or images.command(image, "train", context.home)


def refresh(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """Bring a job up to what its supervisor has written since; a supervisor that is gone means Failed."""
    if document["TrainingJobStatus"] in TERMINAL:
        return document
    name = document["TrainingJobName"]
    folder = context.job_folder(name)
    was_alive = supervisors.alive(folder)  # asked before reading: what a dead one wrote is all there
    lines, offset = journal.read(folder / "journal.jsonl", document["_offset"])
    if lines:
        document = dict(document, _offset=offset)
        for line in lines:
            _apply(document, line)
    elif not was_alive:
        document = dict(document)
        end = {"time": context.now(), "secondary": "Failed", "message": "Training job failed", "status": "Failed"}
        _apply(document, end | {"reason": _LOST, "metrics": []})
    else:
        return document
    return context.store.put(KIND, name, document)


def _apply(document: dict[str, Any], line: dict[str, Any]) -> None:
    """One line of the journal onto the job."""
    if "secondary" not in line:
        return
    now = line["time"]
    document["LastModifiedTime"] = now
    transitions = [dict(item) for item in document["SecondaryStatusTransitions"]]
    last = transitions[-1]
    if last["Status"] == line["secondary"]:
        last["StatusMessage"] = line["message"]  # AWS replaces the text while the status stays
    else:
        last["EndTime"] = now
        transitions.append({"Status": line["secondary"], "StartTime": now, "StatusMessage": line["message"]})
    document["SecondaryStatusTransitions"] = transitions
    document["SecondaryStatus"] = line["secondary"]
    if line["secondary"] == "Downloading":
        document.setdefault("TrainingStartTime", now)
    if line["secondary"] == "Stopping":
        document["TrainingJobStatus"] = "Stopping"
    if "status" in line:
        transitions[-1]["EndTime"] = now
        _finish(document, line, now)


def _finish(document: dict[str, Any], line: dict[str, Any], now: float) -> None:
    document["TrainingJobStatus"] = line["status"]
    started = document.setdefault("TrainingStartTime", document["CreationTime"])
    document["TrainingEndTime"] = now
    seconds = math.ceil(now - started)
    document["TrainingTimeInSeconds"] = document["BillableTimeInSeconds"] = max(1, seconds)
    if line.get("reason"):
        document["FailureReason"] = line["reason"]
    if line.get("metrics"):
        document["FinalMetricDataList"] = line["metrics"]


def _find(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    document = context.store.get(KIND, params["TrainingJobName"])
    if document is None:
        raise not_found()
    return refresh(context, document)


def describe(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    return _find(context, params)


def list_jobs(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    names = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime")
    return listing.page(
        [item if item["TrainingJobStatus"] in TERMINAL else refresh(context, item) for item in context.store.all(KIND)],
        params,
        name="TrainingJobName",
        output="TrainingJobSummaries",
        summary=listing.pick(*names, "TrainingJobStatus", "SecondaryStatus"),
        status="TrainingJobStatus",
    )


def stop(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    document = _find(context, params)
    if document["TrainingJobStatus"] in TERMINAL:
        raise validation(
            f"The request was rejected because the training job is in status {document['TrainingJobStatus']}."
        )
    name = document["TrainingJobName"]
    context.store.put(KIND, name, dict(document, TrainingJobStatus="Stopping"))
    # A file, not a signal: a supervisor that is only just starting would be ended by one.
    (context.job_folder(name) / "stop").touch()
    return {}


def delete(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    document = context.store.get(KIND, params["TrainingJobName"])
    if document is None:
        raise ServiceError("ResourceNotFound", "Requested resource not found.")
    document = refresh(context, document)
    if document["TrainingJobStatus"] not in TERMINAL:
        raise ServiceError("ResourceInUse", f"Training job is in status {document['TrainingJobStatus']}.")
    name = document["TrainingJobName"]
    context.store.delete(KIND, name)
    tags.drop(context, document["TrainingJobArn"])
    shutil.rmtree(context.job_folder(name), ignore_errors=True)
    return {}
