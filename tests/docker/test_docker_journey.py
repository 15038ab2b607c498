"""The nine notebooks on target local-docker: the same notebooks, the same calls, in containers."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from docker_cloud import DockerCloud

from llmtuner_kit import runs
from llmtuner_kit.faces import notebooks
from llmtuner_kit.settings import StartSettings
from llmtuner_kit.workspace import open_workspace

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
STEPS = {
    "start": {"model_id": "tiny-llama"},
    "upload": {"source": "lamps.jsonl"},
    "prepare": {"test_share": 0.2},
    "train": {"max_steps": 3, "batch_tokens": 256},
    "monitor": {"poll_seconds": 0.5},
    "download": {"folder": "models"},
    "deploy": {},
    "invoke": {"max_new_tokens": 8, "compare": 2},
    "cleanup": {},
}


def test_nine_notebooks_in_containers(engine: DockerCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    colours = ("red", "green", "blue", "amber", "white")
    rows = [
        {"instruction": f"What does lamp {n} show?", "output": f"{colours[n % 5]}, {n % 24} times."} for n in range(60)
    ]
    Path("lamps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    user = f"user-{uuid.uuid4().hex[:10]}"
    for step, parameters in STEPS.items():
        path = next(NOTEBOOKS.glob(f"*_{step}.ipynb"))
        given = {"run_name": "journey", "user_id": user, "target": "local-docker", **parameters}
        notebooks.run(path, given, tmp_path / "out" / path.name, quiet=True)
    assert list(Path("models").rglob("model.safetensors"))
    workspace = open_workspace(StartSettings(user_id=user, target="local-docker"))
    run = runs.open_run(workspace, "journey")
    assert set(run.document["steps"]) == set(STEPS) - {"monitor"}
    assert len(run.result("invoke")["samples"]) == 2
    job = engine.describe(run.result("train")["job_name"])
    assert job["TrainingJobStatus"] == "Completed"
    assert job["ResourceConfig"]["InstanceCount"] == 1
