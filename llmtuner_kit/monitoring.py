"""Watching a training job: status, new log lines, metric points, time left, money so far.

    for snapshot in watch(workspace, settings):
        ...
    raise_for_status(snapshot)

Nothing is kept but the last snapshot: a restarted kernel reads everything again from AWS. Metric points are
parsed from the job's log lines, the same lines SageMaker's MetricDefinitions match.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from llmtuner_kit import costs, logs, outages, training, troubles
from llmtuner_kit.errors import JobFailedError
from llmtuner_kit.settings import MonitorSettings
from llmtuner_kit.workspace import Workspace

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
TERMINAL = frozenset({"Completed", "Failed", "Stopped"})
_PAIR = re.compile(r"(\w+)=([-+0-9.eE]+|nan|inf|-inf)(?=\s|$)")
_KEPT_LINES = 2000
_LOGS_BEHIND_SECONDS = 5.0
_STARTING = frozenset(
    {"Pending", "Starting", "LaunchingMLInstances", "PreparingTrainingStack", "Downloading", "DownloadingTrainingImage"}
)
_LIMITS = {
    "MaxRuntimeExceeded": "its time limit is over",
    "MaxWaitTimeExceeded": "its spot instances did not come, or did not stay, in time",
}


@dataclass(frozen=True)
class Transition:
    """One line of SecondaryStatusTransitions."""

    status: str
    message: str
    started: datetime
    ended: datetime | None


@dataclass(frozen=True)
class Snapshot:
    """A job at one moment.

    Attributes:
        metrics: name -> points (step, value), in the order they were printed.
        new_lines: log lines since the last snapshot; `log` are the last ones of all.
        elapsed_seconds: since training started (0 before).
        eta_seconds: the job's own estimate, less what has passed since it was printed; None when unknown.
        billable_seconds: per instance, so far.
        cost_usd: None when the price is unknown. Until a spot job has ended the price on demand, the most it can be.
        spot_saving: share of the price on demand, 0 to 1; None before the end and for jobs not on spot.
        resuming: its last step was made before it was interrupted; it has made none since.
    """

    job_name: str
    status: str
    secondary_status: str
    message: str
    transitions: tuple[Transition, ...]
    metrics: dict[str, list[tuple[float, float]]]
    new_lines: tuple[str, ...]
    log: tuple[str, ...]
    elapsed_seconds: float
    billable_seconds: float
    eta_seconds: float | None
    cost_usd: float | None
    charged: bool
    instance_type: str
    instance_count: int
    failure_reason: str
    model_uri: str
    spot: bool = False
    spot_saving: float | None = None
    resuming: bool = False
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    step_stream: str = field(default="", repr=False)
    eta_at: float = field(default=0.0, repr=False)

    @property
    def done(self) -> bool:
        return self.status in TERMINAL

    @property
    def ended(self) -> str:
        """How a job that is done has ended, with the limit that has stopped it."""
        limit = _LIMITS.get(self.secondary_status, "")
        return f"{self.status}: {limit}" if limit else self.status

    @property
    def interruptions(self) -> int:
        """How often it has lost its spot instances."""
        return sum(item.status == "Interrupted" for item in self.transitions)

    def last(self, name: str) -> float | None:
        """The newest value of a metric, or None."""
        points = self.metrics.get(name)
        return points[-1][1] if points else None

    def first(self, name: str) -> float | None:
        """The oldest value of a metric, or None."""
        points = self.metrics.get(name)
        return points[0][1] if points else None

    @property
    def progress(self) -> float | None:
        """Share of the optimizer steps done, 0 to 1; None before the first step."""
        step, total = self.last("step"), self.last("total_steps")
        if self.status == "Completed":
            return 1.0
        return min(1.0, step / total) if step is not None and total else None

    @property
    def doing(self) -> str:
        """What the job does at this moment, as the service says it, or the job itself once its own code runs."""
        if self.done:
            return self.failure_reason or self.ended
        if self.secondary_status != "Training":
            again = self.interruptions and self.secondary_status in _STARTING
            return (self.message or self.secondary_status) + (", again after a spot interruption" if again else "")
        step, total = self.last("step"), self.last("total_steps")
        at = f"step {step:.0f} of {total:.0f}" if step is not None and total and not self.resuming else ""
        if at and self.progress != 1.0:
            return at
        # Before the first step and after the last one what the first host's log says since then tells it.
        newest = itertools.takewhile(lambda line: not line.startswith("metric "), reversed(self.log))
        told = next((line for line in newest if line.strip() and not line.startswith("[")), "")
        return told or at or self.message


def snapshot(
    workspace: Workspace, job_name: str, previous: Snapshot | None = None, *, now: Callable[[], float] = time.time
) -> Snapshot:
    """Look at a job once. With the previous snapshot only new log lines are fetched."""
    job = training.require_own_job(workspace, job_name)  # status first: the log is complete when it is terminal
    tokens = dict(previous.tokens) if previous else {}
    found_lines = logs.new_lines(workspace, LOG_GROUP, f"{job_name}/", tokens)
    lines = [_told(line, job_name) for line in found_lines]
    step_stream, resuming = _attempt(found_lines, tokens, previous.step_stream if previous else "", job_name)
    metrics = {name: list(points) for name, points in previous.metrics.items()} if previous else {}
    found = _points(lines, metrics)
    eta, eta_at = (found["eta_seconds"], now()) if "eta_seconds" in found else (None, 0.0)
    if eta is None and previous:
        eta, eta_at = (previous.metrics.get("eta_seconds", [(0, None)])[-1][1], previous.eta_at)
    stepping = job["TrainingJobStatus"] == "InProgress" and job["SecondaryStatus"] == "Training" and not resuming
    started, billable, elapsed = _times(job, now())
    resources = job["ResourceConfig"]
    count = resources.get("InstanceCount", 1)
    transitions = tuple(_transition(item) for item in job.get("SecondaryStatusTransitions", []))
    log = ((previous.log if previous else ()) + tuple(lines))[-_KEPT_LINES:]
    return Snapshot(
        job_name=job_name,
        status=job["TrainingJobStatus"],
        secondary_status=job["SecondaryStatus"],
        message=transitions[-1].message if transitions else "",
        transitions=transitions,
        metrics=metrics,
        new_lines=tuple(lines),
        log=log,
        elapsed_seconds=elapsed,
        billable_seconds=billable,
        eta_seconds=None if not stepping or eta is None or not started else _left(eta, now() - eta_at),
        cost_usd=costs.running_cost(resources["InstanceType"], workspace.aws.region, billable, count),
        charged=workspace.aws.charged,
        instance_type=resources["InstanceType"],
        instance_count=count,
        failure_reason=job.get("FailureReason", ""),
        model_uri=job.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""),
        spot=job.get("EnableManagedSpotTraining", False),
        spot_saving=costs.spot_saving(job),
        resuming=resuming,
        tokens=tokens,
        step_stream=step_stream,
        eta_at=eta_at,
    )


def _attempt(lines: list[tuple[str, str]], tokens: dict[str, str], before: str, job_name: str) -> tuple[str, bool]:
    """(log stream of the last step, whether another one has begun since): an attempt has a stream of its own."""
    first_host = f"{job_name}/algo-1-"
    stepped = [stream for stream, text in lines if stream.startswith(first_host) and text.startswith("metric step=")]
    stream = max([before, *stepped])
    return stream, bool(stream) and any(other > stream for other in tokens if other.startswith(first_host))


def _left(eta: float, passed: float) -> float:
    """What is left of an estimate; no more than it was, should the clock have been set back."""
    return min(eta, max(0.0, eta - passed))


def _times(job: dict[str, Any], now: float) -> tuple[bool, float, float]:
    """(training started, billable seconds, elapsed seconds)."""
    begin = job.get("TrainingStartTime")
    if begin is None:
        return False, 0.0, 0.0
    end = job.get("TrainingEndTime")
    elapsed = (end.timestamp() if end else now) - begin.timestamp()
    return True, float(job.get("BillableTimeInSeconds") or max(0.0, elapsed)), max(0.0, elapsed)


def _transition(item: dict[str, Any]) -> Transition:
    ended = item.get("EndTime")
    return Transition(item["Status"], item.get("StatusMessage", ""), item["StartTime"].astimezone(UTC), ended)


def _told(line: tuple[str, str], job_name: str) -> str:
    """A line as it is shown: the first host tells the story, the others say who they are."""
    stream, text = line
    return text if stream.startswith(f"{job_name}/algo-1-") else f"[{stream.split('/')[-1].rsplit('-', 1)[0]}] {text}"


def _points(lines: list[str], metrics: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Add the points of `metric ...` lines to `metrics`; returns the newest value of each name seen."""
    newest: dict[str, float] = {}
    for line in lines:
        if not line.startswith("metric "):
            continue
        values = {name: float(text) for name, text in _PAIR.findall(line)}
        steps = metrics.get("step", [])
        step = values.get("step", steps[-1][1] if steps else 0.0)
        for name, value in values.items():
            metrics.setdefault(name, []).append((step, value))
        newest |= values
    return newest


