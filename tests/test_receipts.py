"""Everything a run has started is on its receipt, and what still runs is stopped at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmtuner_kit import access, autoscaling, cleanup, costs, endpoints, receipts, runs
from llmtuner_kit.dataset import processing
from llmtuner_kit.errors import AccessError, JobFailedError
from llmtuner_kit.faces import endings
from llmtuner_kit.faces.parts import Table
from llmtuner_kit.settings import CleanupSettings
from llmtuner_kit.workspace import Workspace

QUOTE = {"seconds": [90, 400], "usd": [0.01, 0.05]}


@pytest.fixture
def run(workspace: Workspace) -> runs.Run:
    access.create_execution_role(workspace.aws, workspace.bucket)
    return runs.open_run(workspace, "demo", create=True)


def start(run: runs.Run, name: str, command: list[str]) -> None:
    """A processing job that does nothing but run a command, noted as the kit notes its own."""
    workspace = run.workspace
    workspace.aws.client("s3").put_object(
        Bucket=workspace.bucket, Key=f"{workspace.paths.root}x/manifest.json", Body=b"[]"
    )
    plan = processing.Plan(
        job_name=name,
        role_arn=access.execution_role(workspace.aws),
        image="763104351884.dkr.ecr.us-east-1.amazonaws.com/x:1",
        instance_type="ml.m5.xlarge",
        volume_gb=30,
        max_runtime_seconds=600,
        code_uri=workspace.paths.uri(f"{workspace.paths.root}x/"),
        manifest_uri=workspace.paths.uri(f"{workspace.paths.root}x/manifest.json"),
        output_uri=workspace.paths.uri(f"{workspace.paths.root}made"),
        user_id=workspace.user_id,
        run_name=run.name,
    )
    request: dict[str, Any] = processing.processing_job_request(plan)
    request["AppSpecification"]["ContainerEntrypoint"] = command
    request["ProcessingInputs"] = request["ProcessingInputs"][:1]
    workspace.aws.client("sagemaker").create_processing_job(**request)
    run.note("jobs", name, {"kind": "processing", "instance_type": "ml.m5.xlarge", "quote": QUOTE})


def ended(workspace: Workspace, name: str) -> dict[str, Any]:
    with contextlib.suppress(JobFailedError):
        processing._wait(workspace, name, lambda *_: None)
    found = processing.described(workspace, name)
    assert found is not None
    return found


def test_a_processing_job_is_on_the_receipt_with_its_seconds_price_and_quote(run: runs.Run) -> None:
    name = f"prepare-{access.user_mark(run.workspace.user_id)}"
    start(run, name, ["true"])
    job = ended(run.workspace, name)
    (line,) = receipts.receipt(run.workspace, "demo").lines
    assert line.what == f"processing job {name}"
    assert line.seconds == (job["ProcessingEndTime"] - job["ProcessingStartTime"]).total_seconds()
    assert line.usd == costs.running_cost("ml.m5.xlarge", "us-east-1", line.seconds, 1, "processing")
    assert line.quoted == "$0.01 to $0.05"
    assert line.verdict == "below the quote"
    kept = runs.open_run(run.workspace, "demo").result("cleanup")["receipt"]
    assert [item["what"] for item in kept] == [line.what]


def test_the_end_of_a_run_stops_its_processing_job_and_the_receipt_says_so(run: runs.Run) -> None:
    name = f"sleeper-{access.user_mark(run.workspace.user_id)}"
    start(run, name, ["sleep", "300"])
    common = {"run_name": "demo", "user_id": run.workspace.user_id}
    left = cleanup.clean_up(run.workspace, CleanupSettings(**common, stop_job=False))
    assert left.kept == (f"processing job {name}, which is still running",)
    done = cleanup.clean_up(run.workspace, CleanupSettings(**common))
    assert done.removed == (f"processing job {name} (stopped)",)
    assert ended(run.workspace, name)["ProcessingJobStatus"] == "Stopped"
    (line,) = receipts.receipt(run.workspace, "demo").lines
    assert line.what == f"processing job {name} (stopped)"
    assert cleanup.clean_up(run.workspace, CleanupSettings(**common)).removed == ()


def test_a_job_that_is_gone_is_named_with_an_unknown_cost(run: runs.Run) -> None:
    run.note("jobs", "prepare-gone", {"kind": "processing", "instance_type": "ml.m5.xlarge", "quote": QUOTE})
    run.note("jobs", "train-gone", {"kind": "training", "instance_type": "ml.g5.xlarge", "quote": QUOTE})
    made = receipts.receipt(run.workspace, "demo")
    assert [line.what for line in made.lines] == [
        "processing job prepare-gone (no longer known)",
        "training job train-gone (no longer known)",
    ]
    assert made.total_usd is None


def test_every_endpoint_of_a_run_is_counted_also_a_second_one_of_the_same_name(run: runs.Run) -> None:
    facts = {"endpoint_name": "lamp", "instance_type": "ml.g5.xlarge", "quote": {"usd_until_expiry": 2.0}}
    for day in (1, 2):
        times = {"created_at": f"2026-11-0{day}T10:00:00+00:00", "deleted_at": f"2026-11-0{day}T11:00:00+00:00"}
        run.note("endpoints", f"lamp {times['created_at']}", facts | times)
    made = receipts.receipt(run.workspace, "demo")
    assert [(line.what, line.seconds) for line in made.lines] == [("endpoint lamp", 3600.0)] * 2
    assert costs.usd(made.total_usd) == "$2.82"  # two lines of $1.41
    assert (
        cleanup.clean_up(run.workspace, CleanupSettings(run_name="demo", user_id=run.workspace.user_id)).removed == ()
    )


def test_two_notebooks_that_note_at_the_same_time_keep_both(run: runs.Run) -> None:
    other = runs.open_run(run.workspace, "demo")
    run.note("jobs", "one", {"kind": "training"})
    other.note("jobs", "two", {"kind": "processing"})
    assert list(runs.open_run(run.workspace, "demo").noted("jobs")) == ["one", "two"]


HOUR = 3600.0
BEGUN = datetime(2026, 11, 1, 10, tzinfo=UTC)


def scaling(*changes: tuple[int, int]) -> dict[str, Any]:
    """Application Auto Scaling's record, newest first: (minute, instances)."""
    items = [
        {
            "Description": f"Setting desired instance count to {count}.",
            "StartTime": BEGUN + timedelta(minutes=minute),
            "EndTime": BEGUN + timedelta(minutes=minute + 5),
            "StatusCode": "Successful",
        }
        for minute, count in changes
    ]
    return {"ScalingActivities": items[::-1]}


