"""Clients of one running local cloud, and short ways to make jobs and endpoints in it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from botocore.config import Config
from llmtuner_local.emulator.store import Store
from llmtuner_local.processes import PidFile, free_port, stop_together
from ways import need_namespaces

from llmtuner_kit import aws as aws_module

ROLE = "arn:aws:iam::000000000000:role/llmtuner-execution"
BUCKET = "emulator-tests"
LOG_GROUP = "/aws/sagemaker/TrainingJobs"


@dataclass
class Cloud:
    """boto3 clients and helpers; every name is new."""

    on_engine: ClassVar[bool] = False  # its containers are those of a Docker engine
    home: Path
    sagemaker: Any
    runtime: Any
    s3: Any
    logs: Any
    cloudwatch: Any
    kms: Any
    scaling: Any = None
    url: str = ""

    def name(self, prefix: str = "job") -> str:
        return f"{prefix}-{uuid.uuid4().hex[:10]}"

    def put(self, key: str, body: str | bytes) -> str:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def script(self, source: str) -> str:
        """Store a program as a code channel; the URI of its prefix."""
        if not self.on_engine and "/opt/ml" in source and "SAGEMAKER_BASE_DIR" not in source:
            need_namespaces()  # paths are mapped in what a request says, not in a program
        prefix = f"code/{uuid.uuid4().hex}/"
        self.put(prefix + "main.py", source)
        return f"s3://{BUCKET}/{prefix}"

    def request(self, source: str, **overrides: Any) -> dict[str, Any]:
        """A CreateTrainingJob request that runs a program."""
        name = overrides.pop("TrainingJobName", None) or self.name()
        channels = [channel("code", self.script(source)), *overrides.pop("channels", [])]
        algorithm = {
            "TrainingImage": "example/training:1",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/main.py"],
        } | overrides.pop("AlgorithmSpecification", {})
        return {
            "TrainingJobName": name,
            "RoleArn": ROLE,
            "AlgorithmSpecification": algorithm,
            "InputDataConfig": channels,
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
            **overrides,
        }

    def train(self, source: str, **overrides: Any) -> str:
        request = self.request(source, **overrides)
        self.sagemaker.create_training_job(**request)
        return str(request["TrainingJobName"])

    def describe(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.sagemaker.describe_training_job(TrainingJobName=name)
        return found

    def ended(self, name: str) -> dict[str, Any]:
        return self.until(
            lambda: self.describe(name), lambda job: job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped")
        )

    def log(self, name: str) -> list[str]:
        streams = self.logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
        lines = []
        for stream in streams:
            events = self.logs.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
            lines += [item["message"] for item in events]
        return lines

    def await_line(self, name: str, text: str) -> None:
        self.until(lambda: self._lines_so_far(name), lambda lines: any(text in line for line in lines))

    def _lines_so_far(self, name: str) -> list[str]:
        try:
            return self.log(name)
        except self.logs.exceptions.ResourceNotFoundException:
            return []

    @staticmethod
    def until(look: Callable[[], Any], good: Callable[[Any], bool], seconds: float = 90) -> Any:
        """Look until it is good; the services offer no event to wait for. The longer it takes, the rarer the looks."""
        began = time.monotonic()
        while True:
            found = look()
            if good(found):
                return found
            waited = time.monotonic() - began
            assert waited < seconds, f"not in {seconds} s: {found}"
            time.sleep(min(0.5, 0.05 + waited / 20))


def channel(name: str, uri: str, **more: Any) -> dict[str, Any]:
    """One S3Prefix channel."""
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"} | more
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def archive(emulator: Cloud, job: dict[str, Any]) -> dict[str, bytes]:
    """The files in the model archive of a described job."""
    return members(emulator, job["ModelArtifacts"]["S3ModelArtifacts"])


def members(emulator: Cloud, uri: str) -> dict[str, bytes]:
    """The files in an archive in the tests' bucket."""
    data = emulator.s3.get_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/"))["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return {item.name: opened.extractfile(item).read() for item in opened if item.isfile()}  # type: ignore[union-attr]


LIMITS = {
    "ping_seconds": 0.3, "invocation_seconds": 2, "stream_seconds": 2, "flush_seconds": 0.3, "metrics_seconds": 0.5,
    "scaling_window_seconds": 3, "high_resolution_window_seconds": 2, "alarm_seconds": 0.3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def stores_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test opens in its own process is closed at its end: since Python 3.13 an open database is warned of."""
    opened: list[Store] = []
    connect = Store.__init__

    def remember(store: Store, path: Path) -> None:
        connect(store, path)
        opened.append(store)

    monkeypatch.setattr(Store, "__init__", remember)
    yield
    for store in opened:
        store.close()


@pytest.fixture(scope="session")
def quick_home(cloud_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """(home, address) of one more emulator on the session's LocalStack, with short times."""
    home, port = tmp_path_factory.mktemp("quick"), free_port()
    process = start_emulator(home, port, cloud_home)
    yield home, f"http://127.0.0.1:{port}"
    assert process.poll() is None, (home / "log").read_text()[-3000:]
    process.terminate()
    process.wait(10)
    supervisors = [PidFile(path).process() for path in home.glob("endpoints/*/*/*/supervisor.pid")]
    stop_together([item for item in supervisors if item], 5)


def start_emulator(home: Path, port: int, cloud_home: Path) -> subprocess.Popen[bytes]:
    """One more emulator that answers, with short times, on the LocalStack of a running cloud."""
    url = json.loads((cloud_home / "local.json").read_text())["localstack_url"]
    command = [sys.executable, "-m", "llmtuner_local.emulator", "--home", str(home), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment["LLMTUNER_LIMITS"] = json.dumps(LIMITS)
    with (home / "log").open("ab") as log:
        process = subprocess.Popen([*command, "--localstack-url", url], env=environment, stdout=log, stderr=log)
    Cloud.until(lambda: port_answers(port), bool)
    return process


def port_answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def quick(emulator: Cloud, quick_home: tuple[Path, str]) -> Cloud:
    """Clients of the emulator with short times."""
    return clients_of(emulator, *quick_home)


def clients_of(emulator: Cloud, home: Path, url: str) -> Cloud:
    """The clients of one more emulator on the same LocalStack."""
    session = aws_module.connect("local").session
    keys = {"endpoint_url": url, "config": Config(retries={"max_attempts": 0})}
    names = ("sagemaker", "sagemaker-runtime", "application-autoscaling")
    sagemaker, runtime, scaling = (session.client(name, **keys) for name in names)
    return replace(emulator, home=home, url=url, sagemaker=sagemaker, runtime=runtime, scaling=scaling)


@pytest.fixture
def emulator(cloud: Path) -> Cloud:
    return clients(cloud)


def clients(home: Path) -> Cloud:
    """Clients of the local cloud in LLMTUNER_HOME, and the tests' bucket."""
    connection = aws_module.connect("local")
    made = Cloud(
        home,
        connection.client("sagemaker"),
        connection.client("sagemaker-runtime"),
        connection.client("s3"),
        connection.client("logs"),
        connection.client("cloudwatch"),
        connection.client("kms"),
    )
    if BUCKET not in {item["Name"] for item in made.s3.list_buckets()["Buckets"]}:
        made.s3.create_bucket(Bucket=BUCKET)
    return made
