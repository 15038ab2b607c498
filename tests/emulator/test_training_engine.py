"""train.py itself over emulated hosts: the same losses and the same archive as on one."""

from __future__ import annotations

import json
import re

import pytest
from emulator.conftest import BUCKET, ROLE, Cloud, archive, channel

from llmtuner_kit import catalog, staging

ROWS = [
    {"instruction": f"What is the colour of thing {number}?", "output": f"Thing {number} is blue."}
    for number in range(24)
]


def trained(emulator: Cloud, hosts: int, **hyperparameters: str) -> tuple[dict[int, float], dict[str, int], str]:
    """(loss by step, size by file of the archive, log) of a job over so many hosts."""
    name = emulator.name()
    for place, files in {
        "code": staging.code_files(staging.code_folder()),
        "train": {"train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode()},
        "model": {path.name: path.read_bytes() for path in catalog.base_model_folder("tiny-llama").iterdir()},
    }.items():
        for file, content in files.items():
            emulator.put(f"{name}/{place}/{file}", content)
    values = {"max_steps": "3", "precision": "fp32", "log_steps": "1", "batch_tokens": "300", **hyperparameters}
    emulator.sagemaker.create_training_job(
        TrainingJobName=name,
        RoleArn=ROLE,
        AlgorithmSpecification={
            "TrainingImage": "example/training:1",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/train.py"],
        },
        HyperParameters=values,
        InputDataConfig=[channel(place, f"s3://{BUCKET}/{name}/{place}/") for place in ("code", "train", "model")],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
        ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": hosts, "VolumeSizeInGB": 10},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
        Environment={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    job = emulator.ended(name)
    log = "\n".join(emulator.log(name))
    assert job["TrainingJobStatus"] == "Completed", (job.get("FailureReason"), log)
    sizes = {name: len(content) for name, content in archive(emulator, job).items()}
    losses = re.findall(r"metric step=(\d+) .*?\btrain_loss=(\S+)", log)
    return {int(step): float(loss) for step, loss in losses}, sizes, log


def test_two_hosts_train_what_one_trains_with_whole_and_with_spread_weights(emulator: Cloud) -> None:
    expected, files, _ = trained(emulator, 1)
    assert set(expected) == {1, 2, 3}
    for sharding in ("off", "on"):
        losses, found, log = trained(emulator, 2, sharding=sharding)
        assert losses == {step: pytest.approx(loss, rel=1e-4) for step, loss in expected.items()}
        assert found["model.safetensors"] == files["model.safetensors"]
        assert set(found) == set(files)
        assert ("weights spread over the processes" in log) == (sharding == "on")
