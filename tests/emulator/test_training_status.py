"""What DescribeTrainingJob makes of a supervisor's journal: status, times, and what of them is paid."""

from __future__ import annotations

from typing import Any

import pytest
from llmtuner_local.emulator.operations.training_status import JOBS

DAY = 1_000_000.0


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
