"""How fast the SageMaker emulator answers: start, Describe and List, a job's first line, the overhead of an invocation.

.venv/bin/python tests/benchmarks/emulator_requests.py

A local cloud of its own in a temporary folder. Requests are sent by a light client (http.client, one connection a
thread): boto3 would be the limit. With `moto_server` on the path, its Describe and List are timed beside ours.
"""

from __future__ import annotations

import http.client
import json
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import invocation_overhead

JOBS, REQUESTS, CLIENTS, INVOCATIONS = 1000, 3000, 32, 20_000
MOTO_REQUESTS = 200  # it answers some ten lists a second
ROLE = "arn:aws:iam::000000000000:role/llmtuner-execution"


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


def rate(url: str, target: str, body: bytes, requests: int = REQUESTS, threads: int = 4) -> float:
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
    together(work, [requests // threads] * threads)
    return requests / (time.perf_counter() - start)


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


def main() -> None:
    """Run everything once and print one table."""
    print(f"{'what':58} {'figure':>12}")
    with invocation_overhead.local_cloud() as (cloud, home):
        from llmtuner_local import stack
        from llmtuner_local.processes import Process

        client("s3", cloud["localstack_url"]).create_bucket(Bucket="bench")
        values = sorted(first_line(cloud) for _ in range(5))
        print(f"{'CreateTrainingJob to first line of user code, median of 5':58} {statistics.median(values):10.2f} s")
        for line in invocation_overhead.measure(cloud, home, INVOCATIONS, CLIENTS, handler_ms=20.0):
            print(line, flush=True)
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
        for operation, body in (("DescribeTrainingJob", name), ("ListTrainingJobs", b"{}")):
            found = rate(url, f"SageMaker.{operation}", body, MOTO_REQUESTS)
            print(f"{f'moto_server: {operation}':58} {found:10.0f}/s", flush=True)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
