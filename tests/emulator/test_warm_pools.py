"""Warm pools: what jobs show of the instances they keep."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError
from emulator.conftest import Cloud


def kept(seconds: int, instance_type: str = "ml.g5.xlarge") -> dict[str, Any]:
    return {
        "ResourceConfig": {
            "InstanceType": instance_type,
            "InstanceCount": 1,
            "VolumeSizeInGB": 10,
            "KeepAlivePeriodInSeconds": seconds,
        }
    }


def pool(emulator: Cloud, name: str) -> dict[str, Any]:
    found: dict[str, Any] = emulator.describe(name)["WarmPoolStatus"]
    return found


def test_pool_waits_is_reused_by_the_next_job_like_it_and_only_by_that(emulator: Cloud) -> None:
    first = emulator.train("print(1)", **kept(600))
    assert pool(emulator, first)["Status"] == "InUse"
    emulator.ended(first)
    assert pool(emulator, first)["Status"] == "Available"
    listed = emulator.sagemaker.list_training_jobs(WarmPoolStatusEquals="Available", NameContains=first)
    assert [item["WarmPoolStatus"]["Status"] for item in listed["TrainingJobSummaries"]] == ["Available"]
    with pytest.raises(ClientError, match="warm pool") as caught:
        emulator.sagemaker.delete_training_job(TrainingJobName=first)
    assert caught.value.response["Error"]["Code"] == "ResourceInUse"

    other = emulator.train("print(1)", **kept(1, "ml.g5.2xlarge"))
    assert pool(emulator, first)["Status"] == "Available"
    second = emulator.train("print(2)", **kept(600))
    assert pool(emulator, first)["Status"] == "Reused"
    assert pool(emulator, first)["ReusedByJob"] == second
    emulator.ended(other)
    emulator.until(lambda: pool(emulator, other)["Status"], lambda status: status == "Terminated")
    assert pool(emulator, other)["ResourceRetainedBillableTimeInSeconds"] == 1

    emulator.ended(second)
    emulator.sagemaker.update_training_job(TrainingJobName=second, ResourceConfig={"KeepAlivePeriodInSeconds": 0})
    assert pool(emulator, second)["Status"] == "Terminated"
    with pytest.raises(ClientError, match="only while the warm pool of the training job is Available"):
        emulator.sagemaker.update_training_job(TrainingJobName=second, ResourceConfig={"KeepAlivePeriodInSeconds": 60})
    emulator.sagemaker.delete_training_job(TrainingJobName=second)


def test_failed_job_keeps_its_instances_too(emulator: Cloud) -> None:
    name = emulator.train("raise SystemExit(1)", **kept(600))
    assert emulator.ended(name)["WarmPoolStatus"]["Status"] == "Available"
    emulator.sagemaker.update_training_job(TrainingJobName=name, ResourceConfig={"KeepAlivePeriodInSeconds": 0})


def test_spot_jobs_have_no_pool(emulator: Cloud) -> None:
    limits = {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}
    with pytest.raises(ClientError, match="KeepAlivePeriodInSeconds is not supported with managed spot training"):
        emulator.train("", **kept(600), EnableManagedSpotTraining=True, StoppingCondition=limits)
