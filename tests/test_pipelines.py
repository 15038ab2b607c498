"""Pipelines: read and checked as a whole, resumed at the first step that is not done."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nbformat
import pytest
from ipywidgets import Widget

from llmtuner_kit import rehearsals
from llmtuner_kit.errors import ConflictError, NotFoundError, SettingsError
from llmtuner_kit.faces import notebooks, pipelines, report
from llmtuner_kit.faces.charts import Chart
from llmtuner_kit.faces.forms import Form
from llmtuner_kit.faces.notebooks import Executed, NotebookError
from llmtuner_kit.faces.parts import Table
from llmtuner_kit.workspace import Workspace

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the notebooks that were run, in a folder of its own; a notebook named in `ran.broken` fails."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def run(notebook: Path, parameters: dict[str, Any], output: Path) -> Executed:
        if f"!{notebook.stem}" in names:
            raise NotebookError("the cell failed")
        names.append(notebook.stem)
        return Executed(notebook, output, 1.5)

    monkeypatch.setattr(notebooks, "run", run)
    return names


def write(folder: Path, text: str) -> Path:
    path = folder / "p.yaml"
    path.write_text(text)
    return path


def run_once(folder: Path, text: str) -> pipelines.Pipeline:
    """Run a file's only pipeline."""
    (pipeline,) = pipelines.load(write(folder, text), NOTEBOOKS)
    pipelines.run(pipeline, tell=lambda _: None)
    return pipeline


