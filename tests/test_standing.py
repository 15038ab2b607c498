"""Beside a form stands which run is meant, what there is of it, and the notebook that has to run before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from llmtuner_kit import aws, runs, settings, training, uploads
from llmtuner_kit.errors import KitError, NotFoundError, SettingsError
from llmtuner_kit.faces import endings, preparation, standing, views
from llmtuner_kit.faces.forms import Form
from llmtuner_kit.faces.parts import Table
from llmtuner_kit.workspace import Workspace


def test_an_empty_run_name_is_shown_as_the_newest_run(workspace: Workspace) -> None:
    runs.open_run(workspace, "a-run", create=True)
    runs.open_run(workspace, "b-run", create=True).save("train", result={"job_name": "job-1"})
    found = dict(standing.run()(settings.MonitorSettings(user_id=workspace.user_id)).facts)
    assert found["run"] == "b-run, the newest"
    assert found["training job"] == "job-1"
    chosen = settings.CleanupSettings(user_id=workspace.user_id, run_name="a-run")
    assert dict(standing.run()(chosen).facts)["run"] == "a-run"


def test_what_was_made_of_an_earlier_job_is_not_said_to_be_done(workspace: Workspace) -> None:
    run = runs.open_run(workspace, "again", create=True)
    run.save("start", settings={"model_id": "smollm2-135m-instruct"})
    for step in ("download", "deploy", "invoke"):
        run.save(step, result={"job_name": "job-1"} if step != "invoke" else {"endpoint_name": "end-1"})
    run.save("deploy", result={"job_name": "job-1", "endpoint_name": "end-1"})
    run.save("train", result={"job_name": "job-2", "model_id": "tiny-llama"})
    asked = settings.CleanupSettings(user_id=workspace.user_id)
    found = dict(standing.run()(asked).facts)
    assert found["base model"] == "tiny-llama"
    assert found["endpoint"] == "end-1, with the model of job-1"
    assert found["done so far"] == "03_train"
    run.save("deploy", result={"job_name": "job-2", "endpoint_name": "end-2"})
    assert dict(standing.run()(asked).facts)["done so far"] == "03_train, 06_deploy"
    run.save("invoke", result={"endpoint_name": "end-2"})
    found = dict(standing.run()(asked).facts)
    assert (found["endpoint"], found["done so far"]) == ("end-2", "03_train, 06_deploy, 07_invoke")


def test_the_notebook_that_has_to_run_before_is_named(workspace: Workspace) -> None:
    runs.open_run(workspace, "new", create=True)
    for step, needed in (("monitor", "03_train"), ("download", "03_train"), ("invoke", "06_deploy")):
        with pytest.raises(NotFoundError, match=needed):
            standing.run()(settings.load(step, {"user_id": workspace.user_id}))
    named = settings.InvokeSettings(user_id=workspace.user_id, endpoint_name="another")
    assert standing.run()(named).title == "This is about"


def test_a_step_that_has_to_wait_is_not_said_to_be_ready(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.open_run(workspace, "new", create=True)
    run.save("train", result={"job_name": "job-1"})
    run.save("deploy", result={"endpoint_name": "gone"})
    job = {"TrainingJobStatus": "InProgress", "HyperParameters": {"model_id": "tiny-llama"}}
    monkeypatch.setattr(training, "require_own_job", lambda *_: job)
    own = {"user_id": workspace.user_id}
    assert "wait in 04_monitor" in standing.run()(settings.DownloadSettings(**own)).blocked
    assert "wait in 04_monitor" in endings.live_quote()(settings.DeploySettings(**own)).blocked
    assert "run 06_deploy" in standing.run()(settings.InvokeSettings(**own)).blocked
    assert standing.run()(settings.CleanupSettings(**own)).blocked == ""
    archive = workspace.paths.model_archive("job-1")
    workspace.aws.client("s3").put_object(Bucket=workspace.bucket, Key=archive, Body=b"model")
    assert standing.run()(settings.DownloadSettings(**own)).blocked == ""
    assert endings.live_quote()(settings.DeploySettings(**own)).blocked == ""


def test_what_would_be_sent_is_listed_with_what_would_not(workspace: Workspace, tmp_path: Path) -> None:
    runs.open_run(workspace, "new", create=True)
    for number in range(12):
        (tmp_path / f"{number:02d}.md").write_text("text")
    (tmp_path / "picture.png").write_bytes(b"x")
    card = standing.to_upload()(settings.UploadSettings(user_id=workspace.user_id, source=str(tmp_path)))
    assert dict(card.facts)["files"] == "12, 48 bytes in all"
    left = card.parts[-1]
    assert isinstance(left, Table)
    assert left.rows[0][0] == "picture.png"


@pytest.mark.parametrize(("source", "kind"), [("", SettingsError), ("nowhere/at-all.csv", NotFoundError)])
def test_a_file_that_is_not_there_is_said_before_anything_runs(
    workspace: Workspace, source: str, kind: type[KitError]
) -> None:
    runs.open_run(workspace, "new", create=True)
    with pytest.raises(kind):
        standing.to_upload()(settings.UploadSettings(user_id=workspace.user_id, source=source))


@pytest.fixture
def reads(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs whose record was read; there is one that can be trained and one that cannot."""
    runs.open_run(workspace, "bare", create=True).save("start", settings={"model_id": "tiny-llama"})
    splits = {"train": {"rows": 40, "tokens": 900}}
    ready = runs.open_run(workspace, "ready", create=True)
    ready.save("prepare", result={"model_id": "tiny-llama", "splits": splits, "max_length": 128})
    found: list[str] = []
    monkeypatch.setattr(standing.OnRun, "_FRESH_SECONDS", 3600.0)  # however slow the machine is just now
    reload = runs.Run.reload
    monkeypatch.setattr(runs.Run, "reload", lambda run: found.append(run.name) or reload(run))
    return found


