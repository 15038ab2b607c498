"""How many Describe and List calls a second the SageMaker emulator answers, beside moto_server. Part of emulator.py.

Both get the same calls from the same light client (http.client, one connection a thread): boto3 would be the limit.
moto_server lives in an environment of its own in the cache, made once.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from emulator_cloud import ROLE, SIGNATURE, client, job_name, until
from llmtuner_local.home import cache_folder
from llmtuner_local.processes import free_port

MOTO = "5.2.5"
_THREADS = 4


def rate(url: str, operation: str, request: dict[str, Any], requests: int, seconds: float = 15) -> float:
    """Requests per second of one operation; stops early on a slow server. Any answer but 200 ends the benchmark."""
    host, body = url.removeprefix("http://"), json.dumps(request).encode()
    headers = {
        "X-Amz-Target": f"SageMaker.{operation}",
        "Content-Type": "application/x-amz-json-1.1",
        "Authorization": SIGNATURE,
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
    workers = [threading.Thread(target=work, args=(requests // _THREADS,)) for _ in range(_THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(done) == _THREADS, "a request failed"
    return sum(done) / (time.perf_counter() - start)


def both(url: str, requests: int) -> tuple[float, float]:
    """Describe and List calls a second."""
    describe = rate(url, "DescribeTrainingJob", {"TrainingJobName": job_name(100)}, requests)
    return describe, rate(url, "ListTrainingJobs", {"MaxResults": 10}, requests)  # a page as AWS makes it unasked


def moto_python() -> Path:
    """The Python of moto's own environment in the cache."""
    folder = cache_folder() / f"moto-{MOTO}"
    if not (folder / ".complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"moto[server]=={MOTO}"]
        subprocess.run([*install, "--disable-pip-version-check"], check=True)
        (folder / ".complete").touch()
    return folder / "bin" / "python"


def moto(jobs: int, requests: int) -> tuple[float, float]:
    """The same two calls on moto_server with as many jobs."""
    port = free_port()
    command = [str(moto_python()), "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _answers(url))
        sagemaker = client("sagemaker", url)
        for n in range(jobs):
            sagemaker.create_training_job(
                TrainingJobName=job_name(n), RoleArn=ROLE,
                AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "File", "MetricDefinitions": []},
                OutputDataConfig={"S3OutputPath": "s3://b"}, StoppingCondition={"MaxRuntimeInSeconds": 60},
                ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
                HyperParameters={f"p{i}": "v" for i in range(20)},
            )  # fmt: skip
        return both(url, requests)
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
