"""A local cloud to measure: started in a folder of its own, filled with jobs and endpoints, its emulator started anew."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
from llmtuner_local import servers, stack
from llmtuner_local.emulator.store import Store

ROLE = "arn:aws:iam::000000000000:role/llmtuner-execution"
SIGNATURE = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sagemaker/aws4_request, SignedHeaders=host, Signature=0a"
)
# A model server that works as long as the body says, and tells in its answer how long it really took.
SERVER = """
import asyncio, os, time, uvloop
class Handler(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        self.data += data
        head, found, body = self.data.partition(b"\\r\\n\\r\\n")
        if not found:
            return
        length = head.lower().partition(b"content-length:")[2].split(b"\\r\\n", 1)[0]
        if len(body) < int(length or 0):
            return
        self.data, began = b"", time.perf_counter()
        seconds = float(body or 0)
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self.answer, began)
        else:
            self.answer(began)
    def answer(self, began):
        body = b"%.9f" % (time.perf_counter() - began)
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Handler, "127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"]), backlog=256)
    await server.serve_forever()
uvloop.run(main())
"""
BUCKET = "bench"
_AT_ONCE = 4


@dataclass
class Cloud:
    """A running local cloud."""

    home: Path
    localstack_url: str
    sagemaker_url: str

    def client(self, service: str) -> Any:
        return client(service, self.sagemaker_url if service == "sagemaker" else self.localstack_url)

    @property
    def port(self) -> int:
        return int(self.sagemaker_url.rpartition(":")[2])

    def emulator(self) -> psutil.Process:
        """The emulator's process."""
        process = servers.emulator_pid(self.home).process()
        found = process.find() if process else None
        assert found, "the emulator does not run"
        return found

    def stop_emulator(self) -> None:
        """Kill the emulator alone, as a crash does: what serves goes on and is found again."""
        process = self.emulator()
        process.kill()
        process.wait()

    def start_emulator(self) -> tuple[float, float]:
        """Seconds until a stopped emulator answers, and its CPU time until then."""
        began = time.perf_counter()
        self.sagemaker_url = stack.up()["sagemaker_url"]
        seconds = time.perf_counter() - began
        return seconds, sum(self.emulator().cpu_times()[:2])

    def memory_mb(self) -> float:
        return float(self.emulator().memory_info().rss / 1e6)


@contextmanager
def local_cloud() -> Iterator[Cloud]:
    """A fresh local cloud."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LLMTUNER_HOME": folder, "LLMTUNER_LOCALSTACK_PORT": "0", "LLMTUNER_SAGEMAKER_PORT": "0"}
        try:
            found = stack.up()
            yield Cloud(Path(folder), found["localstack_url"], found["sagemaker_url"])
        finally:
            stack.down()


def client(service: str, url: str) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client(service, endpoint_url=url, region_name="us-east-1", **keys)


def job_name(number: int) -> str:
    return f"filled-{number:05d}"


def fill(home: Path, count: int) -> None:
    """Put ended jobs into the store of a stopped emulator: running them is not what is measured."""
    store = Store(home / "sagemaker.db")
    with store.batch():
        for n in range(count):
            name = job_name(n)
            store.put("training-job", name, {
                "TrainingJobName": name, "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:000000000000:training-job/{name}",
                "TrainingJobStatus": "Completed", "SecondaryStatus": "Completed", "CreationTime": 1.7e9 + n,
                "LastModifiedTime": 1.7e9 + n, "ModelArtifacts": {"S3ModelArtifacts": "s3://b/k"},
                "StoppingCondition": {"MaxRuntimeInSeconds": 60}, "SecondaryStatusTransitions": [], "_offset": 0,
                "HyperParameters": {f"p{i}": "v" for i in range(20)},
            })  # fmt: skip
    store.close()


def endpoint_name(number: int) -> str:
    return f"bench-{number}"


def serve(cloud: Cloud, count: int) -> None:
    """Endpoints with a tiny server each; returns when all are in service."""
    s3, sagemaker = cloud.client("s3"), cloud.client("sagemaker")
    data, code = io.BytesIO(), SERVER.encode()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        info = tarfile.TarInfo("code/serve.py")
        info.size = len(code)
        archive.addfile(info, io.BytesIO(code))
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=data.getvalue())
    container = {"Image": "x/vllm:1", "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
    sagemaker.create_model(ModelName="bench", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "AllTraffic", "ModelName": "bench", "InstanceType": "ml.m5.xlarge"}
    sagemaker.create_endpoint_config(
        EndpointConfigName="bench", ProductionVariants=[variant | {"InitialInstanceCount": 1}]
    )

    def with_status(status: str) -> int:
        return len(sagemaker.list_endpoints(StatusEquals=status, MaxResults=100)["Endpoints"])

    for n in range(count):
        until(lambda: with_status("Creating") < _AT_ONCE)
        sagemaker.create_endpoint(EndpointName=endpoint_name(n), EndpointConfigName="bench")
    until(lambda: with_status("Creating") == 0)
    assert with_status("InService") == count, "an endpoint failed"


def until(good: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for what gives no event."""
    deadline = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < deadline, "this takes too long"
        time.sleep(0.1)
