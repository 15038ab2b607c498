"""train.py itself on emulated hosts: the same on two as on one, and a usable model however the job ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from emulator.conftest import BUCKET, ROLE, Cloud, archive, channel

import parity
from generation import Generator
from llmtuner_kit import catalog, job_code, staging
from sampling import Sampling

ROWS = [
    {"instruction": f"What is the colour of thing {number}?", "output": f"Thing {number} is blue."}
    for number in range(24)
]


def submit(emulator: Cloud, hosts: int = 1, *, max_runtime: int = 600, options: Any = None, **values: str) -> str:
    """Start a job over so many hosts; its name. `values` are hyperparameters, `options` more of the request."""
    name = emulator.name()
    for place, files in {
        "code": staging.code_files(job_code.folder()),
        "train": {"train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode()},
        "model": {path.name: path.read_bytes() for path in catalog.base_model_folder("tiny-llama").iterdir()},
    }.items():
        for file, content in files.items():
            emulator.put(f"{name}/{place}/{file}", content)
    emulator.sagemaker.create_training_job(
        TrainingJobName=name,
        RoleArn=ROLE,
        AlgorithmSpecification={
            "TrainingImage": "example/training:1",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/train.py"],
        },
        HyperParameters={"precision": "fp32", "log_steps": "1", "batch_tokens": "300", **values},
        InputDataConfig=[channel(place, f"s3://{BUCKET}/{name}/{place}/") for place in ("code", "train", "model")],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
        ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": hosts, "VolumeSizeInGB": 10},
        Environment={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        **{"StoppingCondition": {"MaxRuntimeInSeconds": max_runtime}, **(options or {})},
    )
    return name


def trained(emulator: Cloud, hosts: int, **values: str) -> tuple[dict[int, float], dict[str, int], str]:
    """(loss by step, size by file of the archive, log) of a job over so many hosts."""
    name = submit(emulator, hosts, max_steps="3", **values)
    job = emulator.ended(name)
    log = "\n".join(emulator.log(name))
    assert job["TrainingJobStatus"] == "Completed", (job.get("FailureReason"), log)
    sizes = {name: len(content) for name, content in archive(emulator, job).items()}
    losses = re.findall(r"metric step=(\d+) .*?\btrain_loss=(\S+)", log)
    return {int(step): float(loss) for step, loss in losses}, sizes, log


def answering(emulator: Cloud, job: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """(manifest, answer to a question) of what a job left, loaded as a server loads it."""
    for name, content in archive(emulator, job).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    parity.check(folder)
    generator = Generator(folder)
    ids = generator.prompt_ids([{"role": "user", "content": ROWS[0]["instruction"]}])
    text = "".join(piece.text for piece in generator.stream(ids, Sampling(max_new_tokens=8)))
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    return json.loads((folder / "manifest.json").read_text()), text


@pytest.mark.slow
def test_two_hosts_train_what_one_trains_with_spread_weights(emulator: Cloud) -> None:
    """With whole weights two processes do so in the tests of train.py, and hosts differ in nothing else."""
    expected, files, _ = trained(emulator, 1)
    assert set(expected) == {1, 2, 3}
    losses, found, log = trained(emulator, 2, sharding="on")
    assert losses == {step: pytest.approx(loss, rel=1e-4) for step, loss in expected.items()}
    assert found["model.safetensors"] == files["model.safetensors"]
    assert set(found) == set(files)
    assert "weights spread over the processes" in log


@pytest.mark.slow
def test_a_job_that_is_interrupted_stopped_or_out_of_time_leaves_an_adapter_that_answers(
    emulator: Cloud, tmp_path: Path
) -> None:
    checkpoints = {"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/checkpoints/{emulator.name()}"}}
    spot = {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 600},
    }
    name = submit(emulator, options=checkpoints | spot, max_steps="100000", save_steps="50", learning_rate="0.003")
    emulator.await_line(name, "metric step=2 ")
    (emulator.home / "jobs" / name / "interrupt").touch()
    emulator.await_line(name, "resumed from checkpoint")
    emulator.sagemaker.stop_training_job(TrainingJobName=name)
    stopped = emulator.ended(name)
    assert (stopped["TrainingJobStatus"], stopped["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert "Interrupted" in [each["Status"] for each in stopped["SecondaryStatusTransitions"]]
    manifest, answer = answering(emulator, stopped, tmp_path / "stopped")
    assert answer
    assert manifest["metrics"]["steps"] >= 2
    assert not manifest["metrics"]["finished"]

    # Its time is over before it has loaded anything, but it has a checkpoint to go on from.
    name = submit(
        emulator, max_runtime=2, options=checkpoints, max_steps="100000", save_steps="50", learning_rate="0.003"
    )
    ended = emulator.ended(name)
    assert (ended["TrainingJobStatus"], ended["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    again, answer = answering(emulator, ended, tmp_path / "ended")
    assert answer
    assert again["metrics"]["steps"] >= manifest["metrics"]["steps"]
