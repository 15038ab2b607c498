"""The end of a run: stop and delete what still costs money, and what else the settings name."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmtuner_kit import artifacts, costs, deployments, endpoints, paths, runs, training, uploads
from llmtuner_kit.dataset import processing
from llmtuner_kit.errors import AccessError
from llmtuner_kit.settings import CleanupSettings
from llmtuner_kit.workspace import Workspace

_NAMED = 20  # files of a dataset; the form of 08_cleanup lists all


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
    _jobs(workspace, run, removed, None if settings.stop_job else kept)
    _endpoints(workspace, run, removed, None if settings.delete_endpoint else kept)
    named = uploads.uploaded(run) if settings.delete_uploads else {}
    for dataset, files in named.items():
        more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
        sys.stderr.write(f"Deleting the uploads of {dataset}: {', '.join(files[:_NAMED])}{more}.\n")
    for what, wanted, prefix, names in _stored(workspace, run, settings):
        count, size = _delete_prefix(workspace, prefix, names, really=wanted)
        if count:
            megabytes = f"{size / 1e6:,.1f} MB" if size >= 1e5 else "under 0.1 MB"
            told = f"{what}: {count} {'object' if count == 1 else 'objects'}, {megabytes}"
            if wanted:
                removed.append(told)
            else:
                kept.append(told + _storage(size, workspace.aws.region))
    for dataset in named:  # the run gives up what others have too: it is the last one's to delete
        run.note("uploads", dataset, {"files": []})
    run.save("cleanup", settings=settings.model_dump(), result={"removed": removed, "kept": kept})
    return CleanUp(tuple(removed), tuple(kept))


def _jobs(workspace: Workspace, run: runs.Run, removed: list[str], kept: list[str] | None) -> None:
    """Stop the run's jobs that still run, or only tell of them where they are to be `kept`."""
    for name, facts in run.noted("jobs").items():
        kind = facts["kind"]
        if not _running(workspace, name, kind):
            continue
        if kept is None:
            _STOPS[kind](workspace, name)
            removed.append(f"{kind} job {name} (stopped)")
        else:
            kept.append(f"{kind} job {name}, which is still running")


def _endpoints(workspace: Workspace, run: runs.Run, removed: list[str], kept: list[str] | None) -> None:
    """Delete the run's endpoints, or only tell of them where they are to be `kept`."""
    for name, facts in run.noted("jobs").items():
        if facts["kind"] == "training":
            deployments.adopt(workspace, run, paths.fit_name(name))
    for key, deployed in run.noted("endpoints").items():
        name = deployed["endpoint_name"]
        if deployed.get("deleted_at"):
            continue  # the name may serve again since; then it was noted again
        if kept is None:
            found = _settled(workspace, name)
            gone = endpoints.delete(workspace, name).removed
            removed += gone
            if gone and found:
                _remember_end(run, key, deployed, endpoints.until(found))
        elif endpoints.described(workspace, name):
            kept.append(f"endpoint {name}, which costs {costs.usd(deployed['quote']['usd_per_hour'])} an hour")


def _stored(
    workspace: Workspace, run: runs.Run, settings: CleanupSettings
) -> Iterator[tuple[str, bool, str, Collection[str] | None]]:
    """(what, whether it is to be deleted, prefix, names below it or None for all) of what the run may have in S3."""
    trained = {name: facts for name, facts in run.noted("jobs").items() if facts["kind"] == "training"}
    tries: dict[str, list[str]] = {}  # the jobs that share the checkpoints of the first of them
    for name, facts in trained.items():
        tries.setdefault(facts.get("first_try", name), []).append(name)
    for first, names in tries.items():
        # Until a job has written its model, its checkpoints are all there is of it.
        written = settings.delete_model or any(artifacts.wrote_model(workspace, name) for name in names)
        yield (
            f"checkpoints of {first}",
            settings.delete_checkpoints and written,
            workspace.paths.checkpoints(first),
            None,
        )
    for name in trained:
        yield f"model archive of {name}", settings.delete_model, f"{workspace.paths.models}/{name}/", None
    base = ((run.section("start") or {}).get("result") or {}).get("base_model")
    if base:  # other runs may need it too
        prefix = workspace.paths.base_model(base["model_id"], base["revision"])
        yield f"base model {base['model_id']}", False, prefix, None
    others = _uploads_of_others(workspace, run) if settings.delete_uploads else {}
    for dataset, names in uploads.uploaded(run).items():
        prefix, shared = workspace.paths.uploads(dataset), others.get(dataset, set())
        yield f"uploads of {dataset}", settings.delete_uploads, prefix, set(names) - shared
        yield f"uploads of {dataset} that other runs have made too", False, prefix, set(names) & shared


