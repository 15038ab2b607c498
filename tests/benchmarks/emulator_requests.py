"""How fast the SageMaker emulator answers: start, Describe and List, a job's first line, the overhead of an invocation.

.venv/bin/python tests/benchmarks/emulator_requests.py

A local cloud of its own in a temporary folder. Requests are sent by a light client (http.client, one connection a
thread): boto3 would be the limit. With `moto_server` on the path, its Describe and List are timed beside ours.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import statistics
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

JOBS, REQUESTS, CLIENTS, INVOCATIONS = 1000, 3000, 32, 20_000
ROLE = "arn:aws:iam::000000000000:role/llmtuner-execution"
SERVER = """
import asyncio, os
BODY = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\n\\r\\n{}"
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            for line in head.lower().split(b"\\r\\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            writer.write(BODY)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"]))
    await server.serve_forever()
asyncio.run(main())
"""


@contextmanager
def local_cloud() -> Iterator[tuple[dict[str, Any], Path]]:
    """A fresh local cloud; its addresses and home."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ |= {"LLMTUNER_HOME": folder, "LLMTUNER_LOCALSTACK_PORT": "0", "LLMTUNER_SAGEMAKER_PORT": "0"}
        command = [sys.executable, "-m", "llmtuner_local"]
        up = subprocess.run([*command, "up", "--json"], capture_output=True, text=True, check=True)
        try:
            yield json.loads(up.stdout.splitlines()[-1]), home
        finally:
            subprocess.run([*command, "down"], capture_output=True, check=True)


def client(service: str, url: str) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client(service, endpoint_url=url, region_name="us-east-1", **keys)


def fill(home: Path, count: int) -> None:
    """Put finished jobs into the store of a stopped emulator: running them is not what is measured."""
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


def rate(url: str, target: str, body: bytes, threads: int = 4) -> float:
    """Requests per second of one JSON 1.1 operation."""
    host = url.removeprefix("http://")
    headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1", "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sagemaker/aws4_request, SignedHeaders=host, Signature=x"}  # fmt: skip

    def work(count: int) -> None:
        connection = http.client.HTTPConnection(host)
        for _ in range(count):
            connection.request("POST", "/", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content[:300]

    work(20)
    start = time.perf_counter()
    together(work, [REQUESTS // threads] * threads)
    return REQUESTS / (time.perf_counter() - start)


def together(work: Callable[[int], None], counts: list[int]) -> None:
    workers = [threading.Thread(target=work, args=(count,)) for count in counts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def first_line(cloud: dict[str, Any]) -> float:
    """Seconds from CreateTrainingJob to the first line of user code, by the job's own clock."""
    s3, sagemaker, logs = (client(n, cloud[k]) for n, k in (("s3", "localstack_url"), ("sagemaker", "sagemaker_url"), ("logs", "localstack_url")))  # fmt: skip
    s3.put_object(Bucket="bench", Key="code/main.py", Body=b"import time; print(time.time())")
    name = f"first-{time.time_ns()}"
    began = time.time()
    sagemaker.create_training_job(
        TrainingJobName=name,
        RoleArn=ROLE,
        AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "File", "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/main.py"]},
        InputDataConfig=[{"ChannelName": "code", "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bench/code/"}}}],
        OutputDataConfig={"S3OutputPath": "s3://bench/out"},
        ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )  # fmt: skip
    while sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] == "InProgress":
        time.sleep(0.05)
    group = "/aws/sagemaker/TrainingJobs"
    stream = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=name)["logStreams"][0]["logStreamName"]
    event = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True)["events"][0]
    return float(event["message"]) - began


def endpoint(cloud: dict[str, Any]) -> str:
    s3, sagemaker = client("s3", cloud["localstack_url"]), client("sagemaker", cloud["sagemaker_url"])
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        info = tarfile.TarInfo("code/serve.py")
        source = SERVER.encode()
        # A bare server: GET /ping and POST /invocations both get the same answer.
        info.size = len(source)
        archive.addfile(info, io.BytesIO(source))
    s3.put_object(Bucket="bench", Key="model.tar.gz", Body=data.getvalue())
    container = {"Image": "x/vllm:1", "ModelDataUrl": "s3://bench/model.tar.gz"}
    sagemaker.create_model(ModelName="bench", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": "bench",
        "InstanceType": "ml.g5.xlarge",
        "InitialInstanceCount": 1,
    }
    sagemaker.create_endpoint_config(EndpointConfigName="bench", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="bench", EndpointConfigName="bench")
    while (status := sagemaker.describe_endpoint(EndpointName="bench")["EndpointStatus"]) == "Creating":
        time.sleep(0.1)
    assert status == "InService", status
    return "/endpoints/bench/invocations"


