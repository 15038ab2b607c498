"""What the clients of the journeys share: the variables that `llmtuner local env` prints, and things to train and serve.

Nothing is patched: a client gets these variables, as a shell would set them, and its own defaults.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

PROGRAMS = Path(__file__).parent / "programs"
BUCKET = "client-journeys"
ROLE = "arn:aws:iam::000000000000:role/llmtuner-execution"
TRAINING_IMAGE = "000000000000.dkr.ecr.us-east-1.amazonaws.com/own-training:1"
SERVING_IMAGE = "000000000000.dkr.ecr.us-east-1.amazonaws.com/own-vllm:1"
FAST = {"Delay": 1, "MaxAttempts": 120}


@pytest.fixture(scope="session")
def shell_variables(cloud_home: Path) -> dict[str, str]:
    """The environment of a shell after `eval "$(llmtuner local env)"`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAGEMAKER_"))}
    clean |= {"LLMTUNER_HOME": str(cloud_home), "LLMTUNER_LOCALSTACK_PORT": "0", "LLMTUNER_SAGEMAKER_PORT": "0"}
    command = f'eval "$({sys.executable} -m llmtuner_local env)" && {sys.executable} -c "import os, json; print(json.dumps(dict(os.environ)))"'
    done = subprocess.run(["sh", "-c", command], env=clean, capture_output=True, text=True, check=True, timeout=120)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@dataclass
class Bench:
    """Things to train and serve in the local cloud, and a plain boto3 session with nothing but the shell's variables."""

    variables: dict[str, str]
    session: boto3.Session

    def client(self, service: str) -> Any:
        return self.session.client(service)

    def put(self, key: str, body: bytes) -> str:
        self.client("s3").put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def code(self) -> str:
        """The training program and the server, as the prefix of a channel."""
        for name in ("train.py", "serve.py"):
            self.put(f"code/{name}", (PROGRAMS / name).read_bytes())
        return f"s3://{BUCKET}/code/"

    def rows(self) -> str:
        self.put("rows/rows.jsonl", b'{"x": 1}\n{"x": 2}\n')
        return f"s3://{BUCKET}/rows/"

    def archive(self) -> str:
        """A model.tar.gz that brings the server."""
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as made:
            made.add(PROGRAMS / "serve.py", arcname="code/serve.py")
        return self.put("served/model.tar.gz", data.getvalue())

    def training_request(self, name: str, epochs: int = 2) -> dict[str, Any]:
        """CreateTrainingJob for the training program."""
        channels = [
            {"ChannelName": channel, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}}
            for channel, uri in (("code", self.code()), ("train", self.rows()))
        ]
        return {
            "TrainingJobName": name,
            "RoleArn": ROLE,
            "AlgorithmSpecification": {
                "TrainingImage": TRAINING_IMAGE,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/train.py"],
                "MetricDefinitions": [{"Name": "loss", "Regex": r"loss=([0-9.]+)"}],
            },
            "HyperParameters": {"epochs": str(epochs)},
            "InputDataConfig": channels,
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        }

    def variant(self, model: str) -> dict[str, Any]:
        found = {"VariantName": "AllTraffic", "ModelName": model, "InstanceType": "ml.m5.xlarge"}
        return found | {"InitialInstanceCount": 1}


@pytest.fixture
def bench(shell_variables: dict[str, str], cloud: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """`cloud`: the kit itself means the same local cloud."""
    for name, value in shell_variables.items():
        if name.startswith(("AWS_", "SAGEMAKER_")):
            monkeypatch.setenv(name, value)
    made = Bench(shell_variables, boto3.Session())
    made.client("s3").create_bucket(Bucket=BUCKET)
    return made


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"
