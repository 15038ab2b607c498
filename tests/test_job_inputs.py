"""After an update of the kit the same inputs find the job that other code has made from them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_account import Clients, refused

from llmtuner_kit import job_inputs
from llmtuner_kit.runs import Run


def job(status: str = "InProgress", **hyperparameters: str) -> dict[str, Any]:
    return {
        "TrainingJobStatus": status,
        "HyperParameters": {"epochs": "1.0", "seed": "42", "kit_version": "0.1.0", **hyperparameters},
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1},
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/models"},
    }


def run_with(jobs: dict[str, dict[str, Any]], *, charged: bool = True) -> Run:
    def describe(TrainingJobName: str) -> Any:  # noqa: N803
        return jobs.get(TrainingJobName, refused("ValidationException", "Requested resource not found."))

    workspace = Clients(describe_training_job=describe).workspace
    cast(SimpleNamespace, workspace.aws).charged = charged
    noted = {name: {"kind": "training"} for name in jobs} | {
        "prepare": {"kind": "processing"},
        "gone": {"kind": "training"},
    }
    return Run(workspace, "demo", {"jobs": noted})


def test_a_new_version_and_a_new_setting_at_its_default_are_the_same_inputs() -> None:
    assert job_inputs.same(job(), job(kit_version="0.2.0", spot="False"))
    assert job_inputs.same(job(lora_dropout="0.0"), job())
    assert not job_inputs.same(job(), job(lora_dropout="0.1"))
    assert not job_inputs.same(job(), job(seed="7"))
    assert not job_inputs.same(job(of_another_time="1"), job())
    other = job() | {"ResourceConfig": {"InstanceType": "ml.g5.12xlarge", "InstanceCount": 1}}
    assert not job_inputs.same(job(), other)


@pytest.mark.parametrize(
    ("status", "charged", "found"),
    [
        ("InProgress", True, True), ("InProgress", False, True),
        ("Completed", True, True), ("Completed", False, False),
        ("Failed", True, False), ("Stopped", True, False), ("Stopping", True, False),
    ],
)  # fmt: skip
def test_a_job_that_runs_or_was_paid_for_is_found(status: str, charged: bool, found: bool) -> None:
    before = job(status)
    run = run_with({"one": before, "two": job(seed="7")}, charged=charged)
    assert job_inputs.of_other_code(run, job(kit_version="0.2.0")) == (before if found else None)
