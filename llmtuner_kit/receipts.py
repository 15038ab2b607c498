"""The receipt of a run: every job and endpoint it has started, from AWS's own seconds, against its quote."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from llmtuner_kit import autoscaling, costs, endpoints, runs, training
from llmtuner_kit.aws import ClientError
from llmtuner_kit.dataset import processing
from llmtuner_kit.errors import KitError, NotFoundError
from llmtuner_kit.workspace import Workspace


def receipt(workspace: Workspace, run_name: str) -> costs.Receipt:
    """What a run has cost so far against its quotes."""
    run = runs.open_run(workspace, run_name)
    makers = {"processing": _processing_line, "training": _training_line}
    lines = [
        makers[facts["kind"]](workspace, name, facts)
        for name, facts in run.noted("jobs").items()
        if facts.get("started", True) or training.job_status(workspace, name)  # else SageMaker never took it
    ]
    lines += [_endpoint_line(workspace, facts) for facts in run.noted("endpoints").values()]
    made = costs.Receipt(run.name, tuple(lines), workspace.aws.charged)
    summary = [
        {"what": line.what, "seconds": line.seconds, "usd": line.usd, "quoted": line.quoted, "verdict": line.verdict}
        for line in lines
    ]
    kept = (run.section("cleanup") or {}).get("result") or {}
    run.save("cleanup", result=kept | {"receipt": json.loads(json.dumps(summary))})
    return made


def _training_line(workspace: Workspace, name: str, facts: dict[str, Any]) -> costs.Line:
    try:
        job = training.require_own_job(workspace, name)
    except NotFoundError:
        return _forgotten(f"training job {name}", facts)
    begin, end = job.get("TrainingStartTime"), job.get("TrainingEndTime")
    running = costs.elapsed_seconds(begin) if begin and not end else 0.0
    seconds = float(job.get("BillableTimeInSeconds") or running)
    what = f"training job {name}" + _standing(job["TrainingJobStatus"]) + _spot(job)
    return _job_line(workspace, what, facts, job["ResourceConfig"], seconds, "training")


def _processing_line(workspace: Workspace, name: str, facts: dict[str, Any]) -> costs.Line:
    job = processing.described(workspace, name)
    what = f"processing job {name}"
    if job is None:
        return _forgotten(what, facts)
    resources = job["ProcessingResources"]["ClusterConfig"]
    what += _standing(job["ProcessingJobStatus"])
    return _job_line(workspace, what, facts, resources, processing.billable_seconds(job), "processing")


def _forgotten(what: str, facts: dict[str, Any]) -> costs.Line:
    """A job deleted since: what it took is not known any more."""
    return _line(f"{what} (no longer known)", facts["instance_type"], 0.0, None, costs.Money(*facts["quote"]["usd"]))


def _standing(status: str) -> str:
    return "" if status == "Completed" else f" ({'still running' if status == 'InProgress' else status.lower()})"


def _spot(job: dict[str, Any]) -> str:
    """What managed spot has saved; until the end the cost is the price on demand."""
    saving = costs.spot_saving(job)
    if saving is not None:
        return f", {saving:.0%} saved by spot"
    return ", at most, as spot is billed lower" if job.get("EnableManagedSpotTraining") else ""


def _job_line(
    workspace: Workspace, what: str, facts: dict[str, Any], resources: dict[str, Any], seconds: float, use: costs.Use
) -> costs.Line:
    kind, count = resources["InstanceType"], resources["InstanceCount"]
    amount = costs.running_cost(kind, workspace.aws.region, seconds, count, use)
    return _line(what, kind, seconds, amount, costs.Money(*facts["quote"]["usd"]))


def _line(what: str, instance_type: str, seconds: float, amount: float | None, quoted: costs.Money) -> costs.Line:
    return costs.Line(what, instance_type, seconds, amount, str(quoted), costs.verdict(amount, quoted))


def _endpoint_line(workspace: Workspace, deployed: dict[str, Any]) -> costs.Line:
    name, ended = deployed["endpoint_name"], deployed.get("deleted_at")
    begun = datetime.fromisoformat(deployed["created_at"])
    found = None if ended else endpoints.described(workspace, name)
    living = found is not None and found["EndpointStatus"] != "Deleting" and found["CreationTime"] == begun
    # Deleted by the guard or by hand: its time to live is the latest it can have run.
    end = datetime.fromisoformat(ended) if ended else datetime.now(UTC)
    if found and living:
        end = endpoints.until(found)
    elif not ended:
        end = min(end, datetime.fromisoformat(deployed["expires_at"]))
    seconds = costs.elapsed_seconds(begun, end)
    billed, counted = _instance_seconds(workspace, deployed, begun, max(begun, end))
    amount = costs.running_cost(deployed["instance_type"], workspace.aws.region, billed)
    state = "failed" if found and found["EndpointStatus"] == "Failed" else "still running"
    what = f"endpoint {name}" + counted + (f" ({state})" if living else "")
    quoted = costs.Money(0.0, deployed["quote"]["usd_until_expiry"])
    return _line(what, deployed["instance_type"], seconds, amount, quoted)


def _instance_seconds(
    workspace: Workspace, deployed: dict[str, Any], begun: datetime, end: datetime
) -> tuple[float, str]:
    """(seconds times instances, how they were counted): by what autoscaling did, where the endpoint had it."""
    least = int(deployed.get("instances") or 1)
    steps, counted = [autoscaling.Scaled(begun, least)], f", {least} instances" if least > 1 else ""
    if deployed.get("autoscaling", "off") != "off":
        try:
            steps = autoscaling.history(workspace, deployed["endpoint_name"], begun, end, least)
            counts = sorted({item.instances for item in steps})
            counted = f", {counts[0]} to {counts[-1]} instances" if len(counts) > 1 else counted
        except (ClientError, KitError):
            counted = f", at least (autoscaling's record cannot be read; counted with {least})"
    return autoscaling.instance_seconds(steps, end), counted
