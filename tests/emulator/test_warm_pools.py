"""Warm pools: what jobs show of the instances they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from emulator.conftest import Cloud
from emulator.inside import context
from llmtuner_local.emulator.operations import warm_pools


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


@pytest.mark.parametrize(
    "other",
    [
        {"RoleArn": "arn:aws:iam::000000000000:role/other"},
        {"VpcConfig": {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}},
        {"EnableNetworkIsolation": True},
        {"ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "KeepAlivePeriodInSeconds": 60}},
        {"ResourceConfig": {"InstanceType": "ml.g5.2xlarge", "InstanceCount": 1, "KeepAlivePeriodInSeconds": 60}},
    ],
)
def test_pool_goes_to_a_job_that_is_alike_in_everything_and_to_no_other(tmp_path: Path, other: dict[str, Any]) -> None:
    made = context(tmp_path)
    resources = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "KeepAlivePeriodInSeconds": 60}
    alike = {"TrainingJobName": "next", "RoleArn": "arn:aws:iam::000000000000:role/one", "ResourceConfig": resources}
    ended = {"TrainingJobName": "first", "TrainingEndTime": made.now(), "WarmPoolStatus": warm_pools.available()}
    made.store.put(warm_pools.KIND, "first", alike | ended)
    assert not warm_pools.take(made, alike | other)
    assert warm_pools.take(made, alike)
    assert made.store.get(warm_pools.KIND, "first")["WarmPoolStatus"]["ReusedByJob"] == "next"
    made.store.close()
