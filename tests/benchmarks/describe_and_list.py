"""Start, memory, and how many Describe and List calls a second the SageMaker emulator answers, beside moto_server.

.venv/bin/python tests/benchmarks/describe_and_list.py

Both get the same calls from the same light client (http.client, one connection a thread): boto3 would be the limit.
moto_server lives in an environment of its own in the cache, made once. Two state folders: 1000 ended jobs, and 200
ended jobs with 50 endpoints that serve.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

MOTO = "5.2.5"
REQUESTS, THREADS = 4000, 4
ROLE = "arn:aws:iam::000000000000:role/llmtuner-execution"
SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sagemaker/aws4_request, SignedHeaders=host, Signature=0a"
SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""
LOCAL = [sys.executable, "-m", "llmtuner_local"]


@contextmanager
def local_cloud() -> Iterator[tuple[dict[str, Any], Path]]:
    """A fresh local cloud; its addresses and home."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LLMTUNER_HOME": folder, "LLMTUNER_LOCALSTACK_PORT": "0", "LLMTUNER_SAGEMAKER_PORT": "0"}
        try:
            yield up(), Path(folder)
        finally:
            subprocess.run([*LOCAL, "down"], capture_output=True, check=True)


def up() -> dict[str, Any]:
    done = subprocess.run([*LOCAL, "up", "--json"], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def client(service: str, url: str) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client(service, endpoint_url=url, region_name="us-east-1", **keys)


def stop_emulator(home: Path) -> None:
    from llmtuner_local.processes import Process

    process = Process.of(json.loads((home / "local.json").read_text())["emulator"])
    assert process
    process.stop(10)


def memory_mb(home: Path) -> float:
    from llmtuner_local.processes import Process

    process = Process.of(json.loads((home / "local.json").read_text())["emulator"])
    assert process
    found = process.find()
    assert found
    return float(found.memory_info().rss / 1e6)


def fill(home: Path, count: int) -> None:
    """Put ended jobs into the store of a stopped emulator: running them is not what is measured."""
    from llmtuner_local.emulator.store import Store

    store = Store(home / "sagemaker.db")
    for n in range(count):
        name = f"filled-{n:05d}"
        store.put("training-job", name, {
            "TrainingJobName": name, "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:000000000000:training-job/{name}",
            "TrainingJobStatus": "Completed", "SecondaryStatus": "Completed", "CreationTime": 1.7e9 + n,
            "LastModifiedTime": 1.7e9 + n, "ModelArtifacts": {"S3ModelArtifacts": "s3://b/k"},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60}, "SecondaryStatusTransitions": [], "_offset": 0,
            "HyperParameters": {f"p{i}": "v" for i in range(20)},
        })  # fmt: skip
    store.close()


