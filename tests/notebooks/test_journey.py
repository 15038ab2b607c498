"""All nine notebooks, headless, on a tiny model in the local cloud: what they leave behind in AWS and in the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtuner_kit import dataset, runs, settings, start, training, uploads
from llmtuner_kit.faces import notebooks
from llmtuner_kit.faces.notebooks import NotebookError
from llmtuner_kit.workspace import Workspace

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def rows(count: int) -> str:
    colours = ("red", "green", "blue", "amber", "white")
    lines = [
        {
            "instruction": f"What does lamp {n} show at {n % 24} o'clock?",
            "output": f"Lamp {n} is {colours[n % 5]} then.",
        }
        for n in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def journey(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Run one notebook of a run by its step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lamps.jsonl").write_text(rows(60))

    def run(step: str, **parameters: object) -> None:
        path = next(NOTEBOOKS.glob(f"*_{step}.ipynb"))
        given = {"run_name": "journey", "user_id": workspace.user_id, **parameters}
        notebooks.run(path, given, tmp_path / "out" / path.name, quiet=True)

    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nine_notebooks_from_a_file_to_an_answer_and_a_receipt(journey, workspace: Workspace, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sagemaker = workspace.aws.client("sagemaker")
    journey("start", model_id="tiny-llama")
    journey("upload", source=str(tmp_path / "lamps.jsonl"))
    journey("prepare", test_share=0.2)
    journey("train", max_steps=3, batch_tokens=256)
    journey("monitor", poll_seconds=0.5)
    run = runs.open_run(workspace, "journey")
    job = sagemaker.describe_training_job(TrainingJobName=run.result("train")["job_name"])
    assert job["TrainingJobStatus"] == "Completed"
    journey("download", folder=str(tmp_path / "models"))
    assert list((tmp_path / "models").rglob("model.safetensors"))
    journey("deploy")
    name = runs.open_run(workspace, "journey").result("deploy")["endpoint_name"]
    assert sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "InService"
    journey("invoke", max_new_tokens=8, compare=2)
    assert len(runs.open_run(workspace, "journey").result("invoke")["samples"]) == 2
    journey("cleanup")
    # It is Deleting until its servers have ended.
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    steps = runs.open_run(workspace, "journey").document["steps"]
    assert set(steps) == {"start", "upload", "prepare", "train", "download", "deploy", "invoke", "cleanup"}


@pytest.fixture
def started(workspace: Workspace) -> dict[str, str]:
    """A run as 00_start leaves it, by hand: a kernel takes seconds to start."""
    common = {"run_name": "journey", "user_id": workspace.user_id}
    start.begin(settings.StartSettings(**common, model_id="tiny-llama"))
    return common


def test_a_failed_job_fails_the_notebook_with_the_reason_from_the_container(  # type: ignore[no-untyped-def]
    journey, workspace: Workspace, started: dict[str, str], tmp_path: Path
) -> None:
    uploads.upload(workspace, settings.UploadSettings(**started, source=str(tmp_path / "lamps.jsonl")))
    dataset.prepare(workspace, settings.PrepareSettings(**started))
    # Longer rows than this model has positions for: the container refuses, not the kit.
    training.start(workspace, settings.TrainSettings(**started, max_length=100000, max_steps=1))
    with pytest.raises(NotebookError, match="max_length is 100000, tiny-llama reads at most 512 tokens") as caught:
        journey("monitor", poll_seconds=0.5)
    assert "04_monitor" in str(caught.value)


def test_a_notebook_run_out_of_order_names_the_one_to_run_first(journey, started: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NotebookError, match="upload"):
        journey("prepare")


def test_a_missing_file_stops_at_the_upload(journey, started: dict[str, str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NotebookError, match="There is no file"):
        journey("upload", source=str(tmp_path / "nothing.csv"))
