"""Beside a form stands which run is meant, what there is of it, and the notebook that has to run before."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtuner_kit import runs, settings
from llmtuner_kit.errors import KitError, NotFoundError, SettingsError
from llmtuner_kit.faces import standing
from llmtuner_kit.faces.show import Table
from llmtuner_kit.workspace import Workspace


def test_an_empty_run_name_is_shown_as_the_newest_run(workspace: Workspace) -> None:
    runs.open_run(workspace, "a-run", create=True)
    runs.open_run(workspace, "b-run", create=True).save("train", result={"job_name": "job-1"})
    found = dict(standing.run(settings.MonitorSettings(user_id=workspace.user_id)).facts)
    assert found["run"] == "b-run, the newest"
    assert found["training job"] == "job-1"
    chosen = settings.CleanupSettings(user_id=workspace.user_id, run_name="a-run")
    assert dict(standing.run(chosen).facts)["run"] == "a-run"


def test_the_notebook_that_has_to_run_before_is_named(workspace: Workspace) -> None:
    runs.open_run(workspace, "new", create=True)
    for step, needed in (("monitor", "03_train"), ("download", "03_train"), ("invoke", "06_deploy")):
        with pytest.raises(NotFoundError, match=needed):
            standing.run(settings.load(step, {"user_id": workspace.user_id}))
    named = settings.InvokeSettings(user_id=workspace.user_id, endpoint_name="another")
    assert standing.run(named).title == "This is about"


def test_what_would_be_sent_is_listed_with_what_would_not(workspace: Workspace, tmp_path: Path) -> None:
    runs.open_run(workspace, "new", create=True)
    for number in range(12):
        (tmp_path / f"{number:02d}.md").write_text("text")
    (tmp_path / "picture.png").write_bytes(b"x")
    card = standing.to_upload(settings.UploadSettings(user_id=workspace.user_id, source=str(tmp_path)))
    assert dict(card.facts)["files"] == "12, 48 bytes in all"
    left = card.parts[-1]
    assert isinstance(left, Table)
    assert left.rows[0][0] == "picture.png"


@pytest.mark.parametrize(("source", "kind"), [("", SettingsError), ("nowhere/at-all.csv", NotFoundError)])
def test_a_file_that_is_not_there_is_said_before_anything_runs(source: str, kind: type[KitError]) -> None:
    with pytest.raises(kind):
        standing.to_upload(settings.UploadSettings(source=source))


def test_a_base_model_says_where_it_can_be_trained() -> None:
    here = dict(standing.base_model(settings.StartSettings(model_id="smollm2-135m-instruct")).facts)
    assert here["trained on"].startswith("this machine")
    gated = dict(standing.base_model(settings.StartSettings(model_id="llama-2-7b")).facts)
    assert gated["trained on"].startswith("AWS, on ml.g5.2xlarge")
    assert "accept it" in gated["licence"]
