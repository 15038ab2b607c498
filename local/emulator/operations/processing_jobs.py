"""Processing jobs: create, describe, list, stop and delete."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from llmtuner_local.emulator import images
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import INTERNAL, validation
from llmtuner_local.emulator.operations import jobs, listing, tags
from llmtuner_local.emulator.shim import hosts

KIND = "processing-job"
_COPIED = (
    "ProcessingInputs", "ProcessingOutputConfig", "ProcessingResources", "StoppingCondition", "AppSpecification",
    "Environment", "NetworkConfig", "RoleArn", "ExperimentConfig",
)  # fmt: skip
_ROOT = ("/", "opt", "ml", "processing")


def create(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    name = params["ProcessingJobName"]
    arn = context.arn(KIND, name)
    JOBS.must_not_exist(context, name)
    command = _command(context, params["AppSpecification"])
    _check(context, params)
    now = context.now()
    document = {
        "ProcessingJobName": name,
        "ProcessingJobArn": arn,
        "ProcessingJobStatus": "InProgress",
        "CreationTime": now,
        "LastModifiedTime": now,
        **{member: params[member] for member in _COPIED if member in params},
        "_offset": 0,
    }
    document.setdefault("StoppingCondition", {"MaxRuntimeInSeconds": 86400})
    context.store.put(KIND, name, document)
    tags.put(context, arn, params.get("Tags", []))
    jobs.launch(
        context,
        "processing",
        _folder(context, name),
        {
            "name": name,
            "request": params,
            "command": command,
            "config": {"ProcessingJobArn": arn, "ProcessingJobName": name, **_config(params)},
            "environment": params.get("Environment", {}),
            "volume_gb": params["ProcessingResources"]["ClusterConfig"]["VolumeSizeInGB"],
            **context.faults.for_job(name),
        },
    )
    return {"ProcessingJobArn": arn}


def _config(params: dict[str, Any]) -> dict[str, Any]:
    """processingjobconfig.json: the request as it came in."""
    return {member: params[member] for member in _COPIED if member in params}


def _folder(context: Context, name: str) -> Path:
    return context.home / "processing" / name


def _command(context: Context, app: dict[str, Any]) -> list[str]:
    """What to run. Only an image that is run knows its own entry point."""
    own = images.command(app["ImageUri"], "process", context.home)
    found = jobs.command(app.get("ContainerEntrypoint", []), app.get("ContainerArguments", []), own)
    if not found and context.mode != "docker":
        raise validation(
            "AppSpecification has neither ContainerEntrypoint nor ContainerArguments. As a process "
            f'no image is run: name the program, or add a rule with "process" for {app["ImageUri"]} to images.json.'
        )
    return found


def _check(context: Context, params: dict[str, Any]) -> None:
    cluster = params["ProcessingResources"].get("ClusterConfig")
    if cluster is None:
        raise jobs.required("processingResources.clusterConfig")
    if "InstanceType" not in cluster:
        raise jobs.required("processingResources.clusterConfig.instanceType")
    jobs.check_volume(cluster["InstanceType"], cluster)
    count = cluster.get("InstanceCount", 1)
    if not 1 <= count <= hosts.MOST:
        raise validation(f"The local emulator runs 1 to {hosts.MOST} instances in a job; {count} were asked for.")
    context.faults.check_quota("processing job usage", cluster["InstanceType"], count, params["ProcessingJobName"])
    jobs.check_role(context, params["RoleArn"])
    inputs = [item for item in params.get("ProcessingInputs", []) if not item.get("AppManaged")]
    outputs = [
        item for item in params.get("ProcessingOutputConfig", {}).get("Outputs", []) if not item.get("AppManaged")
    ]
    _check_names([item["InputName"] for item in inputs], "input")
    _check_names([item["OutputName"] for item in outputs], "output")
    for entry in inputs:
        _check_input(context, entry, params["RoleArn"])
    for entry in outputs:
        if "S3Output" not in entry:
            raise validation(f"Processing output '{entry['OutputName']}' has no S3Output.")
        _check_path(entry["S3Output"].get("LocalPath"), f"output '{entry['OutputName']}'")


def _check_names(names: list[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise validation(f"Processing {what} names must be unique; used twice: {', '.join(twice)}.")


def _check_input(context: Context, entry: dict[str, Any], role: str) -> None:
    name, source = entry["InputName"], entry.get("S3Input")
    if source is None:
        raise validation(f"Processing input '{name}' has no S3Input; the local emulator reads S3 only.")
    if source.get("S3InputMode", "File") != "File":
        raise validation(f"Processing input '{name}': the local emulator has the S3InputMode File only.")
    if source.get("S3CompressionType", "None") != "None":
        raise validation(f"Processing input '{name}': S3CompressionType Gzip needs the S3InputMode Pipe.")
    _check_path(source.get("LocalPath"), f"input '{name}'")
    jobs.check_objects(context, source["S3Uri"], role)


def _check_path(path: str | None, what: str) -> None:
    parts = PurePosixPath(path or "").parts
    if parts[: len(_ROOT)] != _ROOT or ".." in parts:
        raise validation(f"The LocalPath of processing {what} is {path!r}; it must begin with /opt/ml/processing/.")


def _apply(document: dict[str, Any], line: dict[str, Any]) -> None:
    document["LastModifiedTime"] = line["time"]
    if line.get("started"):
        document["ProcessingStartTime"] = line["time"]
    if line.get("stopping"):
        document["ProcessingJobStatus"] = "Stopping"
    if "status" in line:
        document["ProcessingJobStatus"] = line["status"]
        document["ProcessingEndTime"] = line["time"]
        told = {"FailureReason": line.get("reason"), "ExitMessage": line.get("exit_message")}
        document.update({name: text for name, text in told.items() if text})


JOBS = jobs.JobKind(KIND, "processing job", "ProcessingJob", {"status": "Failed", "reason": INTERNAL}, _apply, _folder)
refresh, settled, describe, stop, delete = JOBS.refresh, JOBS.ended, JOBS.describe, JOBS.stop, JOBS.delete


def list_jobs(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    names = ("ProcessingJobName", "ProcessingJobArn", "CreationTime", "ProcessingEndTime", "LastModifiedTime")
    return listing.page(
        jobs.refreshed(context, KIND, settled, refresh),
        params,
        name="ProcessingJobName",
        output="ProcessingJobSummaries",
        summary=listing.pick(*names, "ProcessingJobStatus", "FailureReason", "ExitMessage"),
        status="ProcessingJobStatus",
        default_order="Ascending",
    )
