"""Shared by all tests: a fresh home and AWS environment for each, and one local cloud for those that need one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from llmtuner_kit.settings import StartSettings
from llmtuner_kit.workspace import Workspace, open_workspace

RunCloud = Callable[..., AbstractContextManager[Path]]
_KEEP = ("AWS_CA_BUNDLE",)


# Tests that share what is dear to make (the one Docker engine, the finished training jobs), by how their names begin.
_TOGETHER = {
    "docker": ("tests/docker/",),
    "finished jobs": (
        "tests/train_src/test_adapter_component.py",
        "tests/train_src/test_archive.py",
        "tests/train_src/test_inference_toolkit.py",
        "tests/train_src/test_serve.py",
        "tests/train_src/test_train.py::test_a_job_learns_and_says_how_much",
    ),
}


class _OneByOne(LoadScopeScheduling):
    """Each test goes to the worker that is free, but those that belong together all to one worker, and first."""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for name, starts in _TOGETHER.items() if nodeid.startswith(starts)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Instead of `--dist loadgroup`, which pytest-xdist 3.8 takes from names that pytest 9.2 keeps elsewhere."""
    return _OneByOne(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several workers begin with the slow tests, so that none of them is at one alone while the others have ended."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _fresh_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's AWS configuration, nor the state of another test."""
    for name in list(os.environ):
        if name.startswith("AWS_") and name not in _KEEP:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("LLMTUNER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLMTUNER_LOCALSTACK_PORT", "0")
    monkeypatch.setenv("LLMTUNER_SAGEMAKER_PORT", "0")


def run_local(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """`python -m llmtuner_local ...` on a home of its own and free ports."""
    environment = os.environ | {
        "LLMTUNER_HOME": str(home),
        "LLMTUNER_LOCALSTACK_PORT": "0",
        "LLMTUNER_SAGEMAKER_PORT": "0",
    }
    return subprocess.run(
        [sys.executable, "-m", "llmtuner_local", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="session")
def run_cloud(tmp_path_factory: pytest.TempPathFactory) -> RunCloud:
    """Runs a local cloud of its own with more environment variables: `with run_cloud(NAME="value") as home:`."""

    @contextmanager
    def running(**environment: str) -> Iterator[Path]:
        home = tmp_path_factory.mktemp("cloud")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            up = run_local("up", "--json", home=home)
        assert up.returncode == 0, up.stderr
        json.loads(up.stdout.strip().splitlines()[-1])
        yield home
        down = run_local("down", home=home)
        assert down.returncode == 0, down.stderr

    return running


@pytest.fixture(scope="session")
def cloud_home(run_cloud: RunCloud) -> Iterator[Path]:
    """A running local cloud for the whole session (one per xdist worker); its LLMTUNER_HOME."""
    with run_cloud() as home:
        yield home


@pytest.fixture
def cloud(cloud_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The session's local cloud as this test's LLMTUNER_HOME; the kit keeps one connection for each home."""
    monkeypatch.setenv("LLMTUNER_HOME", str(cloud_home))
    return cloud_home


@pytest.fixture
def workspace(cloud: Path) -> Workspace:
    """A workspace of a user nobody else has, in the session's local cloud."""
    return open_workspace(StartSettings(user_id=f"user-{uuid.uuid4().hex[:10]}"))