def test_the_record_is_read_again_only_when_an_edit_names_another_run(workspace: Workspace, reads: list[str]) -> None:
    asked = settings.TrainSettings(user_id=workspace.user_id)
    look = views.live_quote()
    assert dict(look(asked).facts)["run"] == "ready, the newest"
    for change in ({"epochs": 3.0}, {"lora_r": 8}, {"instance_type": "ml.g5.2xlarge"}):
        look(asked.model_copy(update=change))
    assert reads == ["ready"]
    assert dict(look(asked.model_copy(update={"run_name": "ready"})).facts)["run"] == "ready"
    assert reads == ["ready", "ready"]


def test_where_jobs_are_charged_other_runs_are_searched_for_a_speed_once_a_machine(
    workspace: Workspace, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws.Aws, "charged", property(lambda _: True))
    asked = settings.TrainSettings(user_id=workspace.user_id)
    look = views.live_quote()
    for change in ({}, {"epochs": 3.0}, {"budget_usd": 5.0}):
        look(asked.model_copy(update=change))
    assert sorted(reads) == ["bare", "ready", "ready"]  # the run's own, and once all there are
    look(asked.model_copy(update={"instance_type": "ml.g5.2xlarge"}))
    assert sorted(reads) == ["bare", "bare", "ready", "ready", "ready"]


def test_what_was_missing_is_looked_for_again(workspace: Workspace, reads: list[str]) -> None:
    asked = settings.TrainSettings(user_id=workspace.user_id, run_name="bare")
    look = views.live_quote()
    with pytest.raises(NotFoundError, match="02_prepare"):
        look(asked)
    made = runs.open_run(workspace, "ready").result("prepare")
    runs.open_run(workspace, "bare").save("prepare", result=made)
    assert dict(look(asked).facts)["work"] == "900 tokens of 40 rows"