@pytest.fixture
def scaled() -> Callable[[Any], Workspace]:
    """A workspace whose Application Auto Scaling answers with this, or fails with it."""

    def make(answer: Any) -> Workspace:
        def pages(**_: Any) -> list[Any]:
            if isinstance(answer, Exception):
                raise answer
            return [answer]

        client = SimpleNamespace(get_paginator=lambda _: SimpleNamespace(paginate=pages))
        return cast(Workspace, SimpleNamespace(aws=SimpleNamespace(client=lambda _: client)))

    return make


DEPLOYED = {"endpoint_name": "lamp", "instances": 1, "autoscaling": "1 to 3 instances at 60 invocations a minute each"}


def test_an_autoscaled_endpoint_is_billed_by_what_autoscaling_did(scaled: Callable[[Any], Workspace]) -> None:
    workspace = scaled(scaling((60, 3), (120, 1)))
    seconds, counted = receipts._instance_seconds(workspace, DEPLOYED, BEGUN, BEGUN + timedelta(hours=3))
    # One hour of one; then three, until the two that were removed had gone five minutes later; then one.
    assert seconds == HOUR + 3 * (HOUR + 300) + (HOUR - 300)
    assert counted == ", 1 to 3 instances"


def test_scaling_of_an_earlier_endpoint_of_the_same_name_is_not_counted(scaled: Callable[[Any], Workspace]) -> None:
    seconds, counted = receipts._instance_seconds(
        scaled(scaling((-90, 3))), DEPLOYED, BEGUN, BEGUN + timedelta(hours=1)
    )
    assert (seconds, counted) == (HOUR, "")