def latencies(url: str, path: str, total: int, clients: int) -> list[float]:
    """Seconds of each invocation, sorted; any answer but 200 ends the benchmark."""
    host, found = url.removeprefix("http://"), []

    def work(count: int) -> None:
        connection = http.client.HTTPConnection(host)
        mine = []
        for _ in range(count):
            start = time.perf_counter()
            connection.request("POST", path, b"{}", {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            mine.append(time.perf_counter() - start)
            assert answer.status == 200
        found.extend(mine)

    together(work, [total // clients] * clients)
    assert len(found) == total // clients * clients, "an invocation failed"
    return sorted(found)


def main() -> None:
    """Run everything once and print one table."""
    print(f"{'what':58} {'figure':>12}")
    with local_cloud() as (cloud, home):
        from llmtuner_local import stack
        from llmtuner_local.processes import Process

        client("s3", cloud["localstack_url"]).create_bucket(Bucket="bench")
        values = sorted(first_line(cloud) for _ in range(5))
        print(f"{'CreateTrainingJob to first line of user code, median of 5':58} {statistics.median(values):10.2f} s")
        path = endpoint(cloud)
        one = latencies(cloud["sagemaker_url"], path, 1000, 1)
        print(f"{'InvokeEndpoint, 1 client: p50 / p99':58} {one[500] * 1e3:5.1f} / {one[990] * 1e3:.1f} ms")
        many = latencies(cloud["sagemaker_url"], path, INVOCATIONS, CLIENTS)
        p50, p99 = many[len(many) // 2], many[int(len(many) * 0.99)]
        print(
            f"{f'InvokeEndpoint, {CLIENTS} clients, {len(many)} requests: p50 / p99':58} {p50 * 1e3:5.1f} / {p99 * 1e3:.1f} ms"
        )
        process = Process.of(json.loads((home / "local.json").read_text())["emulator"])
        assert process
        process.stop(10)
        fill(home, JOBS)
        start = time.perf_counter()
        cloud = stack.up()
        print(f"{'start of the emulator to ready':58} {time.perf_counter() - start:10.2f} s")
        name = json.dumps({"TrainingJobName": "filled-00500"}).encode()
        describe = rate(cloud["sagemaker_url"], "SageMaker.DescribeTrainingJob", name)
        listing = rate(cloud["sagemaker_url"], "SageMaker.ListTrainingJobs", b"{}")
        print(f"{f'DescribeTrainingJob with {JOBS} jobs':58} {describe:10.0f}/s")
        print(f"{f'ListTrainingJobs with {JOBS} jobs':58} {listing:10.0f}/s")
        found = Process.of(json.loads((home / "local.json").read_text())["emulator"])
        assert found
        memory = found.find()
        assert memory
        print(f"{'memory of the emulator':58} {memory.memory_info().rss / 1e6:10.0f} MB")
    if server := shutil.which("moto_server"):
        moto(server)


def answers(url: str) -> bool:
    try:
        http.client.HTTPConnection(url.removeprefix("http://"), timeout=1).request("GET", "/moto-api/")
    except OSError:
        return False
    return True


def moto(server: str) -> None:
    """The same two calls on moto_server with as many jobs."""
    process = subprocess.Popen([server, "-p", "5999"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = "http://127.0.0.1:5999"
        while process.poll() is None and not answers(url):
            time.sleep(0.1)
        if process.poll() is not None:
            print("moto_server does not start here: pip install 'moto[server]' into this environment to compare")
            return
        sagemaker = client("sagemaker", url)
        for n in range(JOBS):
            sagemaker.create_training_job(
                TrainingJobName=f"filled-{n:05d}", RoleArn=ROLE,
                AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "File"},
                OutputDataConfig={"S3OutputPath": "s3://b"}, StoppingCondition={"MaxRuntimeInSeconds": 60},
                ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
            )  # fmt: skip
        name = json.dumps({"TrainingJobName": "filled-00500"}).encode()
        print(f"{'moto_server: DescribeTrainingJob':58} {rate(url, 'SageMaker.DescribeTrainingJob', name):10.0f}/s")
        print(f"{'moto_server: ListTrainingJobs':58} {rate(url, 'SageMaker.ListTrainingJobs', b'{}'):10.0f}/s")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