def test_a_quote_says_what_is_paid_at_most_and_what_the_step_would_refuse(
    workspace: Workspace, reads: list[str]
) -> None:
    asked = settings.TrainSettings(user_id=workspace.user_id, budget_usd=5.0)
    card = views.live_quote()(asked)
    facts = {name: str(value) for name, value in card.facts}
    assert "$5.00 at most; what it has learnt is kept" in facts["stopped after"]
    partly = views.live_quote()(asked.model_copy(update={"budget_usd": 0.09}))
    assert "below the high end of the quote" in str(dict(partly.facts)["stopped after"])
    assert facts["an endpoint of this type"].endswith("a month")
    assert card.blocked == ""
    short = views.live_quote()(asked.model_copy(update={"budget_usd": 0.01}))
    facts = {name: str(value) for name, value in short.facts}
    assert " to $" in facts["money on AWS"]
    assert "too little" in facts["budget"]
    assert "too little for the job to be started" in short.blocked
    large = asked.model_copy(update={"model_id": "llama-2-13b", "instance_type": "ml.g5.xlarge"})
    card = views.live_quote()(large)
    assert f"set instance_type to {card.offer['instance_type']!r}" in card.blocked
    charged = dataclasses.replace(training.quote(workspace, asked), charged=True, budget_usd=0.0)
    assert "no budget is set" in views.quote(charged).blocked


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is always a while ago."""
    monkeypatch.setattr(standing.OnRun, "_FRESH_SECONDS", 0.0)


def test_the_next_cell_takes_the_run_that_the_form_shows(workspace: Workspace, stale: None) -> None:
    runs.open_run(workspace, "a-shown", create=True).save("train", result={"job_name": "job-1"})
    form = Form("monitor", user_id=workspace.user_id).beside(standing.run())
    assert "a-shown, the newest" in form._beside.value
    runs.open_run(workspace, "b-later", create=True).save("train", result={"job_name": "job-2"})
    assert form.settings().run_name == "a-shown"
    assert "a-shown; b-later was used since: run this cell again to take that" in form._beside.value
    anew = Form("monitor", user_id=workspace.user_id).beside(standing.run())
    assert anew.settings().run_name == "b-later"
    form._controls["run_name"].value = "b-later"
    assert (form.settings().run_name, "job-2" in form._beside.value) == ("b-later", True)


def test_what_an_earlier_notebook_did_meanwhile_is_shown_when_the_next_cell_takes_it(
    workspace: Workspace, stale: None
) -> None:
    form = Form("monitor", user_id=workspace.user_id).beside(standing.run())
    assert "has no run yet" in form._beside.value
    assert form.settings().run_name == ""
    runs.open_run(workspace, "first", create=True)
    assert form.settings().run_name == ""
    assert "run 03_train" in form._beside.value
    runs.open_run(workspace, "first").save("train", result={"job_name": "job-1"})
    assert form.settings().run_name == "first"
    runs.open_run(workspace, "first").save("train", result={"job_name": "job-2"})
    assert form.settings().run_name == "first"
    assert "job-2" in form._beside.value
    assert "Run the next cell" in form._verdict.value


def test_files_brought_meanwhile_are_in_the_preview(workspace: Workspace, stale: None, tmp_path: Path) -> None:
    runs.open_run(workspace, "bare", create=True)
    asked = settings.PrepareSettings(user_id=workspace.user_id)
    look = preparation.first_rows()
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(f"question,answer\nIs it {name}?,It is {name}.\n")
        sent = settings.UploadSettings(user_id=workspace.user_id, source=str(tmp_path), dataset="files")
        uploads.upload(workspace, sent)
        assert f"It is {name}." in repr(look(asked))


def test_the_preview_reads_the_record_once_too(workspace: Workspace, reads: list[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\nIs it on?,It is.\n")
    uploads.upload(workspace, settings.UploadSettings(user_id=workspace.user_id, run_name="bare", source=str(file)))
    asked = settings.PrepareSettings(user_id=workspace.user_id, run_name="bare")
    look = preparation.first_rows()
    reads.clear()
    for change in ({}, {"leave_out": "*.md"}, {"output_template": "Answer: {answer}"}, {"shape": "question-answer"}):
        assert "It is." in repr(look(asked.model_copy(update=change)))
    assert reads == ["bare"]


def test_a_conversation_is_previewed_in_the_order_it_was_held_in(workspace: Workspace, tmp_path: Path) -> None:
    turns = [("user", "Is it on?"), ("assistant", "It is."), ("user", "And now?"), ("assistant", "Off.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "talk.jsonl").write_text(f"{json.dumps(row)}\n")
    runs.open_run(workspace, "bare", create=True)
    uploads.upload(workspace, settings.UploadSettings(user_id=workspace.user_id, source=str(tmp_path / "talk.jsonl")))
    asked = settings.PrepareSettings(user_id=workspace.user_id, run_name="bare")
    seen = repr(preparation.first_rows()(asked))
    places = [seen.index(part) for part in ("user: Is it on?", "Off.", "assistant: It is.", "user: And now?")]
    assert places == sorted(places)  # the last answer stands beside the first line


def test_a_base_model_says_where_it_can_be_trained() -> None:
    here = dict(standing.base_model(settings.StartSettings(model_id="smollm2-135m-instruct")).facts)
    assert here["trained on"].startswith("this machine")
    gated = dict(standing.base_model(settings.StartSettings(model_id="llama-2-7b")).facts)
    assert gated["trained on"].startswith("AWS, on ml.g5.2xlarge")
    assert "accept it" in gated["licence"]
