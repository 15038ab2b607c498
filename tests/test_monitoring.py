"""What a job is doing, in words that are true before the first step, between steps and after the last one."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmtuner_kit import logs, monitoring, training
from llmtuner_kit.faces import views
from llmtuner_kit.monitoring import Snapshot, snapshot
from llmtuner_kit.settings import MonitorSettings
from llmtuner_kit.workspace import Workspace

BEFORE = ("llmtuner training on host", "channel train: 9 rows", "data checked after 1.3 s; loading tiny-llama")


def seen(**changes: Any) -> Snapshot:
    """A job in training, with what is given changed."""
    values: dict[str, Any] = {
        "job_name": "job", "status": "InProgress", "secondary_status": "Training",
        "message": "Training image download completed. Training in progress.", "transitions": (), "metrics": {},
        "new_lines": (), "log": (), "elapsed_seconds": 62.0, "billable_seconds": 62.0, "eta_seconds": None,
        "cost_usd": 0.0242, "charged": False, "instance_type": "ml.g5.xlarge", "instance_count": 1,
        "failure_reason": "", "model_uri": "",
    }  # fmt: skip
    return Snapshot(**(values | changes))


def stepped(step: int) -> dict[str, list[tuple[float, float]]]:
    points = {"step": step, "total_steps": 8, "train_loss": 2.5, "tokens_per_second": 1234.5}
    return {name: [(step, float(value))] for name, value in points.items()}


@pytest.mark.parametrize(
    ("changes", "doing"),
    [
        ({"secondary_status": "Downloading", "message": "Downloading input data"}, "Downloading input data"),
        ({}, "Training image download completed. Training in progress."),
        ({"log": BEFORE}, BEFORE[-1]),
        ({"log": (*BEFORE, "[algo-2] channel train: 9 rows", "")}, BEFORE[-1]),
        ({"log": (*BEFORE, "metric step=3", "checkpoint saved"), "metrics": stepped(3)}, "step 3 of 8"),
        ({"log": ("checkpoint step-6 saved", "metric step=8"), "metrics": stepped(8)}, "step 8 of 8"),
        ({"log": ("metric step=8", "archive written in 1.1 s"), "metrics": stepped(8)}, "archive written in 1.1 s"),
        ({"secondary_status": "Uploading", "message": "Uploading generated training model"}, "Uploading generated training model"),
        ({"status": "Failed", "secondary_status": "Failed", "failure_reason": "out of memory"}, "out of memory"),
        ({"status": "Stopped", "secondary_status": "Stopped"}, "Stopped"),
        ({"status": "Stopped", "secondary_status": "MaxRuntimeExceeded"}, "Stopped: its time limit is over"),
    ],
)  # fmt: skip
def test_what_the_job_does_is_said_by_the_service_or_by_the_job(changes: dict[str, Any], doing: str) -> None:
    assert seen(**changes).doing == doing


def test_a_line_of_the_log_has_the_progress_with_its_numbers_and_only_then() -> None:
    line = views.snapshot(seen(metrics=stepped(3), eta_seconds=242.0)).line()
    assert line == "1 min 2 s · step 3 of 8 · loss 2.500 · 1,234 tokens/s · about 4 min 2 s left · $0.02 on AWS"
    assert views.snapshot(seen(log=BEFORE)).line() == f"1 min 2 s · {BEFORE[-1]} · $0.02 on AWS"


@pytest.mark.parametrize(("passed", "left"), [(30.0, 60.0), (3600.0, 0.0), (-3600.0, 90.0)])
def test_what_is_left_is_no_more_than_was_estimated_when_the_clock_is_set_back(passed: float, left: float) -> None:
    assert monitoring._left(90.0, passed) == left


def test_steps_are_one_phase_and_what_comes_before_them_are_others() -> None:
    phases = [
        views.snapshot(seen(**changes)).phase
        for changes in ({"log": BEFORE[:2]}, {"log": BEFORE}, {"metrics": stepped(1)}, {"metrics": stepped(2)})
    ]
    assert phases == [*BEFORE[1:], "steps", "steps"]


def test_the_last_loss_stands_beside_the_first_and_numbers_have_units() -> None:
    metrics = stepped(2) | {"train_loss": [(1, 4.0), (2, 2.5)], "token_accuracy": [(2, 0.107)]}
    facts = dict(views.snapshot(seen(metrics=metrics)).facts)
    assert facts["loss"] == "2.500, at first 4.000"
    assert facts["token accuracy"] == "10.7%"
    assert facts["speed"] == "1,234 tokens a second"
    assert facts["status"] == "Training: step 2 of 8"
    metrics |= {"base_perplexity": [(0, 1056.61)]}
    assert "perplexity on held-out rows" not in dict(views.snapshot(seen(metrics=metrics)).facts)
    facts = dict(views.snapshot(seen(metrics=metrics | {"perplexity": [(2, 8.9)]})).facts)
    assert facts["perplexity on held-out rows"] == "8.90, of the base model 1,056.61; lower is better"


@pytest.mark.parametrize(
    ("secondary", "told"), [("MaxWaitTimeExceeded", "or without spot"), ("MaxRuntimeExceeded", "larger budget_usd")]
)
def test_a_job_that_met_a_limit_says_which_and_how_it_goes_on(
    secondary: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views.artifacts, "actions", lambda *_: [])
    card = views.finished(cast(Workspace, None), seen(status="Stopped", secondary_status=secondary))
    assert dict(card.facts)["status"].startswith("Stopped: its ")
    assert told in str(card.parts[0])
    assert card.following == "03_train"


@pytest.mark.parametrize(
    ("charged", "looks", "told"),
    [(True, ["InProgress", "Failed", "Failed", "Failed"], ("why", "")), (False, ["InProgress", "Failed"], ("", ""))],
)
def test_the_last_lines_of_a_job_of_aws_are_waited_for(
    charged: bool, looks: list[str], told: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CloudWatch brings them seconds after the job has failed, and they say why."""
    lines = iter(["begin", "", *told])
    states = iter([*looks, "asked too often"])

    def snapshot(*_: object, **__: object) -> Snapshot:
        line = next(lines)
        return seen(status=next(states), new_lines=(line,) if line else ())

    monkeypatch.setattr(monitoring, "snapshot", snapshot)
    waits: list[float] = []
    workspace = cast(Workspace, SimpleNamespace(aws=SimpleNamespace(charged=charged)))
    watched = monitoring.watch(workspace, MonitorSettings(job_name="job", poll_seconds=1), sleep=waits.append)
    assert [item.status for item in watched] == looks
    assert waits == [1.0, 5.0, 5.0][: len(looks) - 1]