def test_shared_parameters_go_to_the_steps_that_have_them(tmp_path: Path) -> None:
    file = write(
        tmp_path, "parameters: {run_name: r, epochs: 3}\nsteps:\n  - upload: {source: ./rows.csv}\n  - train\n"
    )
    (pipeline,) = pipelines.load(file, NOTEBOOKS)
    upload, train = pipeline.steps
    assert upload.parameters == {"run_name": "r", "source": str(tmp_path / "rows.csv")}
    assert train.parameters == {"run_name": "r", "epochs": 3}
    assert train.notebook == NOTEBOOKS / "03_train.ipynb"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps:\n  - train: {epoch: 3}\n  - upload: {sauce: x}\n", ["epoch", "sauce"]),
        ("steps:\n  - trainn\n", ["trainn"]),
        ("parameters: {epochs: 2}\nsteps:\n  - upload\n", ["epochs"]),
        ("stepps:\n  - upload\n", ["stepps"]),
        ("steps: [", ["YAML"]),
        ("steps: train\n", ["steps: one line for each step"]),
        ("steps:\n  train: {epochs: 3}\n", ["steps: one line for each step"]),
        ("steps:\n  - train:\n    epochs: 3\n", ["train: its parameters stand in braces"]),
        ("steps:\n  - 03_train\n", ["03_train: no such step; did you mean train?"]),
        ("steps:\n  - train: 3\n  - {}\n", ["train: its parameters", "{}: no such step"]),
        ("parameters: [epochs]\nsteps: [train]\nsweep: {epochs: 2}\n", ["parameters: one line", "sweep: a list"]),
        ("steps: [train]\nsweep: {epochs: []}\n", ["sweep: a list of values"]),
        ("parameters:\n  epochs: 1\n  epochs: 3\nsteps: [train]\n", ["'epochs' is there twice", "line 3"]),
        ("steps: [start]\nsteps: [train]\n", ["'steps' is there twice"]),
        ("steps:\n  - train: {seed: 1}\nsweep: {seed: [1, 2]}\n", ["sweep: seed has no effect, as step train"]),
        (
            "steps: [train]\nsweep: {learning_rates: [1]}\n",
            ["sweep: no step has 'learning_rates'; did you mean learning_rate?"],
        ),
        ("name: ../x\nsteps: [train]\n", ["name: is '../x'"]),
        ("name: /tmp/x\nsteps: [train]\n", ["name: is '/tmp/x'"]),
        (f"name: {'x' * 300}\nsteps: [train]\n", ["at most 100 characters"]),
    ],
)
def test_every_problem_is_named_before_anything_runs(
    tmp_path: Path, ran: list[str], text: str, said: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        pipelines.load(write(tmp_path, text), NOTEBOOKS)
    assert all(word in str(caught.value) for word in said)
    assert ran == []


def test_a_method_that_cannot_be_rehearsed_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsals, "_GPUS", ())
    text = "parameters: {target: %s}\nsteps:\n  - upload\n  - train: {method: qlora}\n"
    with pytest.raises(SettingsError, match=r"train: method 'qlora' needs an NVIDIA GPU.* set method to 'lora'"):
        pipelines.load(write(tmp_path, text % "local"), NOTEBOOKS)
    assert pipelines.load(write(tmp_path, text % "aws"), NOTEBOOKS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.yaml"):
        pipelines.load(tmp_path / "nothing.yaml")


def test_a_file_kept_anywhere_finds_the_notebooks_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (pipeline,) = pipelines.load(write(tmp_path, "steps: [upload]\n"))
    assert pipeline.steps[0].notebook == NOTEBOOKS / "01_upload.ipynb"


def test_a_second_run_does_nothing_and_fresh_does_all(tmp_path: Path, ran: list[str]) -> None:
    pipeline = run_once(tmp_path, "steps: [upload, prepare]\n")
    assert ran == ["01_upload", "02_prepare"]
    pipelines.run(pipeline, tell=lambda _: None)
    assert ran == ["01_upload", "02_prepare"]
    pipelines.run(pipeline, fresh=True, tell=lambda _: None)
    assert ran == ["01_upload", "02_prepare"] * 2


def test_one_that_is_running_is_not_run_beside_itself(tmp_path: Path, ran: list[str]) -> None:
    (pipeline,) = pipelines.load(write(tmp_path, "steps: [start]\n"), NOTEBOOKS)
    pipeline.folder.mkdir(parents=True)
    with (pipeline.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="is running already"):
            pipelines.run(pipeline, tell=lambda _: None)
    assert not ran
    assert [done.step for done in pipelines.run(pipeline, tell=lambda _: None)] == ["start"]


@pytest.mark.parametrize("damage", ["", "[{", '[{"step": "start"}]', '{"a": 1}'])
def test_a_damaged_state_lets_the_steps_run_again(tmp_path: Path, ran: list[str], damage: str) -> None:
    pipeline = run_once(tmp_path, "steps: [start, upload]\n")
    (pipeline.folder / "state.json").write_text(damage)
    run_once(tmp_path, "steps: [start, upload]\n")
    assert ran == ["00_start", "01_upload"] * 2


def test_it_goes_on_at_the_step_that_failed(tmp_path: Path, ran: list[str]) -> None:
    (pipeline,) = pipelines.load(write(tmp_path, "steps: [upload, prepare, train]\n"), NOTEBOOKS)
    ran.append("!02_prepare")
    with pytest.raises(NotebookError):
        pipelines.run(pipeline, tell=lambda _: None)
    ran.clear()
    pipelines.run(pipeline, tell=lambda _: None)
    assert ran == ["02_prepare", "03_train"]


def test_a_report_of_what_was_deleted_since_says_how_to_make_it_anew(
    tmp_path: Path, ran: list[str], workspace: Workspace
) -> None:
    text = f"name: gone\nparameters: {{user_id: {workspace.user_id}}}\nsteps: [upload]\n"
    pipeline = run_once(tmp_path, text)
    with pytest.raises(NotFoundError, match="--fresh"):
        report.cards(pipeline)


def test_a_report_says_what_was_learnt_from_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"rows_in": 1200, "accepted": 1150, "rejected": 40, "duplicates": 10}
    splits = {"train": {"rows": 1000}, "validation": {"rows": 150}, "test": {"rows": 0}}
    data = report._data({"dataset": "lamps", "version": "b8f", "counts": counts, "splits": splits})
    assert dict(data.facts)["rows that came in"] == "1,200: 1,150 accepted, 40 rejected, 10 duplicates"
    assert dict(data.facts)["rows as divided"] == "train 1,000, validation 150, test 0"
    metrics = {"train_loss": [(1, 4.0), (2, 2.5)], "eval_loss": [(2, 2.75)]}
    seen = SimpleNamespace(
        job_name="j", status="Completed", elapsed_seconds=62.0, metrics=metrics, first=lambda _: 4.0, last=lambda _: 2.5
    )
    monkeypatch.setattr(report.monitoring, "snapshot", lambda *_: seen)
    asked = {"method": "lora", "epochs": "2.0", "max_steps": "0", "learning_rate": "0.0002"}
    trained = {"job_name": "j", "model_id": "tiny-llama", "hyperparameters": asked}
    made = report._training(cast(Workspace, None), trained)
    assert dict(made.facts)["base model"] == "tiny-llama, tuned with lora"
    assert dict(made.facts)["for"] == "2 epochs at learning rate 0.0002"
    assert [part.title for part in made.parts if isinstance(part, Chart)] == ["Loss"]
    trained["hyperparameters"] = asked | {"max_steps": "80"}
    assert dict(report._training(cast(Workspace, None), trained).facts)["for"].startswith("80 steps")


