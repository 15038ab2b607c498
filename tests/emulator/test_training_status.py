"""What DescribeTrainingJob makes of a supervisor's journal: status, times, and what of them is paid."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import INTERNAL
from llmtuner_local.emulator.operations.training_status import JOBS
from llmtuner_local.emulator.shim import journal

DAY = 1_000_000.0


def test_a_job_that_was_lost_with_its_machine_ended_when_it_last_lived(tmp_path: Path) -> None:
    """And not when somebody looks, which may be days later: that time would be on its bill."""
    journal.Journal(tmp_path / "journal.jsonl").write(secondary="Downloading", message="")
    lines, _ = journal.read(tmp_path / "journal.jsonl")
    begun = lines[0]["time"]
    os.utime(tmp_path / "journal.jsonl", (begun + 60, begun + 60))
    start = {"Status": "Starting", "StartTime": begun - 1, "StatusMessage": ""}
    document = {
        "TrainingJobName": "lost", "TrainingJobStatus": "InProgress", "LastModifiedTime": begun - 1, "_offset": 0,
        "EnableManagedSpotTraining": False, "SecondaryStatusTransitions": [start],
    }  # fmt: skip
    kept = SimpleNamespace(put=lambda kind, name, document: document)
    context = cast(Context, SimpleNamespace(store=kept, job_folder=lambda _: tmp_path, home=tmp_path))
    kind = replace(JOBS, folder=lambda *_: tmp_path)
    job = kind.refresh(context, kind.refresh(context, document))
    assert (job["TrainingJobStatus"], job["FailureReason"]) == ("Failed", INTERNAL)
    assert job["BillableTimeInSeconds"] == 60


def described(*lines: tuple[float, str], spot: bool) -> dict[str, Any]:
    """A job after (second, secondary status) lines of its journal; the last one ends it."""
    start = {"Status": "Starting", "StartTime": DAY, "StatusMessage": "Starting the training job"}
    document: dict[str, Any] = {"EnableManagedSpotTraining": spot, "SecondaryStatusTransitions": [start]}
    for number, (second, secondary) in enumerate(lines, 1):
        end = {"status": secondary} if number == len(lines) else {}
        JOBS.apply(document, {"time": DAY + second, "secondary": secondary, "message": f"{secondary} now", **end})
    return document


@pytest.mark.parametrize(("spot", "pause", "billed"), [(True, "Interrupted", 20), (False, "Restarting", 50)])
def test_time_with_instances_is_billed_and_time_of_waiting_for_them_is_not(spot: bool, pause: str, billed: int) -> None:
    first = [(10.0, "Downloading"), (20.0, "Training"), (40.0, pause), (41.0, "Starting")]
    again = [(110.0, "Downloading"), (115.0, "Training"), (125.0, "Uploading"), (129.5, "Completed")]
    job = described(*first, *again, spot=spot)
    assert job["TrainingTimeInSeconds"] == 120
    assert job["BillableTimeInSeconds"] == billed  # 30 + 19.5 s, rounded up; of spot at 40 %
    assert [item["Status"] for item in job["SecondaryStatusTransitions"]][3:5] == [pause, "Starting"]
    assert all(item["EndTime"] >= item["StartTime"] for item in job["SecondaryStatusTransitions"])


def test_job_that_never_had_instances_costs_nothing() -> None:
    job = described((300.0, "Failed"), spot=True)
    assert "TrainingTimeInSeconds" not in job
    assert "BillableTimeInSeconds" not in job


def test_text_of_a_status_that_stays_is_replaced() -> None:
    job = described((1.0, "Starting"), (2.0, "Starting"), (3.0, "Stopped"), spot=False)
    assert [item["StatusMessage"] for item in job["SecondaryStatusTransitions"]] == ["Starting now", "Stopped now"]
    assert (job["TrainingJobStatus"], job["TrainingEndTime"]) == ("Stopped", DAY + 3)