def test_a_job_that_had_ended_before_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "snapshot", lambda *_, **__: seen(status="Completed", new_lines=("all",)))
    workspace = cast(Workspace, SimpleNamespace(aws=SimpleNamespace(charged=True)))
    watched = monitoring.watch(workspace, MonitorSettings(job_name="job"), sleep=lambda _: pytest.fail("waited"))
    assert [item.status for item in watched] == ["Completed"]


def test_time_left_is_the_jobs_own_estimate_less_what_has_passed_since(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Training",
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1},
        "TrainingStartTime": datetime.fromtimestamp(1000, UTC),
    }
    lines = iter([[("job/algo-1-7", "metric step=3 total_steps=8 eta_seconds=60")], [], []])
    monkeypatch.setattr(training, "require_own_job", lambda *_: job)
    monkeypatch.setattr(logs, "new_lines", lambda *_: next(lines))
    workspace = cast(Workspace, SimpleNamespace(aws=SimpleNamespace(region="us-east-1", charged=False)))
    first = snapshot(workspace, "job", now=lambda: 1100.0)
    later = snapshot(workspace, "job", first, now=lambda: 1125.0)
    assert (first.elapsed_seconds, first.eta_seconds) == (100.0, 60.0)
    assert (later.elapsed_seconds, later.eta_seconds) == (125.0, 35.0)
    assert snapshot(workspace, "job", later, now=lambda: 1300.0).eta_seconds == 0.0


def test_a_spot_interruption_is_told_and_what_was_known_before_it_is_not_told_as_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, states = datetime.fromtimestamp(1000, UTC), ["Training", "Interrupted", "Starting", "Training", "Training"]
    job: dict[str, Any] = {
        "TrainingJobStatus": "InProgress", "TrainingStartTime": begun, "EnableManagedSpotTraining": True,
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1}, "SecondaryStatusTransitions": [],
    }  # fmt: skip
    said = ["metric step=21 total_steps=50 train_loss=6 eta_seconds=60", "", "", "resumed from step 23", "metric step=28 eta_seconds=50"]  # fmt: skip

    def new_lines(_: object, __: object, ___: object, tokens: dict[str, str]) -> list[tuple[str, str]]:
        stream, text = f"job/algo-1-{len(job['SecondaryStatusTransitions']) > 2:d}", said.pop(0)
        return [(stream, text)] if text and not tokens.update({stream: "f/1"}) else []

    monkeypatch.setattr(training, "require_own_job", lambda *_: job)
    monkeypatch.setattr(logs, "new_lines", new_lines)
    workspace = cast(Workspace, SimpleNamespace(aws=SimpleNamespace(region="us-east-1", charged=True)))
    looks: list[Snapshot] = []
    for state in states:
        job["SecondaryStatus"] = state
        job["SecondaryStatusTransitions"].append({"Status": state, "StatusMessage": state.upper(), "StartTime": begun})
        looks.append(snapshot(workspace, "job", looks[-1] if looks else None, now=lambda: 1100.0))
    doing = ["step 21 of 50", "INTERRUPTED", "STARTING, again after a spot interruption", "resumed from step 23", "step 28 of 50"]  # fmt: skip
    assert [item.doing for item in looks] == doing
    assert [item.eta_seconds for item in looks] == [60.0, None, None, None, 50.0]
    facts = dict(views.snapshot(looks[2]).facts)
    assert facts["spot"] == "1 interruption; goes on from its last checkpoint, if it has one"
    assert facts["cost so far"].startswith("at most $0.0")
    job |= {"TrainingJobStatus": "Completed", "TrainingTimeInSeconds": 100, "BillableTimeInSeconds": 40}
    said.append("")
    facts = dict(views.snapshot(snapshot(workspace, "job", looks[-1])).facts)
    assert facts["spot"] == "1 interruption"
    assert facts["cost"].endswith(", 60% saved by spot")


@pytest.mark.parametrize(("step", "share"), [(2, 0.25), (8, 1.0), (9, 1.0)])
def test_progress_is_a_share_of_the_steps(step: int, share: float) -> None:
    assert seen(metrics=stepped(step)).progress == share
