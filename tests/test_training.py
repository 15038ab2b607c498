"""Training: the request AWS would take, one job for the same inputs, and refusals that help."""

from __future__ import annotations

import ast
import json
import re
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.session
import pytest
from botocore.validate import ParamValidator
from iam import as_user

from llmtuner_kit import (
    archive_checks,
    catalog,
    cleanup,
    dataset,
    deployments,
    endpoints,
    evaluation,
    inference,
    monitoring,
    receipts,
    rehearsals,
    runs,
    settings,
    start,
    training,
    uploads,
)
from llmtuner_kit.artifacts import actions, archive_head, presign
from llmtuner_kit.errors import (
    AccessError,
    ConflictError,
    IntegrityError,
    JobFailedError,
    NotFoundError,
    NotReadyError,
    SettingsError,
)
from llmtuner_kit.faces import views
from llmtuner_kit.settings import TrainSettings
from llmtuner_kit.workspace import Workspace, open_workspace

ROOT = Path(__file__).parents[1]
LINE = "metric step=10 total_steps=120 epoch=0.31 train_loss=2.1034 token_accuracy=0.55 learning_rate=0.0002 grad_norm=1.2 tokens_per_second=812 tokens=40960 eta_seconds=93 memory_gb=3.2"  # fmt: skip


@pytest.fixture
def ready(workspace: Workspace, tmp_path: Path) -> Workspace:
    """A run with a prepared dataset of few rows."""
    file = tmp_path / "sums.jsonl"
    rows = [{"instruction": f"What is {n} plus {n}?", "output": f"It is {n + n}, of course."} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"run_name": "sums", "user_id": workspace.user_id}
    start.begin(settings.StartSettings(**common, model_id="tiny-llama"))
    uploads.upload(workspace, settings.UploadSettings(**common, source=str(file)))
    dataset.prepare(workspace, settings.PrepareSettings(**common))
    return workspace


@pytest.fixture
def asked(workspace: Workspace) -> Iterator[set[str]]:
    """The test's user may do what the user's policy allows, as on AWS; the actions that were asked for."""
    with as_user(workspace) as found:
        yield found


def wanted(workspace: Workspace, **changes: object) -> TrainSettings:
    given = {"run_name": "sums", "user_id": workspace.user_id, "max_steps": 2, "evaluation_samples": 1, **changes}
    found = settings.load("train", given)
    assert isinstance(found, TrainSettings)
    return found


def ended(workspace: Workspace, **changes: object) -> monitoring.Snapshot:
    watch = settings.MonitorSettings(run_name="sums", user_id=workspace.user_id, poll_seconds=0.2, **changes)
    *_, last = monitoring.watch(workspace, watch)
    return last


def test_request_is_one_that_sagemaker_takes(ready: Workspace) -> None:
    vpc = {"subnets": "subnet-0a1b2c3d, subnet-0a1b2c3e", "security_groups": "sg-0a1b2c3d"}
    asked = wanted(ready, spot=True, budget_usd=5, **vpc)
    run = runs.open_run(ready, "sums")
    request = training.training_job_request(training.make_plan(ready, asked, run, training.quote(ready, asked)))
    assert request["VpcConfig"] == {
        "SecurityGroupIds": ["sg-0a1b2c3d"], "Subnets": ["subnet-0a1b2c3d", "subnet-0a1b2c3e"],
    }  # fmt: skip
    elsewhere = training.make_plan(ready, wanted(ready, spot=True), run, training.quote(ready, asked))
    assert elsewhere.job_name == request["TrainingJobName"]  # where it runs makes it no other job
    shape = (
        botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    )
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    names = [item["ChannelName"] for item in request["InputDataConfig"]]
    assert names == ["code", "train", "validation", "test", "model"]
    own = f"s3://{ready.bucket}/users/{ready.user_id}/"
    assert all(item["DataSource"]["S3DataSource"]["S3Uri"].startswith(own) for item in request["InputDataConfig"])
    assert request["OutputDataConfig"]["S3OutputPath"].startswith(own)
    assert request["CheckpointConfig"]["S3Uri"].startswith(own)
    stopping = request["StoppingCondition"]
    assert stopping["MaxWaitTimeInSeconds"] > stopping["MaxRuntimeInSeconds"]
    assert {"Key": "llmtuner:owner", "Value": ready.user_id} in request["Tags"]
    assert "TOKEN" not in json.dumps(request).upper().replace("TOKENS", "").replace("TOKEN_ACC", "")


