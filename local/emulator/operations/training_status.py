"""The life of a training job as DescribeTrainingJob shows it, from what its supervisor tells."""

from __future__ import annotations

import math
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import INTERNAL
from llmtuner_local.emulator.operations import jobs, warm_pools

KIND = "training-job"
# What a second of spot is billed at, as a share of a second on demand: AWS's own changes by the hour.
SPOT_SHARE = 0.4


def _apply(document: dict[str, Any], line: dict[str, Any]) -> None:
    """One line of the journal onto the job."""
    if "secondary" not in line:
        return
    now, secondary = line["time"], line["secondary"]
    document["LastModifiedTime"] = now
    transitions = [dict(item) for item in document["SecondaryStatusTransitions"]]
    last = transitions[-1]
    if last["Status"] == secondary:
        last["StatusMessage"] = line["message"]  # AWS replaces the text while the status stays
    else:
        last["EndTime"] = now
        transitions.append({"Status": secondary, "StartTime": now, "StatusMessage": line["message"]})
    document["SecondaryStatusTransitions"] = transitions
    document["SecondaryStatus"] = secondary
    if secondary == "Downloading":
        document.setdefault("TrainingStartTime", now)
        document["_paid_since"] = now
    if secondary in ("Interrupted", "Restarting"):
        _add_paid(document, now)
    if secondary == "Stopping":
        document["TrainingJobStatus"] = "Stopping"
    if "status" in line:
        transitions[-1]["EndTime"] = now
        _finish(document, line, now)


def _add_paid(document: dict[str, Any], now: float) -> None:
    """The time with instances is paid, the time of waiting for them is not."""
    since = document.pop("_paid_since", None)
    if since is not None:
        document["_paid"] = document.get("_paid", 0.0) + now - since


def _finish(document: dict[str, Any], line: dict[str, Any], now: float) -> None:
    document["TrainingJobStatus"] = line["status"]
    document["TrainingEndTime"] = now
    _add_paid(document, now)
    if "TrainingStartTime" in document:  # a job that never had instances costs nothing
        share = SPOT_SHARE if document["EnableManagedSpotTraining"] else 1.0
        document["TrainingTimeInSeconds"] = max(1, math.ceil(now - document["TrainingStartTime"]))
        document["BillableTimeInSeconds"] = max(1, math.ceil(document.get("_paid", 0.0) * share))
    if line.get("reason"):
        document["FailureReason"] = line["reason"]
    if line.get("metrics"):
        document["FinalMetricDataList"] = line["metrics"]
    if "WarmPoolStatus" in document:
        document["WarmPoolStatus"] = warm_pools.available()


JOBS = jobs.JobKind(
    KIND,
    "training job",
    "TrainingJob",
    {"secondary": "Failed", "message": "Training job failed", "status": "Failed", "reason": INTERNAL},
    _apply,
    Context.job_folder,
)


def refresh(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """Bring a job and its warm pool up to now; a supervisor that is gone means Failed."""
    return warm_pools.refresh(context, JOBS.refresh(context, document))


def settled(document: dict[str, Any]) -> bool:
    """Whether nothing changes any more unless somebody asks for it."""
    return JOBS.ended(document) and warm_pools.status(document) != "Available"
