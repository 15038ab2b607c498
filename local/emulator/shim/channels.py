"""The input of a job: which objects of S3 belong to a channel, on which host, and how they get there."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.shim import cloud

_WORKERS = 8


@dataclass(frozen=True)
class Item:
    """One object of a channel and its name inside it."""

    bucket: str
    key: str
    name: str


@dataclass(frozen=True)
class Channel:
    """One channel of a training job, with the job's defaults filled in."""

    name: str
    uri: str
    data_type: str = "S3Prefix"
    mode: str = "File"
    distribution: str = "FullyReplicated"
    groups: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    content_type: str | None = None
    wrapper: str = "None"
    compression: str = "None"
    seed: int | None = None

    @classmethod
    def of(cls, entry: dict[str, Any], request: dict[str, Any]) -> Channel:
        """From an entry of InputDataConfig and the request around it."""
        source = entry["DataSource"]["S3DataSource"]
        return cls(
            name=entry["ChannelName"],
            uri=source["S3Uri"],
            data_type=source["S3DataType"],
            mode=entry.get("InputMode") or request["AlgorithmSpecification"].get("TrainingInputMode", "File"),
            distribution=source.get("S3DataDistributionType", "FullyReplicated"),
            groups=tuple(source.get("InstanceGroupNames", ())),
            attributes=tuple(source.get("AttributeNames", ())),
            content_type=entry.get("ContentType"),
            wrapper=entry.get("RecordWrapperType", "None"),
            compression=entry.get("CompressionType", "None"),
            seed=entry["ShuffleConfig"]["Seed"] if "ShuffleConfig" in entry else None,
        )

    def on(self, group: str) -> bool:
        """Whether the hosts of an instance group get this channel."""
        return not self.groups or group in self.groups

    def config(self) -> dict[str, str]:
        """Its entry in inputdataconfig.json; the API's S3DataDistributionType is called S3DistributionType there."""
        entry = {
            "TrainingInputMode": self.mode,
            "S3DistributionType": self.distribution,
            "RecordWrapperType": self.wrapper,
        }
        return entry | ({"ContentType": self.content_type} if self.content_type is not None else {})

    def items(self, s3: Any) -> list[Item]:
        """Its objects in order. Of FastFile only those below the prefix as a folder: it may not cut a name."""
        found = objects(s3, self.uri, self.data_type)
        if self.mode != "FastFile":
            return found
        _, prefix = cloud.split_uri(self.uri)
        return [item for item in found if item.key.startswith(cloud.as_folder(prefix))]


def channels(request: dict[str, Any]) -> list[Channel]:
    """The channels of a training job, in the order of the request."""
    return [Channel.of(entry, request) for entry in request.get("InputDataConfig", [])]


def objects(s3: Any, uri: str, data_type: str = "S3Prefix") -> list[Item]:
    """The objects of an S3Prefix or of a ManifestFile, without the empty ones that stand for folders."""
    bucket, prefix = cloud.split_uri(uri)
    if data_type == "ManifestFile":
        return _manifest(s3, bucket, prefix)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return [Item(bucket, key, _relative_name(key, prefix)) for key in keys if not key.endswith("/")]


def _relative_name(key: str, prefix: str) -> str:
    """The file name of a key inside its channel: relative to the prefix cut at its last slash."""
    base = cloud.as_folder(prefix)
    if key.startswith(base):
        return key[len(base) :]
    return key[prefix.rfind("/") + 1 :]


def _manifest(s3: Any, bucket: str, key: str) -> list[Item]:
    """A JSON list: first `{"prefix": "s3://..."}`, then what follows the prefix in each key."""
    entries = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    valid = isinstance(entries, list) and entries and isinstance(entries[0], dict) and "prefix" in entries[0]
    if not valid or not all(isinstance(entry, str) for entry in entries[1:]):
        raise ValueError(f'The manifest s3://{bucket}/{key} is not a list of {{"prefix": "s3://..."}} and names.')
    home, prefix = cloud.split_uri(entries[0]["prefix"])
    return [Item(home, prefix + entry, entry.lstrip("/")) for entry in entries[1:]]


def share(found: list[Any], distribution: str, number: int, count: int) -> list[Any]:
    """What host `number` (from 0) of `count` gets: everything, or every count-th object."""
    return found[number::count] if distribution == "ShardedByS3Key" else found


def download(s3: Any, found: list[Item], folder: Path, check: Callable[[], None] = lambda: None) -> None:
    """Download objects into a folder under their names.

    Args:
        check: called all the time; what it raises ends the download.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root = folder.resolve()

    def fetch(item: Item) -> None:
        check()
        target = folder / item.name
        if not target.resolve().is_relative_to(root):
            raise ValueError(f"The key {item.key} would leave the channel's folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(item.bucket, item.key, str(target), Callback=lambda _: check())

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(fetch, found))
