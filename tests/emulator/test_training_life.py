"""Time in the life of a training job: stops in every phase, spot interruptions, retries, waiting, metrics of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from emulator.conftest import BUCKET, LOG_GROUP, Cloud, archive
from llmtuner_local.emulator.faults import Faults, make
from llmtuner_local.emulator.shim.channels import download, objects
from llmtuner_local.emulator.shim.job import HaltError

SPOT = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 600},
}
# Counts its starts in a checkpoint; the first waits to be taken away, the second ends.
RESUMES = """
import pathlib, signal, sys, time
folder = pathlib.Path("/opt/ml/checkpoints")
step = folder / "step"
if step.exists():
    pathlib.Path("/opt/ml/model/starts").write_text(step.read_text() + ",again")
    sys.exit(0)
def leave(*_):
    (folder / "late").write_text("written after SIGTERM")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
step.write_text("first")
print("waiting", flush=True)
while True:
    time.sleep(0.1)  # not for long: Python 3.14 begins it even when a signal came during print
"""


@pytest.fixture
def faults(emulator: Cloud) -> Iterator[Faults]:
    found = Faults(emulator.home)
    yield found
    found.clear()


def statuses(job: dict[str, Any]) -> list[str]:
    return [item["Status"] for item in job["SecondaryStatusTransitions"]]


def test_interrupted_spot_job_goes_on_from_its_checkpoint(emulator: Cloud) -> None:
    checkpoints = {"S3Uri": f"s3://{BUCKET}/spot/{emulator.name()}"}
    name = emulator.train(RESUMES, CheckpointConfig=checkpoints, **SPOT)
    emulator.await_line(name, "waiting")
    (emulator.home / "jobs" / name / "interrupt").touch()
    job = emulator.ended(name)
    assert statuses(job) == [
        *["Starting", "Downloading", "Training", "Interrupted"],
        *["Starting", "Downloading", "Training", "Uploading", "Completed"],
    ]
    assert archive(emulator, job) == {"starts": b"first,again"}
    late = emulator.s3.get_object(Bucket=BUCKET, Key=f"{checkpoints['S3Uri'].split('/', 3)[3]}/late")["Body"].read()
    assert late == b"written after SIGTERM"
    streams = emulator.logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
    assert len(streams) == 2
    assert 1 <= job["BillableTimeInSeconds"] < job["TrainingTimeInSeconds"]


def test_spot_fault_interrupts_by_itself_and_without_checkpoints_all_begins_again(
    emulator: Cloud, faults: Faults
) -> None:
    name = emulator.name("spot")
    faults.set(make("spot-interruption", match=name, number=0, times=1, seconds=None))
    source = "import time; print('start', flush=True); time.sleep(0.5); open('/opt/ml/model/done', 'w').write('1')"
    job = emulator.ended(emulator.train(source, TrainingJobName=name, **SPOT))
    assert job["TrainingJobStatus"] == "Completed"
    assert statuses(job).count("Interrupted") == 1
    assert archive(emulator, job) == {"done": b"1"}


def test_spot_job_that_waits_too_long_is_stopped(emulator: Cloud, faults: Faults) -> None:
    name = emulator.name("wait")
    faults.set(make("slow-start", match=name, number=60, times=1, seconds=None))
    spot = SPOT | {"StoppingCondition": {"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1}}
    job = emulator.ended(emulator.train("print('never')", TrainingJobName=name, **spot))
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")
    assert statuses(job) == ["Starting", "MaxWaitTimeExceeded"]
    assert "TrainingStartTime" not in job
    assert "BillableTimeInSeconds" not in job


@pytest.mark.parametrize(("retries", "status"), [(1, "Completed"), (0, "Failed")])
def test_error_of_the_service_is_retried_as_often_as_asked(
    emulator: Cloud, faults: Faults, retries: int, status: str
) -> None:
    name = emulator.name("retry")
    faults.set(make("internal-error", match=name, number=0, times=1, seconds=None))
    strategy = {"RetryStrategy": {"MaximumRetryAttempts": retries}} if retries else {}
    job = emulator.ended(emulator.train("import time; time.sleep(0.5)", TrainingJobName=name, **strategy))
    assert job["TrainingJobStatus"] == status
    assert statuses(job).count("Restarting") == retries
    if not retries:
        reason = "InternalServerError: We encountered an internal error. Please try again."
        assert job["FailureReason"] == reason


def test_job_without_capacity_fails_as_on_aws(emulator: Cloud, faults: Faults) -> None:
    name = emulator.name("capacity")
    faults.set(make("capacity", match=name, number=None, times=1, seconds=None))
    job = emulator.ended(emulator.train("print('never')", TrainingJobName=name))
    assert job["FailureReason"].startswith("CapacityError: Unable to provision requested ML compute capacity")
    starting = job["SecondaryStatusTransitions"][0]
    assert starting["StatusMessage"].startswith("Insufficient capacity error from EC2 while launching instances")


def test_stop_while_starting_ends_at_once_and_costs_nothing(emulator: Cloud, faults: Faults) -> None:
    name = emulator.name("slow")
    faults.set(make("slow-start", match=name, number=60, times=1, seconds=None))
    emulator.train("print('never')", TrainingJobName=name)
    emulator.until(
        lambda: emulator.describe(name)["SecondaryStatusTransitions"][0]["StatusMessage"],
        lambda text: text == "Launching requested ML instances",
    )
    started = time.monotonic()
    emulator.sagemaker.stop_training_job(TrainingJobName=name)
    job = emulator.ended(name)
    assert time.monotonic() - started < 10
    assert statuses(job) == ["Starting", "Stopped"]
    assert "BillableTimeInSeconds" not in job


def test_stop_ends_a_download_at_once(emulator: Cloud, tmp_path: Path) -> None:
    for number in range(40):
        emulator.put(f"halt/{number:02}", "x")
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) > 5:
            raise HaltError("stop")

    with pytest.raises(HaltError):
        download(emulator.s3, objects(emulator.s3, f"s3://{BUCKET}/halt/"), tmp_path, check)
    assert len(list(tmp_path.iterdir())) < 6


def test_checkpoint_that_the_job_deletes_is_deleted_in_s3_and_odd_files_do_no_harm(emulator: Cloud) -> None:
    prefix = f"mirror/{emulator.name()}"
    emulator.put(f"{prefix}/step-1/weights", "old")
    source = """