def rate(url: str, operation: str, request: dict[str, Any], seconds: float = 30) -> float:
    """Requests per second of one operation; stops early on a slow server. Any answer but 200 ends the benchmark."""
    host, body = url.removeprefix("http://"), json.dumps(request).encode()
    headers = {
        "X-Amz-Target": f"SageMaker.{operation}",
        "Content-Type": "application/x-amz-json-1.1",
        "Authorization": SIGNED,
    }
    done: list[int] = []

    def work(count: int) -> None:
        connection = http.client.HTTPConnection(host)
        deadline, sent = time.perf_counter() + seconds, 0
        while sent < count and time.perf_counter() < deadline:
            connection.request("POST", "/", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content[:300]
            sent += 1
        connection.close()
        done.append(sent)

    work(20)
    done.clear()
    start = time.perf_counter()
    workers = [threading.Thread(target=work, args=(REQUESTS // THREADS,)) for _ in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(done) == THREADS, "a request failed"
    return sum(done) / (time.perf_counter() - start)


def both(url: str) -> tuple[float, float]:
    """Describe and List calls a second."""
    describe = rate(url, "DescribeTrainingJob", {"TrainingJobName": "filled-00100"})
    return describe, rate(url, "ListTrainingJobs", {})


def moto_python() -> Path:
    """The Python of moto's own environment in the cache."""
    from llmtuner_local.home import cache_folder

    folder = cache_folder() / f"moto-{MOTO}"
    if not (folder / ".complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"moto[server]=={MOTO}"]
        subprocess.run([*install, "--disable-pip-version-check"], check=True)
        (folder / ".complete").touch()
    return folder / "bin" / "python"


def moto(jobs: int) -> tuple[float, float]:
    """The same two calls on moto_server with as many jobs."""
    from llmtuner_local.emulator.shim.cloud import free_port

    port = free_port()
    command = [str(moto_python()), "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _await(lambda: _answers(url))
        sagemaker = client("sagemaker", url)
        for n in range(jobs):
            sagemaker.create_training_job(
                TrainingJobName=f"filled-{n:05d}", RoleArn=ROLE,
                AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "File", "MetricDefinitions": []},
                OutputDataConfig={"S3OutputPath": "s3://b"}, StoppingCondition={"MaxRuntimeInSeconds": 60},
                ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
                HyperParameters={f"p{i}": "v" for i in range(20)},
            )  # fmt: skip
        return both(url)
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=1)
    try:
        connection.request("GET", "/moto-api/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _await(good: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def serve(cloud: dict[str, Any], count: int) -> None:
    """Endpoints with a tiny server each, until all serve."""
    s3, sagemaker = client("s3", cloud["localstack_url"]), client("sagemaker", cloud["sagemaker_url"])
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        info = tarfile.TarInfo("code/serve.py")
        info.size = len(SERVER.encode())
        archive.addfile(info, io.BytesIO(SERVER.encode()))
    s3.create_bucket(Bucket="bench")
    s3.put_object(Bucket="bench", Key="model.tar.gz", Body=data.getvalue())
    container = {"Image": "x/vllm:1", "ModelDataUrl": "s3://bench/model.tar.gz"}
    sagemaker.create_model(ModelName="bench", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "AllTraffic", "ModelName": "bench", "InstanceType": "ml.m5.xlarge"}
    sagemaker.create_endpoint_config(
        EndpointConfigName="bench", ProductionVariants=[variant | {"InitialInstanceCount": 1}]
    )
    for n in range(count):
        sagemaker.create_endpoint(EndpointName=f"bench-{n}", EndpointConfigName="bench")
    pages = sagemaker.get_paginator("list_endpoints")
    _await(lambda: sum(len(page["Endpoints"]) for page in pages.paginate(StatusEquals="InService")) == count)


def row(what: str, figure: str) -> None:
    print(f"{what:58} {figure:>14}", flush=True)


def measure(jobs: int, endpoints: int) -> tuple[float, float]:
    """The rows of one state folder; its Describe and List rates."""
    what = f"{jobs} jobs" + (f" and {endpoints} endpoints" if endpoints else "")
    with local_cloud() as (cloud, home):
        stop_emulator(home)
        fill(home, jobs)
        start = time.perf_counter()
        cloud = up()
        row(f"{what}: start of the emulator, `llmtuner local up` in all", f"{time.perf_counter() - start:.2f} s")
        row(f"{what}: memory when ready", f"{memory_mb(home):.0f} MB")
        if endpoints:
            serve(cloud, endpoints)
        describe, listing = both(cloud["sagemaker_url"])
        row(f"{what}: DescribeTrainingJob", f"{describe:.0f}/s")
        row(f"{what}: ListTrainingJobs", f"{listing:.0f}/s")
        if endpoints:
            named = {"EndpointName": "bench-7"}
            row(f"{what}: DescribeEndpoint", f"{rate(cloud['sagemaker_url'], 'DescribeEndpoint', named):.0f}/s")
            row(f"{what}: ListEndpoints", f"{rate(cloud['sagemaker_url'], 'ListEndpoints', {}):.0f}/s")
        row(f"{what}: memory after the calls", f"{memory_mb(home):.0f} MB")
    return describe, listing


def main() -> None:
    """Run everything once and print one table."""
    describe, listing = measure(1000, 0)
    other, others = moto(1000)
    row(f"moto_server {MOTO}, 1000 jobs: DescribeTrainingJob", f"{other:.0f}/s")
    row(f"moto_server {MOTO}, 1000 jobs: ListTrainingJobs", f"{others:.0f}/s")
    row("ours to moto: Describe and List", f"{describe / other:.1f}x and {listing / others:.1f}x")
    measure(200, 50)


if __name__ == "__main__":
    main()
