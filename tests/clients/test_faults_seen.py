"""Bad days on command, as boto3 sees them: codes, statuses and failure reasons of AWS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, WaiterError
from clients.conftest import BUCKET, FAST, ROLE, SERVING_IMAGE, Bench, unique
from llmtuner_local.__main__ import main

Fault = Callable[..., None]
ONCE = {"retries": {"total_max_attempts": 1}}


@pytest.fixture
def fault(cloud_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    """`llmtuner local fault set ...`; all are cleared at the end."""
    monkeypatch.setenv("LLMTUNER_HOME", str(cloud_home))

    def set_fault(*arguments: str) -> None:
        assert main(["fault", "set", *arguments]) == 0

    yield set_fault
    assert main(["fault", "clear"]) == 0


def _endpoint(bench: Bench) -> str:
    sagemaker, name = bench.client("sagemaker"), unique("faulty")
    container = {"Image": SERVING_IMAGE, "ModelDataUrl": bench.archive()}
    sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = bench.variant(name) | {"ContainerStartupHealthCheckTimeoutInSeconds": 60}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    return name


def test_capacity_error_fails_a_job_and_an_endpoint(bench: Bench, fault: Fault) -> None:
    sagemaker, job, name = bench.client("sagemaker"), unique("faulty"), _endpoint(bench)
    fault("capacity", "--match", "faulty-*")
    sagemaker.create_training_job(**bench.training_request(job))
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    with pytest.raises(WaiterError):
        sagemaker.get_waiter("training_job_completed_or_stopped").wait(TrainingJobName=job, WaiterConfig=FAST)
    told = sagemaker.describe_training_job(TrainingJobName=job)
    assert told["FailureReason"].startswith("CapacityError: Unable to provision requested ML compute capacity.")
    assert [item["Status"] for item in told["SecondaryStatusTransitions"]] == ["Starting", "Failed"]
    with pytest.raises(WaiterError):
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=FAST)
    told = sagemaker.describe_endpoint(EndpointName=name)
    assert (told["EndpointStatus"], "CapacityError" in told["FailureReason"]) == ("Failed", True)
    sagemaker.delete_endpoint(EndpointName=name)


def test_quota_refuses_before_anything_is_made(bench: Bench, fault: Fault) -> None:
    sagemaker, job, name = bench.client("sagemaker"), unique("faulty"), _endpoint(bench)
    fault("quota", "--limit", "0", "--match", "faulty-*")
    with pytest.raises(sagemaker.exceptions.ResourceLimitExceeded, match=r"'ml.m5.xlarge for training job usage' is 0"):
        sagemaker.create_training_job(**bench.training_request(job))
    with pytest.raises(sagemaker.exceptions.ResourceLimitExceeded, match=r"'ml.m5.xlarge for endpoint usage' is 0"):
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    with pytest.raises(ClientError, match="Could not find endpoint"):
        sagemaker.describe_endpoint(EndpointName=name)


def test_spot_interruption_starts_the_job_again(bench: Bench, fault: Fault) -> None:
    sagemaker, job = bench.client("sagemaker"), unique("faulty")
    fault("spot-interruption", "--seconds", "0.2", "--times", "1", "--match", job)
    request = bench.training_request(job, epochs=1) | {"EnableManagedSpotTraining": True}
    request["StoppingCondition"] = {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 600}
    request["AlgorithmSpecification"] |= {
        "ContainerEntrypoint": ["sh", "-c", "sleep 1; python3 /opt/ml/input/data/code/train.py"]
    }
    sagemaker.create_training_job(**request)
    sagemaker.get_waiter("training_job_completed_or_stopped").wait(TrainingJobName=job, WaiterConfig=FAST)
    states = [
        item["Status"] for item in sagemaker.describe_training_job(TrainingJobName=job)["SecondaryStatusTransitions"]
    ]
    assert states[states.index("Interrupted") :][:2] == ["Interrupted", "Starting"]
    assert states[-1] == "Completed"


def test_throttling_is_retried_by_botocore_and_told_when_it_stays(bench: Bench, fault: Fault) -> None:
    fault("throttling", "--rate", "0", "--match", "ListModels", "--times", "1")
    assert bench.client("sagemaker").list_models()["ResponseMetadata"]["RetryAttempts"] == 1
    fault("throttling", "--rate", "0", "--match", "ListModels")
    client = bench.session.client("sagemaker", config=Config(**ONCE))
    with pytest.raises(ClientError, match="Rate exceeded") as caught:
        client.list_models()
    assert caught.value.response["Error"]["Code"] == "ThrottlingException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    client.list_endpoints()


def test_s3_outage_is_503_slow_down_for_clients_and_jobs(bench: Bench, fault: Fault) -> None:
    request = bench.training_request(unique("faulty"))
    fault("s3-outage", "--match", BUCKET)
    client = bench.session.client("s3", config=Config(**ONCE))
    with pytest.raises(ClientError, match="reduce your request rate") as caught:
        client.list_objects_v2(Bucket=BUCKET)
    assert caught.value.response["Error"]["Code"] == "SlowDown"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    with pytest.raises(ClientError, match="Error message from S3: Please reduce your request rate"):
        bench.client("sagemaker").create_training_job(**request)


def test_slow_start_and_split_stream(bench: Bench, fault: Fault) -> None:
    sagemaker, runtime, name = bench.client("sagemaker"), bench.client("sagemaker-runtime"), _endpoint(bench)
    fault("slow-start", "--seconds", "2", "--match", name, "--times", "1")
    fault("split-stream", "--bytes", "3", "--match", name)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=FAST)
    made = sagemaker.describe_endpoint(EndpointName=name)
    assert (made["LastModifiedTime"] - made["CreationTime"]).total_seconds() >= 2
    body = json.dumps({"inputs": "längst nötig", "stream": True})
    answer: Any = runtime.invoke_endpoint_with_response_stream(
        EndpointName=name, Body=body, ContentType="application/json"
    )
    parts = [part["PayloadPart"]["Bytes"] for part in answer["Body"]]
    assert b"".join(parts).decode() == "data: längst\n\ndata: nötig\n\n"
    assert {len(part) for part in parts[:4]} == {3}
    sagemaker.delete_endpoint(EndpointName=name)