def _uploads_of_others(workspace: Workspace, run: runs.Run) -> dict[str, set[str]]:
    """Dataset -> the names of the files that the user's other runs have uploaded."""
    found: dict[str, set[str]] = {}
    for item in runs.list_runs(workspace):
        if item.name != run.name:
            for dataset, names in uploads.uploaded(runs.open_run(workspace, item.name)).items():
                found.setdefault(dataset, set()).update(names)
    return found


_STOPS: dict[str, Callable[[Workspace, str], Any]] = {"training": training.stop, "processing": processing.stop}


def _running(workspace: Workspace, name: str, kind: str) -> bool:
    if kind == "training":
        return training.job_status(workspace, name) == "InProgress"
    found = processing.described(workspace, name)
    return found is not None and found["ProcessingJobStatus"] == "InProgress"


def _remember_end(run: runs.Run, key: str, deployed: dict[str, Any], moment: datetime) -> None:
    """Write down when the endpoint ended: AWS forgets an endpoint with its deletion."""
    run.note("endpoints", key, deployed | {"deleted_at": moment.isoformat(timespec="seconds")})


def _settled(workspace: Workspace, name: str, *, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any] | None:
    """The endpoint as described when it can be deleted, or None: while it is being created AWS asks to wait."""
    said = False
    while True:
        found = endpoints.described(workspace, name)
        if found is None or found["EndpointStatus"] not in endpoints.BUSY - {"Deleting"}:
            return found
        if not said:
            status = found["EndpointStatus"]
            sys.stderr.write(f"Endpoint {name} is {status}, and AWS deletes it only after that: this is waited for.\n")
            said = True
        sleep(5.0 if workspace.aws.charged else 1.0)


def _storage(size: int, region: str) -> str:
    """What it costs to keep so many bytes in S3; nothing is said of less than a cent."""
    monthly = costs.storage_per_month(size, region)
    if monthly is None:
        return ", which S3 bills by the month" if size >= 10**9 else ""
    return f", {costs.usd(monthly)} a month in S3" if monthly >= 0.01 else ""


def _delete_prefix(
    workspace: Workspace, prefix: str, names: Collection[str] | None = None, *, really: bool
) -> tuple[int, int]:
    """(objects, bytes) under a prefix of the user, of all or of those with these names; deleted when `really`."""
    client = workspace.aws.client("s3")
    count = size = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=workspace.bucket, Prefix=prefix):
        items = [
            item for item in page.get("Contents", []) if names is None or item["Key"].removeprefix(prefix) in names
        ]
        count += len(items)
        size += sum(item["Size"] for item in items)
        if really and items:
            keys = [{"Key": item["Key"]} for item in items]
            answer = client.delete_objects(Bucket=workspace.bucket, Delete={"Objects": keys, "Quiet": True})
            if refused := answer.get("Errors"):  # S3 answers 200 and says here what it has kept
                raise AccessError(
                    f"{len(refused)} of {len(keys)} objects below {prefix} could not be deleted: "
                    f"{refused[0].get('Key')}: {refused[0].get('Message') or refused[0].get('Code')}",
                    fix="put right what it names and run 08_cleanup again",
                )
    return count, size