def test_where_autoscaling_cannot_be_asked_the_amount_is_said_to_be_the_least(
    scaled: Callable[[Any], Workspace],
) -> None:
    seconds, counted = receipts._instance_seconds(
        scaled(AccessError("no")), DEPLOYED, BEGUN, BEGUN + timedelta(hours=1)
    )
    assert seconds == HOUR
    assert counted.startswith(", at least")


def test_a_fixed_number_of_instances_is_counted_without_asking(scaled: Callable[[Any], Workspace]) -> None:
    facts = DEPLOYED | {"instances": 2, "autoscaling": "off"}
    seconds, counted = receipts._instance_seconds(scaled(AccessError("no")), facts, BEGUN, BEGUN + timedelta(hours=1))
    assert (seconds, counted) == (2 * HOUR, ", 2 instances")


@pytest.mark.parametrize(
    ("born", "status", "living"),
    [(0, "InService", True), (0, "Deleting", False), (600, "InService", False)],  # 600: another one of the name
)
def test_an_endpoint_runs_on_only_where_it_is_the_one_that_was_deployed(
    monkeypatch: pytest.MonkeyPatch, scaled: Callable[[Any], Workspace], born: int, status: str, living: bool
) -> None:
    found = {"EndpointStatus": status, "CreationTime": BEGUN + timedelta(seconds=born)}
    monkeypatch.setattr(endpoints, "described", lambda *_: found)
    facts = DEPLOYED | {
        "autoscaling": "off", "instance_type": "ml.g5.xlarge", "created_at": BEGUN.isoformat(),
        "expires_at": (BEGUN + timedelta(hours=2)).isoformat(), "quote": {"usd_until_expiry": 3.0},
    }  # fmt: skip
    workspace = scaled([])
    workspace.aws.region = "us-east-1"
    line = receipts._endpoint_line(workspace, facts)
    assert line.what.endswith("(still running)") == living
    assert (line.seconds == 2 * HOUR) == (not living)


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ({"TrainingTimeInSeconds": 100, "BillableTimeInSeconds": 40, "EnableManagedSpotTraining": True}, "lamp, 60% saved by spot"),
        ({"EnableManagedSpotTraining": True, "TrainingJobStatus": "InProgress"}, "lamp (still running), at most, as spot is billed lower"),
        ({"TrainingTimeInSeconds": 100, "BillableTimeInSeconds": 100}, "lamp"),
    ],
)  # fmt: skip
def test_what_spot_has_saved_stands_on_the_receipt(
    job: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1}
    described = {"TrainingJobStatus": "Completed", "ResourceConfig": resources} | job
    monkeypatch.setattr(receipts.training, "require_own_job", lambda *_: described)
    workspace = cast(Workspace, SimpleNamespace(aws=SimpleNamespace(region="us-east-1")))
    assert receipts._training_line(workspace, "lamp", {"quote": QUOTE}).what == f"training job {told}"


def test_the_service_itself_answers_for_an_endpoint_that_is_gone(workspace: Workspace) -> None:
    assert autoscaling.history(workspace, "gone", BEGUN, BEGUN + timedelta(hours=1), 2) == [
        autoscaling.Scaled(BEGUN, 2)
    ]


@pytest.mark.parametrize("charged", [True, False])
def test_a_verdict_on_the_quote_is_given_only_where_the_quoted_instance_did_the_work(charged: bool) -> None:
    line = costs.Line("training job lamp", "ml.g5.xlarge", 863.0, 0.34, "$0.03 to $0.10", "above the quote")
    (table,) = endings.receipt(costs.Receipt("lamp", (line,), charged)).parts
    assert isinstance(table, Table)
    assert ("verdict" in table.head, "above the quote" in table.rows[0]) == (charged, charged)
    assert len(table.head) == len(table.rows[0])
