"""Everything is killed while containers run: nothing is left of a lost job, and nothing at all after `down`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from docker_cloud import DockerCloud, docker


def local(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmtuner_local", *arguments], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr


def containers_of(home: Path) -> list[str]:
    found = docker("ps", "--all", "--format", '{{.Label "llmtuner.folder"}}', "--filter", "label=llmtuner.project")
    return [Path(line).name for line in found.splitlines() if Path(line).is_relative_to(home)]


def kill(record: Path, *keys: str) -> None:
    found = json.loads(record.read_text())
    for key in keys:
        found = found[key]
    os.kill(found["pid"], signal.SIGKILL)


def test_a_killed_cloud_keeps_running_jobs_reports_lost_ones_and_down_leaves_nothing(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    engine = DockerCloud.connect(home)
    try:
        lost, kept = (engine.train("import time\nprint('running')\ntime.sleep(600)\n") for _ in range(2))
        for name in (lost, kept):
            engine.await_line(name, "running")
        kill(home / "local.json", "emulator")
        kill(home / "jobs" / lost / "supervisor.pid")
        engine = DockerCloud.connect(home)
        assert engine.ended(lost)["FailureReason"].startswith("InternalServerError")
        assert engine.describe(kept)["TrainingJobStatus"] == "InProgress"
        assert containers_of(home) == [kept]
    finally:
        local("down")
    assert not containers_of(home)
