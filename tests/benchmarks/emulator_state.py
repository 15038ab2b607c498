"""The emulator with much in its state folder: 50 endpoints that serve tiny models and 200 jobs that have run.

.venv/bin/python tests/benchmarks/emulator_state.py

Prints start to ready, memory at rest, CPU at rest and Describe/List rates, empty and full, side by side. Everything
in the full state is real: jobs have run as processes, every endpoint has a living server.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emulator_requests import ROLE, SERVER, client, local_cloud, rate

ENDPOINTS, JOBS, AT_ONCE = 50, 200, 4
REST_SECONDS = 10


def until(good: Callable[[], bool]) -> None:
    while not good():
        time.sleep(0.2)


def run_jobs(cloud: dict[str, Any], count: int) -> None:
    s3, sagemaker = client("s3", cloud["localstack_url"]), client("sagemaker", cloud["sagemaker_url"])
    s3.put_object(Bucket="bench", Key="code/main.py", Body=b"print('hello')")
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://bench/code/"}

    def running() -> int:
        found = sagemaker.list_training_jobs(StatusEquals="InProgress", MaxResults=100)["TrainingJobSummaries"]
        return len(found)

    for n in range(count):
        until(lambda: running() < AT_ONCE)
        sagemaker.create_training_job(
            TrainingJobName=f"job-{n:03d}",
            RoleArn=ROLE,
            AlgorithmSpecification={
                "TrainingImage": "x",
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/main.py"],
            },
            InputDataConfig=[{"ChannelName": "code", "DataSource": {"S3DataSource": source}}],
            OutputDataConfig={"S3OutputPath": "s3://bench/out"},
            ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
            StoppingCondition={"MaxRuntimeInSeconds": 600},
        )
    until(lambda: running() == 0)


def run_endpoints(cloud: dict[str, Any], count: int) -> None:
    import io
    import tarfile

    s3, sagemaker = client("s3", cloud["localstack_url"]), client("sagemaker", cloud["sagemaker_url"])
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        info = tarfile.TarInfo("code/serve.py")
        info.size = len(SERVER)
        archive.addfile(info, io.BytesIO(SERVER.encode()))
    s3.put_object(Bucket="bench", Key="model.tar.gz", Body=data.getvalue())
    container = {"Image": "x/vllm:1", "ModelDataUrl": "s3://bench/model.tar.gz"}
    sagemaker.create_model(ModelName="bench", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "v", "ModelName": "bench", "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="bench", ProductionVariants=[variant])
    for n in range(count):
        until(lambda: len(sagemaker.list_endpoints(StatusEquals="Creating", MaxResults=100)["Endpoints"]) < AT_ONCE)
        sagemaker.create_endpoint(EndpointName=f"ep-{n:02d}", EndpointConfigName="bench")
    all_serve(cloud, count)


def all_serve(cloud: dict[str, Any], count: int) -> None:
    sagemaker = client("sagemaker", cloud["sagemaker_url"])
    until(lambda: len(sagemaker.list_endpoints(StatusEquals="InService", MaxResults=100)["Endpoints"]) == count)


def measure(home: Path, *, full: bool) -> dict[str, str]:
    """Kill and start the emulator, let it rest, and ask it."""
    from llmtuner_local import servers, stack

    process = servers.emulator_pid(home).process()
    assert process
    process.stop(0)
    began = time.perf_counter()
    cloud = stack.up()
    ready = time.perf_counter() - began
    time.sleep(2)
    process = servers.emulator_pid(home).process()
    found = process.find() if process else None
    assert found
    used = sum(found.cpu_times()[:2])
    time.sleep(REST_SECONDS)
    share = (sum(found.cpu_times()[:2]) - used) / REST_SECONDS
    url = cloud["sagemaker_url"]
    rates = {
        "DescribeTrainingJob": ("DescribeTrainingJob", {"TrainingJobName": "job-000"}),
        "ListTrainingJobs": ("ListTrainingJobs", {}),
        "DescribeEndpoint": ("DescribeEndpoint", {"EndpointName": "ep-00"}),
        "ListEndpoints": ("ListEndpoints", {}),
    }
    figures = {
        "start to ready": f"{ready:.2f} s",
        "memory at rest": f"{found.memory_info().rss / 1e6:.0f} MB",
        "CPU at rest": f"{share:.1%}",
    }
    for name, (operation, body) in rates.items():
        known = full or operation.startswith("List")
        figures[name] = f"{rate(url, f'SageMaker.{operation}', json.dumps(body).encode()):.0f}/s" if known else "-"
    figures["memory after these requests"] = f"{found.memory_info().rss / 1e6:.0f} MB"
    return figures


def main() -> None:
    """Fill a state folder for real and print one table."""
    endpoints, jobs = (int(item) for item in sys.argv[1:3]) if len(sys.argv) > 2 else (ENDPOINTS, JOBS)
    with local_cloud() as (cloud, home):
        client("s3", cloud["localstack_url"]).create_bucket(Bucket="bench")
        empty = measure(home, full=False)
        run_jobs(cloud, jobs)
        run_endpoints(cloud, endpoints)
        full = measure(home, full=True)
        print(f"{'':30} {'empty':>12} {f'{endpoints} endpoints, {jobs} jobs':>26}")
        for name, value in empty.items():
            print(f"{name:30} {value:>12} {full[name]:>26}")
        from llmtuner_local import stack

        began = time.perf_counter()
        stack.down()
        print(f"{'down':30} {'':>12} {time.perf_counter() - began:>24.1f} s")
        began = time.perf_counter()
        stack.up()
        print(f"{'up again':30} {'':>12} {time.perf_counter() - began:>24.1f} s")
        all_serve(cloud, endpoints)
        print(f"{'until every endpoint serves':30} {'':>12} {time.perf_counter() - began:>24.1f} s")


if __name__ == "__main__":
    main()
