"""The supervisors' side of S3, CloudWatch Logs and CloudWatch on the local cloud."""

from __future__ import annotations

import os
import tarfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from isal import igzip_threaded
from llmtuner_local.home import REGION

_WORKERS = 8
BLOCK = 1 << 20  # bytes that archives are read and written in


class TarFile(tarfile.TarFile):
    """A tar file that is moved in large blocks."""

    copybufsize = BLOCK


def client(service: str, url: str) -> Any:
    """A boto3 client of the local cloud."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",  # noqa: S106 - LocalStack's well-known dummy
        config=Config(
            s3={"addressing_style": "path"}, retries={"mode": "standard", "max_attempts": 5}, max_pool_connections=16
        ),
    )


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` -> (bucket, key)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def list_objects(s3: Any, uri: str) -> list[dict[str, Any]]:
    """Every object under a prefix, `Key` and `Size` each, sorted by key."""
    bucket, prefix = split_uri(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [item for page in pages for item in page.get("Contents", [])]


def download_prefix(s3: Any, uri: str, folder: Path, keys: Iterable[str] | None = None) -> int:
    """Download a prefix; keys stay relative to it (a prefix that names one object gives that file). Bytes."""
    bucket, prefix = split_uri(uri)
    objects = list_objects(s3, uri)
    if keys is not None:
        wanted = set(keys)
        objects = [item for item in objects if item["Key"] in wanted]
    folder.mkdir(parents=True, exist_ok=True)

    def fetch(item: dict[str, Any]) -> int:
        name = relative_name(item["Key"], prefix)
        if not name or item["Key"].endswith("/"):
            return 0
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"The key {item['Key']} would leave the channel's folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, item["Key"], str(target))
        return int(item["Size"])

    with ThreadPoolExecutor(_WORKERS) as pool:
        return sum(pool.map(fetch, objects))


def relative_name(key: str, prefix: str) -> str:
    """The file name of a key inside its channel: relative to the prefix cut at its last slash."""
    base = prefix if prefix.endswith("/") or prefix == "" else prefix + "/"
    if key.startswith(base):
        return key[len(base) :]
    return key[prefix.rfind("/") + 1 :]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar.gz as fast as the disk takes it; names that would leave the folder are refused."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        igzip_threaded.open(archive, "rb") as inflated,
        TarFile.open(fileobj=inflated, mode="r|", bufsize=BLOCK) as opened,
    ):
        opened.extractall(folder, filter="data")


class LogShipper:
    """Lines of a container to one CloudWatch Logs stream, in batches, by a thread of its own.

    `close` returns when everything is stored: the status of a job turns terminal only after that.
    """

    def __init__(self, url: str, group: str, stream: str) -> None:
        self._logs = client("logs", url)
        self._cloudwatch: Any = None
        self._url, self._group, self._stream = url, group, stream
        self._lines: list[dict[str, Any]] = []
        self._points: list[tuple[str, list[dict[str, Any]]]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-shipper", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """Queue one line; empty ones are kept as a space, as CloudWatch takes no empty message."""
        with self._wake:
            self._lines.append({"timestamp": int(time.time() * 1000), "message": text[:250_000] or " "})
            self._wake.notify()

    def points(self, namespace: str, data: list[dict[str, Any]]) -> None:
        """Queue metric data."""
        with self._wake:
            self._points.append((namespace, data))
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        self._create()
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._lines or self._points or self._closing)
                lines, self._lines = self._lines, []
                points, self._points = self._points, []
                closing = self._closing
            self._send(lines)
            for namespace, data in points:
                self._cloudwatch = self._cloudwatch or client("cloudwatch", self._url)
                self._cloudwatch.put_metric_data(Namespace=namespace, MetricData=data)
            if closing and not self._lines and not self._points:
                return
            if not closing:
                with self._wake:  # gather for a moment: one call for many lines
                    self._wake.wait_for(lambda: self._closing, timeout=0.25)

    def _create(self) -> None:
        for call, name in ((self._logs.create_log_group, None), (self._logs.create_log_stream, self._stream)):
            try:
                call(logGroupName=self._group, **({"logStreamName": name} if name else {}))
            except self._logs.exceptions.ResourceAlreadyExistsException:
                continue

    def _send(self, lines: list[dict[str, Any]]) -> None:
        batch: list[dict[str, Any]] = []
        size = 0
        for line in lines:
            weight = len(line["message"].encode()) + 26
            if batch and (size + weight > 1_000_000 or len(batch) >= 5_000):
                self._logs.put_log_events(logGroupName=self._group, logStreamName=self._stream, logEvents=batch)
                batch, size = [], 0
            batch.append(line)
            size += weight
        if batch:
            self._logs.put_log_events(logGroupName=self._group, logStreamName=self._stream, logEvents=batch)


def free_port() -> int:
    """A loopback port nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def base_environment() -> dict[str, str]:
    """The part of this process's environment a container may see: no AWS settings, no kit settings, no home."""
    hidden = ("AWS_", "LLMTUNER_", "SAGEMAKER_", "SM_", "HOME", "PYTHONPATH", "JPY_", "XDG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
