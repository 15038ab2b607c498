"""kill -9 at any moment: what was acknowledged is there after `up`, and nothing is left behind.

A seeded run over the journey of `journey.py`; the seed is printed, and `KILL_SEED` and `KILL_MOMENTS` change the run.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from emulator.conftest import BUCKET, Cloud
from emulator.journey import GROUP, STREAM, CutOffError, Job, Journey, model_of
from llmtuner_local import servers, stack
from llmtuner_local.emulator import supervisors
from llmtuner_local.emulator.containers.process import MARK
from llmtuner_local.emulator.shim import journal
from llmtuner_local.processes import PID_FILE, PidFile, Process, marked

SEED = int(os.environ.get("KILL_SEED", "20261125"))
MOMENTS = int(os.environ.get("KILL_MOMENTS", "20"))
TARGETS = {"emulator": 8, "supervisor": 5, "container": 2, "localstack": 2, "everything": 3}
TERMINAL = ("Completed", "Failed", "Stopped")


def clients(home: Path, found: dict[str, Any]) -> Cloud:
    config = Config(retries={"total_max_attempts": 1}, read_timeout=60, s3={"addressing_style": "path"})

    def client(service: str, url: str = found["localstack_url"]) -> Any:
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        return boto3.client(service, endpoint_url=url, region_name=found["region"], config=config, **keys)

    sagemaker = [client(name, found["sagemaker_url"]) for name in ("sagemaker", "sagemaker-runtime")]
    return Cloud(home, *sagemaker, *map(client, ("s3", "logs", "cloudwatch", "kms")))


def quiet_port() -> str:
    """A port below those that other tests' servers and connections draw from: it must still be free after a kill."""
    for port in random.SystemRandom().sample(range(18_000, 20_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return str(port)
    raise AssertionError("no free port")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("LOCALSTACK", "SAGEMAKER"):
        monkeypatch.setenv(f"LLMTUNER_{name}_PORT", quiet_port())
    yield Path(os.environ["LLMTUNER_HOME"])
    stack.down()


class Killer:
    """Ends processes of one home with SIGKILL, and notes which jobs that hits."""

    def __init__(self, home: Path, draw: random.Random, journey: Journey) -> None:
        self.home, self.draw, self.journey = home, draw, journey

    def kill(self, target: str) -> str:
        """What was killed, in words."""
        supervised = self._supervisors()
        if target in ("emulator", "localstack"):
            self._end([getattr(servers, f"{target}_pid")(self.home).process()])
        elif target == "everything":
            pids = [servers.emulator_pid(self.home), servers.localstack_pid(self.home)]
            self._hit(*supervised)
            self._end([*supervised.values(), *(file.process() for file in pids)])
        elif places := sorted(item for item in supervised if target == "supervisor" or _is_up(item)):
            folder = self.draw.choice(places)
            self._hit(folder)
            target += f" of {folder.relative_to(self.home)}"
            if target.startswith("supervisor"):
                self._end([supervised[folder]])
            elif outer := [process for process, _ in marked(MARK, folder)]:
                outer[0].kill()
        return target

    def _supervisors(self) -> dict[Path, Process]:
        found = {}
        for pattern in supervisors.FOLDERS:
            for file in self.home.glob(f"{pattern}/{PID_FILE}"):
                if process := PidFile(file).process():
                    found[file.parent] = process
        return found

    def _hit(self, *folders: Path) -> None:
        for folder in folders:
            if folder.parent.name == "jobs":
                self.journey.ledger.jobs[folder.name].hit = True

    @staticmethod
    def _end(processes: list[Process | None]) -> None:
        for process in processes:
            if process:
                os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(process and process.alive for process in processes):
            assert time.monotonic() < deadline
            time.sleep(0.005)


def _is_up(folder: Path) -> bool:
    """A job, or an instance that has been healthy: one whose container ends before that is given up, as on AWS."""
    lines, _ = journal.read(folder / "journal.jsonl")
    return folder.parent.name == "jobs" or any(line.get("state") == "InService" for line in lines)


def _serves(endpoint: dict[str, Any]) -> bool:
    """In service with an instance: one that was killed a moment ago is started again."""
    variants = endpoint.get("ProductionVariants", [])
    return endpoint["EndpointStatus"] == "InService" and all(item["CurrentInstanceCount"] for item in variants)


class Check:
    """Holds the cloud against the ledger."""

    def __init__(self, journey: Journey) -> None:
        self.cloud, self.ledger = journey.cloud, journey.ledger

    def all(self) -> None:
        self.objects()
        self.lines()
        self.resources()
        self.endpoints()
        for name, job in self.ledger.jobs.items():
            if not job.ended:
                self.job(name, job)
        self.ledger.unsure.clear()

    def objects(self) -> None:
        pages = self.cloud.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        found = {item["Key"] for page in pages for item in page.get("Contents", [])}
        for key, body in {key: None for kind, key in self.ledger.unsure if kind == "object"}.items():
            # The old or the new, but whole: what it is now is what it has to stay.
            self.ledger.objects[key] = body if key not in found else self.body(key)
        for key, body in self.ledger.objects.items():
            assert (key in found) == (body is not None), key
            assert body is None or self.body(key) == body, key
        for key, (upload, tags) in list(self.ledger.parts.items()):
            parts = self.cloud.s3.list_parts(Bucket=BUCKET, Key=key, UploadId=upload).get("Parts", [])
            stored = [part["ETag"] for part in parts]
            assert stored[: len(tags)] == tags
            if ("part", key) in self.ledger.unsure:
                self.ledger.parts[key] = (upload, stored)

    def body(self, key: str) -> bytes:
        found: bytes = self.cloud.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return found

    def lines(self) -> None:
        events = self.cloud.logs.get_log_events(logGroupName=GROUP, logStreamName=STREAM, startFromHead=True)["events"]
        found = [item["message"] for item in events]
        unsure = {text for kind, text in self.ledger.unsure if kind == "lines"}
        assert [text for text in found if text not in unsure] == self.ledger.lines
        self.ledger.lines = found

    def resources(self) -> None:
        client = self.cloud.sagemaker
        for name in self.ledger.models:
            assert client.describe_model(ModelName=name)["ModelName"] == name
        for name in self.ledger.configs:
            assert client.describe_endpoint_config(EndpointConfigName=name)["EndpointConfigName"] == name
        for arn, tags in self.ledger.tags.items():
            found = {item["Key"]: item["Value"] for item in client.list_tags(ResourceArn=arn)["Tags"]}
            for key, value in tags.items():
                if ("tag", f"{arn} {key}") in self.ledger.unsure:
                    tags[key] = found[key]
                else:
                    assert found[key] == value

    def endpoints(self) -> None:
        for name, config in self.ledger.endpoints.items():
            found = self.endpoint(name)
            if ("endpoint", name) in self.ledger.unsure:
                alive = found is not None and found["EndpointStatus"] != "Deleting"
                self.ledger.endpoints[name] = found["EndpointConfigName"] if found and alive else ""
            elif config:
                assert found, f"{name} is gone"
                assert found["EndpointStatus"] in ("Creating", "InService", "Updating"), found
            else:
                assert found is None or found["EndpointStatus"] == "Deleting", found

    def endpoint(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.cloud.sagemaker.describe_endpoint(EndpointName=name)
        except ClientError as error:
            if "Could not find" not in str(error):
                raise
            return None
        return found

    def job(self, name: str, job: Job) -> None:
        try:
            found = self.cloud.describe(name)
        except ClientError as error:
            if job.acknowledged or "not found" not in str(error):
                raise
            job.ended = "never"
            return
        job.acknowledged = True  # it is there: from now on it stays
        status = found["TrainingJobStatus"]
        arn = found["TrainingJobArn"]
        assert self.cloud.sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "kind", "Value": name.split("-")[0]}]
        if status not in TERMINAL:
            return
        job.ended = status
        told = (name, status, found.get("FailureReason"))
        if status == "Failed":
            assert job.hit, told
            assert found["FailureReason"].startswith(("InternalServerError", "AlgorithmError: , exit code: 137")), told
        elif status == "Stopped":
            assert job.stopped, told
            if "Uploading" in [item["Status"] for item in found["SecondaryStatusTransitions"]]:  # it had begun to run
                assert self.body(f"out/{name}/output/model.tar.gz")
        else:
            assert model_of(self.cloud, name) == name
            lines = self.cloud.log(name)
            assert lines == [f"line {n}" for n in range(job.lines or 0)], (name, lines)


def run_until(journey: Journey, ends: threading.Event, problems: list[Exception]) -> None:
    """Take steps until told to end, or cut off."""
    try:
        while not ends.is_set():
            journey.step()
    except CutOffError:
        return
    except Exception as error:  # noqa: BLE001 - told by the test, in whose thread this is not
        problems.append(error)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_acknowledged_is_lost_at_any_moment(home: Path) -> None:
    print(f"KILL_SEED={SEED} KILL_MOMENTS={MOMENTS}")
    draw = random.Random(SEED)
    found = stack.up()
    journey = Journey(clients(home, found), draw)
    journey.begin()
    killer, check = Killer(home, draw, journey), Check(journey)
    deck = [target for target, share in TARGETS.items() for _ in range(share)]
    draw.shuffle(deck)
    for moment in range(MOMENTS):
        ends, problems = threading.Event(), []
        worker = threading.Thread(target=run_until, args=(journey, ends, problems))
        worker.start()
        ends.wait(draw.uniform(0.02, 0.6))
        words = killer.kill(deck[moment % len(deck)])
        ends.set()
        worker.join()
        assert not problems, problems
        print(f"{moment}: {words}")
        assert stack.up() == found
        check.all()
    finish(home, journey, check)


def finish(home: Path, journey: Journey, check: Check) -> None:
    """Everything that was not hit comes to its end; then nothing is left but the state."""
    for name, job in journey.ledger.jobs.items():
        if not job.ended:
            if job.lines is None and not job.stopped:
                job.stopped = True
                journey.cloud.sagemaker.stop_training_job(TrainingJobName=name)
            journey.cloud.ended(name)
            check.job(name, job)
    for name, config in journey.ledger.endpoints.items():
        if config:
            found = Cloud.until(lambda name=name: check.endpoint(name), _serves)
            assert found["EndpointConfigName"] == config
            assert journey.cloud.runtime.invoke_endpoint(EndpointName=name, Body=b"x")["Body"].read()
            journey.cloud.sagemaker.delete_endpoint(EndpointName=name)
            journey.ledger.endpoints[name] = ""
    Cloud.until(lambda: [check.endpoint(name) for name in journey.ledger.endpoints], lambda found: not any(found))
    check.all()
    assert not marked(MARK, home)
    assert not list(home.glob("jobs/*/opt-ml"))
    assert not list(home.glob("endpoints/*/*/*"))
    files = list((home / "s3" / "objects").glob("*/*"))
    stack.down()
    assert str(home) not in Path("/proc/mounts").read_text()
    for process in psutil.process_iter(["cmdline"]):
        assert str(home) not in " ".join(process.info["cmdline"] or []), process
    assert len(files) < 2 * len(journey.ledger.objects) + 3 * len(journey.ledger.jobs) + 20