def test_metric_definitions_match_the_fixed_line_and_nothing_else() -> None:
    found = {name: re.search(rf"^metric .*\b{name}=([-+0-9.eE]+)", LINE) for name in training.METRICS}
    assert {name: float(match.group(1)) for name, match in found.items() if match} == {
        "train_loss": 2.1034, "token_accuracy": 0.55, "learning_rate": 0.0002, "grad_norm": 1.2, "tokens_per_second": 812,
        "epoch": 0.31, "step": 10, "total_steps": 120, "eta_seconds": 93, "memory_gb": 3.2,
    }  # fmt: skip
    assert not re.search(r"^metric .*\btrain_loss=([-+0-9.eE]+)", "the user wrote metric train_loss=1")


def test_hyperparameters_are_those_of_the_container(ready: Workspace) -> None:
    tree = ast.parse((ROOT / "train_src" / "hyperparameters.py").read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Hyperparameters")
    known = {node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    asked = wanted(ready)
    plan = training.make_plan(ready, asked, runs.open_run(ready, "sums"), training.quote(ready, asked))
    assert set(training.hyperparameters(plan)) <= known


@pytest.mark.slow
def test_job_is_started_once_found_again_and_its_results_are_there(
    asked: set[str], ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = training.start(ready, wanted(ready))
    assert not first.reused
    with pytest.raises(NotReadyError, match="its archive comes at the end"):
        presign(ready, first.job_name)
    again = training.start(ready, wanted(ready))
    assert (again.job_name, again.reused) == (first.job_name, True)
    last = monitoring.raise_for_status(ended(ready))
    assert last.status == "Completed"
    assert last.progress == 1.0
    assert last.last("train_loss") is not None
    # A restarted kernel knows nothing but the run's name.
    fresh = open_workspace(settings.MonitorSettings(user_id=ready.user_id))
    assert ended(fresh).metrics == last.metrics
    held_out = evaluation.held_out(fresh, first.job_name)
    assert held_out.rows >= 1
    assert held_out.verdict in ("better", "no clear difference", "worse")
    assert {item.name: item.available for item in actions(fresh, first.job_name)} == {
        "monitor": True,
        "stop": False,
        "download": True,
        "deploy": True,
    }
    job, head = training.require_own_job(fresh, first.job_name), archive_head(fresh, first.job_name)
    link = presign(fresh, first.job_name, minutes=7)
    assert parse_qs(urlsplit(link.url).query)["X-Amz-Expires"] == ["420"]
    with urllib.request.urlopen(link.url) as answer:
        assert len(answer.read()) == link.bytes == head["ContentLength"]
        assert link.file_name in answer.headers["Content-Disposition"]
    manifest = archive_checks.require_checked(fresh, job, head)
    monkeypatch.setattr(archive_checks, "_MARGIN", timedelta(days=-1))  # as if it had been touched since
    assert archive_checks.require_checked(fresh, job, head) == manifest
    deployed_and_deleted(fresh)
    asked.clear()
    key = fresh.paths.model_archive(first.job_name)
    fresh.aws.client("s3").put_object(Bucket=fresh.bucket, Key=key, Body=b"another archive")
    with pytest.raises(IntegrityError, match="damaged"):
        deployments.deploy(fresh, settings.DeploySettings(run_name="sums", user_id=ready.user_id))
    assert "sagemaker:DescribeTrainingJob" in asked
    assert "sagemaker:CreateModel" not in asked


def deployed_and_deleted(workspace: Workspace) -> None:
    """An endpoint named by hand and scaled by its load, from its creation to the receipt."""
    common = {"run_name": "sums", "user_id": workspace.user_id}
    name = f"by-hand-{uuid.uuid4().hex[:8]}"
    made = deployments.deploy(workspace, settings.DeploySettings(**common, endpoint_name=name, max_instances=2))
    assert made.autoscaling == "off"  # until it serves
    *_, last = endpoints.watch(workspace, name, poll_seconds=0.2)
    assert last.ready
    asked = settings.DeploySettings(**common, endpoint_name=name, max_instances=2)
    made = deployments.scale(workspace, asked, made)
    assert made.autoscaling.startswith("1 to 2 instances")
    assert runs.open_run(workspace, "sums").result("deploy")["autoscaling"] == made.autoscaling
    assert inference.invoke(
        workspace, inference.deployed(workspace, "sums"), "What is 2 plus 2?", max_new_tokens=4
    ).text
    assert [item.endpoint_name for item in endpoints.list_own(workspace)] == [name]
    longer = settings.DeploySettings(**common, endpoint_name=name, max_instances=2, time_to_live_minutes=600)
    again = deployments.deploy(workspace, longer)
    assert (again.reused, again.autoscaling) == (True, made.autoscaling)
    fixed = settings.DeploySettings(**common, endpoint_name=name)
    assert deployments.scale(workspace, fixed, deployments.deploy(workspace, fixed)).autoscaling == "off"
    assert deployments.scale(workspace, longer, deployments.deploy(workspace, longer)).autoscaling == made.autoscaling
    until = endpoints.status(workspace, name).expires_at
    assert until is not None
    assert until > datetime.now(UTC) + timedelta(minutes=590)
    gone = cleanup.clean_up(workspace, settings.CleanupSettings(**common)).removed
    assert gone[:2] == ("scaling target", f"endpoint {name}")
    (endpoint,) = [line for line in receipts.receipt(workspace, "sums").lines if line.what.startswith("endpoint")]
    assert endpoint.seconds > 0


def test_other_settings_are_another_job(ready: Workspace) -> None:
    run = runs.open_run(ready, "sums")
    names = set()
    for changes in ({}, {"seed": 7}, {"learning_rate": 0.01}):
        asked = wanted(ready, **changes)
        names.add(training.make_plan(ready, asked, run, training.quote(ready, asked)).job_name)
    assert len(names) == 3


def test_failed_job_raises_the_reason_from_inside_the_container(asked: set[str], ready: Workspace) -> None:
    training.start(ready, wanted(ready, max_length=4))
    last = ended(ready)
    assert last.status == "Failed"
    with pytest.raises(JobFailedError) as caught:
        monitoring.raise_for_status(last)
    assert last.failure_reason.split("\n")[0] in caught.value.problem
    assert "Last log lines" in caught.value.problem
    assert caught.value.fix
    assert "logs:GetLogEvents" in asked


def test_stopped_job_is_an_outcome_not_an_error(asked: set[str], ready: Workspace) -> None:
    training.start(ready, wanted(ready, max_steps=100_000))
    last = ended(ready, stop=True)
    assert last.status == "Stopped"
    assert monitoring.raise_for_status(last) is last
    assert {"s3:ListBucketMultipartUploads", "sagemaker:StopTrainingJob"} <= asked


@pytest.mark.slow
def test_a_job_that_was_stopped_goes_on_from_its_checkpoint_when_it_is_started_again(ready: Workspace) -> None:
    """What it has learnt was paid for; that it may run longer or elsewhere now makes it no other job."""
    asked = wanted(ready, max_steps=100_000, seed=12)
    first = training.start(ready, asked)
    watching = settings.MonitorSettings(run_name="sums", user_id=ready.user_id, poll_seconds=0.2)

    def watch_until(said: Callable[[str], bool]) -> None:
        for seen in monitoring.watch(ready, watching):
            if any(said(line) for line in seen.log):
                break
        ended(ready, stop=True)

    watch_until(lambda line: "train_loss=" in line)
    again = training.start(ready, asked.model_copy(update={"max_runtime_minutes": 600, "spot": True}))
    assert not again.reused
    assert again.earlier == first.job_name != again.job_name
    watch_until(lambda line: line.startswith("resumed from checkpoint step-"))


def test_model_that_does_not_fit_names_the_instance_that_does(ready: Workspace) -> None:
    with pytest.raises(SettingsError, match=r"does not fit ml.g5.xlarge") as caught:
        training.start(ready, wanted(ready, model_id="llama-2-13b", method="full", instance_type="ml.g5.xlarge"))
    assert caught.value.fix


def test_a_method_that_needs_a_gpu_is_refused_before_a_job_is_made(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsals, "_GPUS", ())
    asked = wanted(ready, method="qlora")
    with pytest.raises(SettingsError, match="'qlora' needs an NVIDIA GPU, and target 'local'"):
        training.start(ready, asked)
    assert runs.open_run(ready, "sums").noted("jobs") == {}
    card = views.quote(training.quote(ready, asked))  # what it would cost on AWS is told all the same
    assert "set method to 'lora'" in card.blocked


def test_gated_model_asks_for_a_secret_before_anything_is_spent(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = wanted(ready, model_id="llama-2-7b", instance_type="ml.g5.2xlarge")
    with pytest.raises(SettingsError, match="gated on the Hub") as caught:
        training.start(ready, asked)
    name = f"llmtuner/{ready.user_id}/hf-token"
    assert name in caught.value.fix
    monkeypatch.setenv("HF_TOKEN_SECRET_ARN", name)
    with pytest.raises(SettingsError, match="which is no ARN of a secret"):
        training.start(ready, asked)


def test_a_model_of_the_hub_is_fetched_to_the_instances_own_disk() -> None:
    """The container's root volume has no room to spare beside the image; SageMaker's scratch folder has the whole disk."""
    assert training._environment(catalog.base_model("flan-t5-xl"), "ada") == {"HF_HOME": "/tmp/huggingface"}


def test_a_key_is_given_for_the_archive_and_none_for_disks_that_hardware_encrypts(ready: Workspace) -> None:
    asked = wanted(ready, kms_key_id="alias/mine")
    plan = training.make_plan(ready, asked, runs.open_run(ready, "sums"), training.quote(ready, asked))
    request = training.training_job_request(plan)
    assert request["OutputDataConfig"]["KmsKeyId"] == "alias/mine"
    assert "VolumeKmsKeyId" not in request["ResourceConfig"]


def test_job_of_another_user_is_out_of_reach(ready: Workspace) -> None:
    job = training.start(ready, wanted(ready, seed=11))
    other = open_workspace(settings.MonitorSettings(user_id="somebody-else"))
    with pytest.raises(AccessError, match="somebody-else"):
        monitoring.snapshot(other, job.job_name)
    with pytest.raises(AccessError, match="somebody-else"):
        training.stop(other, job.job_name)
    with pytest.raises(NotFoundError, match="no training job 'nobody'"):
        monitoring.snapshot(ready, "nobody")
    ended(ready, stop=True)


def test_an_update_of_the_kit_finds_the_job_that_runs_and_starts_no_second_one(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = wanted(ready, max_steps=100_000, seed=13)
    first = training.start(ready, asked)
    noted = runs.open_run(ready, "sums").noted("jobs")
    code = training.staging.stage_code(ready)[1]
    monkeypatch.setattr(training.staging, "stage_code", lambda _: ("0" * 12, code))
    monkeypatch.setattr(training.llmtuner_kit, "__version__", "0.0.2")
    again = training.start(ready, asked)
    assert (again.job_name, again.reused, again.other_code) == (first.job_name, True, "InProgress")
    assert "stop it in 04_monitor" in repr(views.of(again))
    assert runs.open_run(ready, "sums").result("train")["job_name"] == first.job_name
    assert runs.open_run(ready, "sums").noted("jobs") == noted
    ended(ready, stop=True)
    assert not training.start(ready, asked).reused
    ended(ready, stop=True)


def test_a_start_that_is_interrupted_leaves_no_job_that_the_run_does_not_know(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(create: Any, **request: Any) -> None:
        raise SettingsError("SageMaker refuses: no.")

    def interrupted(create: Any, **request: Any) -> None:
        create(**request)
        raise KeyboardInterrupt

    common = {"run_name": "sums", "user_id": ready.user_id}
    monkeypatch.setattr(training.creation, "once", refused)
    with pytest.raises(SettingsError, match="refuses"):
        training.start(ready, wanted(ready, seed=14))
    assert receipts.receipt(ready, "sums").lines == ()  # it was never there
    monkeypatch.setattr(training.creation, "once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.start(ready, wanted(ready, max_steps=100_000, seed=15))
    (stopped,) = cleanup.clean_up(ready, settings.CleanupSettings(**common)).removed
    assert stopped.startswith("training job sums-tiny-llama-")
    (line,) = receipts.receipt(ready, "sums").lines
    assert line.what.endswith(("(stopping)", "(stopped)"))


def test_name_taken_by_something_else_is_a_conflict(ready: Workspace) -> None:
    asked = wanted(ready)
    plan = training.make_plan(ready, asked, runs.open_run(ready, "sums"), training.quote(ready, asked))
    request = training.training_job_request(plan)
    request["HyperParameters"] = {"something": "else"}
    ready.aws.client("sagemaker").create_training_job(**request)
    with pytest.raises(ConflictError, match="made from other inputs"):
        training.start(ready, asked)
    ended(ready, job_name=plan.job_name)
