"""Calls of the engine and the helpers of the emulator's tests, on target local-docker."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emulator.conftest import BUCKET, Cloud

from llmtuner_kit import aws as aws_module

# AWS's own images cannot be had here; the image that is built here takes their place.
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-training:2.5.1"
WAIT_SECONDS = 240


_CLIENTS = {"runtime": "sagemaker-runtime"} | {name: name for name in ("sagemaker", "s3", "logs", "cloudwatch", "kms")}


class DockerCloud(Cloud):
    """The same clients and helpers; jobs and endpoints run in containers, which takes longer to start."""

    on_engine = True

    @classmethod
    def connect(cls, home: Path) -> DockerCloud:
        """Clients of the local cloud of LLMTUNER_HOME, which is started when it does not run."""
        aws_module.forget_connections()
        connection = aws_module.connect("local-docker")
        made = cls(home, **{name: connection.client(service) for name, service in _CLIENTS.items()})
        if BUCKET not in {item["Name"] for item in made.s3.list_buckets()["Buckets"]}:
            made.s3.create_bucket(Bucket=BUCKET)
        return made

    def train(self, source: str, **overrides: Any) -> str:
        algorithm = {"TrainingImage": IMAGE} | overrides.pop("AlgorithmSpecification", {})
        return super().train(source, AlgorithmSpecification=algorithm, **overrides)

    @staticmethod
    def until(look: Callable[[], Any], good: Callable[[Any], bool], seconds: float = WAIT_SECONDS) -> Any:
        return Cloud.until(look, good, seconds)


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def left_behind() -> list[str]:
    """Containers and networks of jobs and endpoints."""
    chosen = ("--filter", "label=llmtuner.project")
    containers = docker("ps", "--all", "--format", "{{.Names}}", *chosen).split()
    return containers + docker("network", "ls", "--format", "{{.Name}}", *chosen).split()
