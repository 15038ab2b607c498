"""A real Docker engine, the image of target local-docker, and the clients of a local cloud on that target."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_cloud import DockerCloud, docker, left_behind


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Time for the first test of this folder to build the image."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def image() -> str:
    """The image's name; built when it is not there yet."""
    try:
        docker("version", "--format", "{{.Server.Version}}")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        reason = f"no Docker engine answers on this machine ({getattr(error, 'stderr', '') or error})".strip()
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; .ci/run starts one")
        pytest.skip(reason)
    command = [sys.executable, "-m", "llmtuner_local", "docker-image"]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=880)
    assert built.returncode == 0, built.stderr
    return built.stdout.strip()


@pytest.fixture
def engine(image: str, cloud: Path) -> Iterator[DockerCloud]:
    """The session's local cloud on target local-docker; after the test no container and network of ours is left."""
    made = DockerCloud.connect(cloud)
    yield made
    # A deletion that has just been asked for may still be under way.
    made.until(left_behind, lambda names: not names, seconds=60)