def test_the_runs_of_a_sweep_are_shown_beside_each_other_with_what_they_differ_in(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "name: s\nsteps:\n  - train: {epochs: 2}\nsweep: {learning_rate: [0.001, 0.002, 0.003]}\n"
    first, second, third = pipelines.load(write(tmp_path, text), NOTEBOOKS)
    for item in (first, second):
        pipelines.run(item, tell=lambda _: None)
    assert ran == ["03_train"] * 2
    run = SimpleNamespace(workspace=None, section=lambda _: {"result": {"job_name": "j"}})
    monkeypatch.setattr(report, "_run_of", lambda _: run)
    monkeypatch.setattr(report.monitoring, "snapshot", lambda *_: SimpleNamespace(last=lambda _: 1.25))
    scores = [
        SimpleNamespace(perplexity=9.5, token_accuracy=0.5),
        SimpleNamespace(perplexity=7.25, token_accuracy=0.625),
    ]
    made = iter(SimpleNamespace(tuned=item, verdict="better") for item in scores)
    monkeypatch.setattr(report.evaluation, "held_out", lambda *_: next(made))
    (table,) = report.compared([first, second, third]).parts
    assert isinstance(table, Table)
    assert table.head == ("run", "learning_rate", "last loss", "perplexity", "token accuracy", "verdict")
    assert table.rows == [
        ("s-1", 0.001, "1.250", "9.50", "50.0%", "better"),
        ("s-2", 0.002, "1.250", "7.25", "62.5%", "better"),
        ("s-3", 0.003, "not yet", "", "", ""),
    ]


def test_a_report_shows_what_was_set_where_a_notebook_had_controls(tmp_path: Path) -> None:
    form = Form("upload", source="rows.csv")
    output = nbformat.v4.new_output("execute_result", data=dict(form._repr_mimebundle_()), execution_count=1)
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("form", outputs=[output])])
    document.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": Widget.get_manager_state()}
    nbformat.write(document, tmp_path / "01_upload.ipynb")
    assert "source = 'rows.csv'" in report._notebook(tmp_path / "01_upload.ipynb")


def test_a_changed_parameter_runs_its_step_and_all_that_follow(tmp_path: Path, ran: list[str]) -> None:
    text = "steps:\n  - upload\n  - prepare: {test_share: %s}\n  - train\n"
    run_once(tmp_path, text % 0.1)
    ran.clear()
    run_once(tmp_path, text % 0.2)
    assert ran == ["02_prepare", "03_train"]


def test_what_a_clean_up_has_deleted_is_deployed_again_for_a_changed_step(tmp_path: Path, ran: list[str]) -> None:
    text = "steps:\n  - monitor\n  - deploy\n  - invoke: {compare: %s}\n  - cleanup\n"
    run_once(tmp_path, text % 2)
    ran.clear()
    run_once(tmp_path, text % 3)
    assert ran == ["06_deploy", "07_invoke", "08_cleanup"]
    ran.clear()
    run_once(tmp_path, text % 3)
    assert ran == []


def test_a_name_for_people_gives_the_run_a_name_for_aws(tmp_path: Path) -> None:
    (pipeline,) = pipelines.load(write(tmp_path, "name: My Tickets (2024)\nsteps: [upload]\n"), NOTEBOOKS)
    assert (pipeline.name, pipeline.run_name) == ("My Tickets (2024)", "my-tickets-2024")


def test_a_sweep_is_one_pipeline_for_each_combination(tmp_path: Path) -> None:
    text = "name: s\nparameters: {run_name: r}\nsteps: [train]\nsweep: {epochs: [1, 2], lora_r: [8, 16]}\n"
    made = pipelines.load(write(tmp_path, text), NOTEBOOKS)
    assert [item.run_name for item in made] == ["r-1", "r-2", "r-3", "r-4"]
    assert [item.steps[0].parameters["lora_r"] for item in made] == [8, 16, 8, 16]


@pytest.mark.parametrize("file", sorted((NOTEBOOKS / "samples").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_pipelines_are_valid_and_find_their_data(file: Path) -> None:
    for pipeline in pipelines.load(file):
        assert pipeline.steps[0].step == "start"
        upload = next(step for step in pipeline.steps if step.step == "upload")
        assert Path(upload.parameters["source"]).exists()
