"""Warm pools: instances that a finished job keeps for the next one like it.

No machine is really kept here; what jobs and their bills show is. A pool lives in its job's document: InUse while the
job runs, Available when it has ended, then Reused by a matching job, or Terminated after KeepAlivePeriodInSeconds.
"""

from __future__ import annotations

import math
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import validation
from llmtuner_local.emulator.operations import jobs

KIND = "training-job"
_RESOURCES = ("InstanceType", "InstanceCount", "VolumeSizeInGB", "VolumeKmsKeyId")
_SWITCHES = ("EnableInterContainerTrafficEncryption", "EnableNetworkIsolation")


def asked(params: dict[str, Any]) -> bool:
    """Whether a job wants to keep its instances."""
    return bool(params["ResourceConfig"].get("KeepAlivePeriodInSeconds"))


def available() -> dict[str, Any]:
    return {"Status": "Available", "ResourceRetainedBillableTimeInSeconds": 0}


def take(context: Context, params: dict[str, Any]) -> bool:
    """Give a new job the oldest available pool that matches; whether there was one."""
    if not asked(params):
        return False
    for document in context.store.all(KIND):
        document = refresh(context, document)
        if status(document) == "Available" and _key(document) == _key(params):
            reused = _ended(document, context.now(), "Reused", ReusedByJob=params["TrainingJobName"])
            context.store.put(KIND, document["TrainingJobName"], reused)
            return True
    return False


def _key(request: dict[str, Any]) -> list[Any]:
    """What two jobs must have in common."""
    resources = request["ResourceConfig"]
    return [
        request["RoleArn"],
        *[resources.get(name) for name in _RESOURCES],
        request.get("VpcConfig"),
        *[request.get(name, False) for name in _SWITCHES],
    ]


def status(document: dict[str, Any]) -> str:
    found: str = document.get("WarmPoolStatus", {}).get("Status", "")
    return found


def refresh(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """An available pool counts its time, and ends when its time is over."""
    if status(document) != "Available":
        return document
    now = context.now()
    end = document["TrainingEndTime"] + document["ResourceConfig"].get("KeepAlivePeriodInSeconds", 0)
    if now >= end:
        return context.store.put(KIND, document["TrainingJobName"], _ended(document, end, "Terminated"))
    kept = math.ceil(now - document["TrainingEndTime"])
    return dict(document, WarmPoolStatus={**available(), "ResourceRetainedBillableTimeInSeconds": kept})


def _ended(document: dict[str, Any], moment: float, name: str, **more: str) -> dict[str, Any]:
    kept = max(0, math.ceil(moment - document["TrainingEndTime"]))
    pool = {"Status": name, "ResourceRetainedBillableTimeInSeconds": kept, **more}
    return dict(document, WarmPoolStatus=pool)


def keep_alive(context: Context, document: dict[str, Any], seconds: int) -> dict[str, Any]:
    """UpdateTrainingJob: another period for an available pool; 0 ends it."""
    if status(document) != "Available":
        raise validation(
            "KeepAlivePeriodInSeconds can be updated only while the warm pool of the training job is Available; it is "
            f"{status(document) or 'not there'}."
        )
    resources = document["ResourceConfig"] | {"KeepAlivePeriodInSeconds": seconds}
    changed = dict(document, ResourceConfig=resources)
    if document["TrainingJobStatus"] in jobs.TERMINAL and seconds == 0:
        changed = _ended(changed, context.now(), "Terminated")
    return context.store.put(KIND, document["TrainingJobName"], changed)