import os, pathlib, shutil
folder = pathlib.Path("/opt/ml/checkpoints")
shutil.rmtree(folder / "step-1")
(folder / "step-2").mkdir()
(folder / "step-2" / "weights.tmp").write_text("half")
os.rename(folder / "step-2" / "weights.tmp", folder / "step-2" / "weights")
(folder / "latest").symlink_to("step-2")
"""
    job = emulator.ended(emulator.train(source, CheckpointConfig={"S3Uri": f"s3://{BUCKET}/{prefix}"}))
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    found = emulator.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    assert [item["Key"] for item in found] == [f"{prefix}/step-2/weights"]


def test_uncompressed_and_encrypted_results(emulator: Cloud) -> None:
    key = emulator.kms.create_key()["KeyMetadata"]["Arn"]
    output = {"S3OutputPath": f"s3://{BUCKET}/out", "CompressionType": "NONE", "KmsKeyId": key}
    source = """
import pathlib
pathlib.Path("/opt/ml/model/deep").mkdir()
pathlib.Path("/opt/ml/model/deep/w").write_text("1")
pathlib.Path("/opt/ml/output/data/report.txt").write_text("2")
"""
    job = emulator.ended(emulator.train(source, OutputDataConfig=output))
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    prefix = f"out/{job['TrainingJobName']}/output/"
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/{prefix}model/"
    found = {
        item["Key"].removeprefix(prefix): emulator.s3.head_object(Bucket=BUCKET, Key=item["Key"])["SSEKMSKeyId"]
        for item in emulator.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    }
    assert found == {"model/deep/w": key, "data/report.txt": key}


def test_use_of_the_machine_is_in_cloudwatch(emulator: Cloud) -> None:
    source = """
import time
open("/opt/ml/model/big", "wb").write(b"x" * (20 << 20))
until = time.time() + 3
while time.time() < until: pass
"""
    name = emulator.train(source)
    emulator.ended(name)
    now = datetime.now(UTC)

    def highest(metric: str) -> float:
        found = emulator.cloudwatch.get_metric_statistics(
            Namespace=LOG_GROUP,
            MetricName=metric,
            Dimensions=[{"Name": "Host", "Value": f"{name}/algo-1"}],
            StartTime=now - timedelta(hours=1),
            EndTime=now + timedelta(hours=1),
            Period=86400,
            Statistics=["Maximum"],
        )["Datapoints"]
        return max(item["Maximum"] for item in found)

    assert highest("CPUUtilization") > 5
    assert highest("MemoryUtilization") > 0
    assert highest("DiskUtilization") == pytest.approx(100 * 20 / 10240, rel=0.1)
