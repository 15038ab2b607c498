"""The end of a run: delete what still costs money, and say what everything has cost against its quotes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmtuner_kit import costs, endpoints, runs, training
from llmtuner_kit.settings import CleanupSettings
from llmtuner_kit.workspace import Workspace


@dataclass(frozen=True)
class CleanUp:
    """What 08_cleanup did: lines of what was removed, and what is still kept."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]


def clean_up(workspace: Workspace, settings: CleanupSettings) -> CleanUp:
    """Delete what still costs money, and what else the settings name. Twice is once."""
    run = runs.open_run(workspace, settings.run_name)
    removed: list[str] = []
    kept: list[str] = []
    job_name = ((run.section("train") or {}).get("result") or {}).get("job_name", "")
    deployed = (run.section("deploy") or {}).get("result") or {}
    if deployed:
        name = deployed["endpoint_name"]
        if settings.delete_endpoint:
            _await_settled(workspace, name)
            gone = endpoints.delete(workspace, name).removed
            removed += gone
            if gone:
                _remember_end(run)
        elif endpoints.described(workspace, name):
            kept.append(f"endpoint {name}, which costs {costs.usd(deployed['quote']['usd_per_hour'])} an hour")
    if job_name and settings.stop_job and training.job_status(workspace, job_name) == "InProgress":
        training.stop(workspace, job_name)
        removed.append(f"training job {job_name} (stopped)")
    prefixes = {
        "checkpoints": (settings.delete_checkpoints and job_name, job_name and workspace.paths.checkpoints(job_name)),
        "model archive": (settings.delete_model and job_name, job_name and f"{workspace.paths.models}/{job_name}/"),
        "uploads": (settings.delete_uploads, _uploads_prefix(workspace, run)),
    }
    for what, (wanted, prefix) in prefixes.items():
        if not prefix:
            continue
        count, size = _delete_prefix(workspace, prefix, really=bool(wanted))
        if count:
            (removed if wanted else kept).append(f"{what}: {count} objects, {size / 1e6:,.1f} MB")
    run.save("cleanup", settings=settings.model_dump(), result={"removed": removed, "kept": kept})
    return CleanUp(tuple(removed), tuple(kept))


def _remember_end(run: runs.Run) -> None:
    """Write down when the endpoint ended: AWS forgets an endpoint with its deletion."""
    known = run.result("deploy")
    if not known.get("deleted_at"):
        run.save("deploy", result=known | {"deleted_at": datetime.now(UTC).isoformat(timespec="seconds")})


def _await_settled(workspace: Workspace, name: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """An endpoint that is being created cannot be deleted; AWS asks to wait."""
    while True:
        found = endpoints.described(workspace, name)
        if found is None or found["EndpointStatus"] not in endpoints.BUSY - {"Deleting"}:
            return
        sleep(1.0)


def _uploads_prefix(workspace: Workspace, run: runs.Run) -> str:
    uploaded = (run.section("upload") or {}).get("result") or {}
    return workspace.paths.uploads(uploaded["dataset"]) if uploaded.get("dataset") else ""


def _delete_prefix(workspace: Workspace, prefix: str, *, really: bool) -> tuple[int, int]:
    """(objects, bytes) under a prefix of the user; deleted when `really`."""
    client = workspace.aws.client("s3")
    count = size = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=workspace.bucket, Prefix=prefix):
        items = page.get("Contents", [])
        count += len(items)
        size += sum(item["Size"] for item in items)
        if really and items:
            keys = [{"Key": item["Key"]} for item in items]
            client.delete_objects(Bucket=workspace.bucket, Delete={"Objects": keys, "Quiet": True})
    return count, size


def receipt(workspace: Workspace, run_name: str) -> costs.Receipt:
    """What a run has cost so far against its quotes; from AWS's own seconds."""
    run = runs.open_run(workspace, run_name)
    lines: list[costs.Line] = []
    trained = (run.section("train") or {}).get("result")
    if trained:
        lines.append(_job_line(workspace, trained))
    deployed = (run.section("deploy") or {}).get("result")
    if deployed:
        lines.append(_endpoint_line(workspace, run, deployed))
    made = costs.Receipt(run.name, tuple(lines), workspace.aws.charged)
    summary = [
        {"what": line.what, "seconds": line.seconds, "usd": line.usd, "quoted": line.quoted, "verdict": line.verdict}
        for line in lines
    ]
    kept = (run.section("cleanup") or {}).get("result") or {}
    run.save("cleanup", result=kept | {"receipt": json.loads(json.dumps(summary))})
    return made


def _job_line(workspace: Workspace, trained: dict[str, Any]) -> costs.Line:
    job = training.require_own_job(workspace, trained["job_name"])
    begin, end = job.get("TrainingStartTime"), job.get("TrainingEndTime")
    running = (datetime.now(UTC) - begin).total_seconds() if begin and not end else 0.0
    seconds = float(job.get("BillableTimeInSeconds") or running)
    resources = job["ResourceConfig"]
    amount = costs.running_cost(resources["InstanceType"], workspace.aws.region, seconds, resources["InstanceCount"])
    low, high = trained["quote"]["usd"]
    quoted = costs.Money(low, high)
    what = f"training job {trained['job_name']}"
    return costs.Line(what, resources["InstanceType"], seconds, amount, str(quoted), costs.verdict(amount, quoted))


def _endpoint_line(workspace: Workspace, run: runs.Run, deployed: dict[str, Any]) -> costs.Line:
    name = deployed["endpoint_name"]
    found = endpoints.described(workspace, name)
    ended = deployed.get("deleted_at")
    living = found is not None and found["EndpointStatus"] != "Deleting" and not ended
    begun = deployed.get("created_at") or (run.section("deploy") or {})["at"]
    # Deleted by the guard or by hand: its time to live is the latest it can have run.
    end = datetime.fromisoformat(ended) if ended else datetime.now(UTC)
    if not living and not ended:
        end = min(end, datetime.fromisoformat(deployed["expires_at"]))
    seconds = max(0.0, (end - datetime.fromisoformat(begun)).total_seconds())
    count = int(deployed.get("instances") or 1)
    amount = costs.running_cost(deployed["instance_type"], workspace.aws.region, seconds, count)
    quoted = costs.Money(0.0, deployed["quote"]["usd_until_expiry"])
    what = f"endpoint {name}" + (" (still running)" if living else "")
    return costs.Line(what, deployed["instance_type"], seconds, amount, str(quoted), costs.verdict(amount, quoted))
