"""What CreateTrainingJob refuses, in AWS's words where they are known."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import validation
from llmtuner_local.emulator.operations import jobs
from llmtuner_local.emulator.shim import channels, hosts

_RESERVED = ("input", "output", "model")


def check(context: Context, params: dict[str, Any]) -> None:
    """Raise ServiceError for the first rule that does not hold."""
    for member in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
        if member not in params:
            raise jobs.required(member[:1].lower() + member[1:])
    _algorithm(params["AlgorithmSpecification"])
    _resources(params["ResourceConfig"], spot=params.get("EnableManagedSpotTraining", False))
    _times(params)
    _checkpoints(params.get("CheckpointConfig"))
    _quota(context, params)
    jobs.check_role(context, params["RoleArn"])
    _channels(context, params)


def _algorithm(algorithm: dict[str, Any]) -> None:
    if ("TrainingImage" in algorithm) == ("AlgorithmName" in algorithm):
        raise validation("You must specify either a training image or an algorithm name, and not both.")
    for definition in algorithm.get("MetricDefinitions", []):
        try:
            re.compile(definition["Regex"])
        except re.error:
            raise validation(f"Invalid regular expression in metric definition '{definition['Name']}'.") from None


def _resources(resources: dict[str, Any], *, spot: bool) -> None:
    groups = resources.get("InstanceGroups")
    if groups and ("InstanceType" in resources or "InstanceCount" in resources):
        raise validation("InstanceType or InstanceCount cannot be specified with InstanceGroups")
    if not groups:
        for member in ("instanceType", "instanceCount"):
            if member[:1].upper() + member[1:] not in resources:
                raise jobs.required(f"resourceConfig.{member}")
    names = [item["InstanceGroupName"] for item in groups or []]
    if len(set(names)) != len(names):
        raise validation("Instance group names must be unique within a training job.")
    for item in groups or [resources]:
        jobs.check_volume(item["InstanceType"], resources)
    count = sum(item["InstanceCount"] for item in groups or [resources])
    if not 1 <= count <= hosts.MOST:
        raise validation(f"The local emulator runs 1 to {hosts.MOST} instances in a job; {count} were asked for.")
    if resources.get("KeepAlivePeriodInSeconds") and (spot or groups):
        what = "managed spot training" if spot else "heterogeneous clusters"
        raise validation(f"KeepAlivePeriodInSeconds is not supported with {what}.")


def _times(params: dict[str, Any]) -> None:
    stopping, spot = params["StoppingCondition"], params.get("EnableManagedSpotTraining", False)
    wait, runtime = stopping.get("MaxWaitTimeInSeconds"), stopping.get("MaxRuntimeInSeconds", 86400)
    if wait is not None and not spot:
        raise validation("MaxWaitTimeInSeconds can be specified only when EnableManagedSpotTraining is set to true.")
    if wait is not None and wait < runtime:
        raise validation("MaxWaitTimeInSeconds must be greater than or equal to MaxRuntimeInSeconds.")
    if wait is None and spot:
        raise validation("MaxWaitTimeInSeconds must be specified when EnableManagedSpotTraining is set to true.")


def _checkpoints(config: dict[str, Any] | None) -> None:
    if config is None:
        return
    parts = PurePosixPath(config.get("LocalPath", "/opt/ml/checkpoints")).parts
    if parts[:3] != ("/", "opt", "ml") or ".." in parts or len(parts) == 3 or parts[3] in _RESERVED:
        raise validation(
            f"CheckpointConfig.LocalPath {config['LocalPath']} cannot be used: the local emulator keeps checkpoints below "
            f"/opt/ml, outside of {', '.join(f'/opt/ml/{name}' for name in _RESERVED)}."
        )


def _quota(context: Context, params: dict[str, Any]) -> None:
    name = params["TrainingJobName"]
    spot = "spot " if params.get("EnableManagedSpotTraining") else ""
    kept = params["ResourceConfig"].get("KeepAlivePeriodInSeconds")
    for _, instance_type, count in hosts.of_training(params):
        context.faults.check_quota(f"{spot}training job usage", instance_type, count, name)
        if kept:
            context.faults.check_quota("training warm pool usage", instance_type, count, name)


def _channels(context: Context, params: dict[str, Any]) -> None:
    entries = params.get("InputDataConfig", [])
    for entry in entries:
        if "S3DataSource" not in entry.get("DataSource", {}):
            raise validation(f"Channel '{entry['ChannelName']}' has no S3DataSource; the local emulator reads S3 only.")
    found = channels.channels(params)
    names = [channel.name for channel in found]
    if len(set(names)) != len(names):
        raise validation("Channel names must be unique within a training job.")
    if {".", ".."} & set(names):
        raise validation("'.' and '..' are no channel names: a channel is a folder of its own.")
    _groups(params, found)
    for channel in found:
        _channel(channel)
        whole = channel.mode == "FastFile"
        jobs.check_objects(context, channel.uri, params["RoleArn"], whole_names=whole)


def _groups(params: dict[str, Any], found: list[channels.Channel]) -> None:
    known = [item["InstanceGroupName"] for item in params["ResourceConfig"].get("InstanceGroups", [])]
    for channel in found:
        for group in channel.groups:
            if group not in known:
                raise validation(f"Channel '{channel.name}' names the instance group '{group}', which the job has not.")
    assigned = [channel.name for channel in found if channel.groups]
    others = [channel.name for channel in found if not channel.groups]
    if assigned and others:
        raise validation(
            f"Some channels have assigned instance groups: [{', '.join(assigned)}] while others not: [{', '.join(others)}]"
        )


def _channel(channel: channels.Channel) -> None:
    """Which input modes go with which data types."""
    where = f"Channel '{channel.name}'"
    if channel.mode == "FastFile" and channel.data_type != "S3Prefix":
        raise validation(f"{where}: input mode FastFile needs the data type S3Prefix, not {channel.data_type}.")
    if channel.data_type == "AugmentedManifestFile":
        if channel.mode != "Pipe":
            raise validation(
                f"{where}: the data type AugmentedManifestFile needs the input mode Pipe, not {channel.mode}."
            )
        if not channel.attributes:
            raise validation(f"{where}: the data type AugmentedManifestFile needs AttributeNames.")
    if channel.compression != "None" and channel.mode != "Pipe":
        raise validation(f"{where}: CompressionType is used in the input mode Pipe only, not in {channel.mode}.")