def watch(
    workspace: Workspace,
    settings: MonitorSettings,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> Iterator[Snapshot]:
    """Snapshots until the job has ended; the last one is the end. Interrupting stops the watching, not the job."""
    job_name = training.job_of(workspace, settings.run_name, settings.job_name)
    if settings.stop:
        training.stop(workspace, job_name)

    def look(previous: Snapshot | None) -> Snapshot:
        again = partial(snapshot, workspace, job_name, previous, now=now)
        return outages.wait_out(again, workspace, f"training job {job_name}", sleep=sleep)

    current = look(None)
    yield current
    was_running = not current.done
    while not current.done:
        sleep(settings.poll_seconds)
        current = look(current)
        yield current
    # CloudWatch is some seconds behind a job of AWS: its last lines come after its end.
    late = was_running and workspace.aws.charged
    while late:
        sleep(_LOGS_BEHIND_SECONDS)
        current = look(current)
        yield current
        late = bool(current.new_lines)


def raise_for_status(found: Snapshot) -> Snapshot:
    """Raise JobFailedError for a failed job, with the container's reason and its last lines; returns it otherwise."""
    if found.status != "Failed":
        return found
    trouble = troubles.recognise(found.failure_reason, found.log)
    tail = "\n".join(f"  | {line}" for line in found.log[-8:])
    cost = f" It has used {costs.usd(found.cost_usd)} of {found.instance_type}." if found.cost_usd is not None else ""
    raise JobFailedError(
        f"Training job {found.job_name} failed: {found.failure_reason.rstrip('.') or 'no reason was given'}.{cost}"
        + (f"\nLast log lines:\n{tail}" if tail else ""),
        fix=trouble.fix if trouble else "read the log above, change the setting it names and run 03_train again",
    )
