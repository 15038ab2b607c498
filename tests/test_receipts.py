"""Everything a run has started is on its receipt, and what still runs is stopped at its end."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from llmtuner_kit import access, cleanup, costs, receipts, runs
from llmtuner_kit.dataset import processing
from llmtuner_kit.errors import JobFailedError
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
    assert made.total_usd == pytest.approx(2 * 1.408)
    assert (
        cleanup.clean_up(run.workspace, CleanupSettings(run_name="demo", user_id=run.workspace.user_id)).removed == ()
    )


def test_two_notebooks_that_note_at_the_same_time_keep_both(run: runs.Run) -> None:
    other = runs.open_run(run.workspace, "demo")
    run.note("jobs", "one", {"kind": "training"})
    other.note("jobs", "two", {"kind": "processing"})
    assert list(runs.open_run(run.workspace, "demo").noted("jobs")) == ["one", "two"]
