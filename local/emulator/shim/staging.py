"""/opt/ml as a training container finds it: folders, config files, channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.shim import cloud

FOLDERS = ("input/config", "input/data", "model", "output/data", "code", "checkpoints")


def stage(
    s3: Any, request: dict[str, Any], base: Path, host: str = "algo-1", hosts: tuple[str, ...] = ("algo-1",)
) -> None:
    """Write the config files and download every channel of a training job."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    config = base / "input" / "config"
    _write(config / "hyperparameters.json", request.get("HyperParameters", {}))
    _write(
        config / "inputdataconfig.json",
        {item["ChannelName"]: channel_config(item, request) for item in channels(request)},
    )
    _write(config / "resourceconfig.json", resource_config(request, host, hosts))
    for item in channels(request):
        download_channel(s3, item, base / "input" / "data" / item["ChannelName"])


def channels(request: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request.get("InputDataConfig", [])
    return found


def channel_config(channel: dict[str, Any], request: dict[str, Any]) -> dict[str, str]:
    """One entry of inputdataconfig.json; the API's S3DataDistributionType is called S3DistributionType there."""
    source = channel["DataSource"].get("S3DataSource", {})
    mode = channel.get("InputMode") or request["AlgorithmSpecification"].get("TrainingInputMode", "File")
    entry = {
        "TrainingInputMode": mode,
        "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }
    if "ContentType" in channel:
        entry["ContentType"] = channel["ContentType"]
    return entry


def resource_config(request: dict[str, Any], host: str, hosts: tuple[str, ...]) -> dict[str, Any]:
    """resourceconfig.json in its newest known shape."""
    instance = request["ResourceConfig"].get("InstanceType", "")
    group = {"instance_group_name": "homogeneousCluster", "instance_type": instance, "hosts": list(hosts)}
    return {
        "current_host": host,
        "current_instance_type": instance,
        "current_group_name": "homogeneousCluster",
        "hosts": list(hosts),
        "instance_groups": [group],
        "network_interface_name": "lo",
        "topology": None,
    }


def download_channel(s3: Any, channel: dict[str, Any], folder: Path) -> int:
    """Download one channel (S3Prefix or ManifestFile); bytes."""
    source = channel["DataSource"]["S3DataSource"]
    if source.get("S3DataType") != "ManifestFile":
        return cloud.download_prefix(s3, source["S3Uri"], folder)
    bucket, key = cloud.split_uri(source["S3Uri"])
    head, *names = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    _, prefix = cloud.split_uri(head["prefix"])
    return cloud.download_prefix(s3, head["prefix"], folder, keys=[prefix + name for name in names])


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
