"""Calls of the engine and the helpers of the emulator's tests, on target local-docker."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from emulator.conftest import Cloud

# AWS's own images cannot be had here; the image that is built here takes their place.
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-training:2.5.1"
WAIT_SECONDS = 240


class DockerCloud(Cloud):
    """The same clients and helpers; jobs and endpoints run in containers, which takes longer to start."""

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
