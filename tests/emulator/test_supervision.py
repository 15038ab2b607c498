"""A supervisor's part of a job: its end is told whatever fails on the way."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from llmtuner_local.docker.engine import EngineError
from llmtuner_local.emulator.shim import journal
from llmtuner_local.emulator.shim.cluster import Cluster, Member
from llmtuner_local.emulator.shim.processing import ProcessingSupervisor

GONE = EngineError("Cannot connect to the Docker daemon.")


def test_a_full_disk_is_said_to_be_one_of_this_machine(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert journal.reason_of(full, tmp_path) == f"The disk of {tmp_path} on this machine is full."
    assert journal.reason_of(KeyError("x"), tmp_path) == "KeyError: 'x'"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_job_does_not_wait_for_what_an_engine_could_not_kill() -> None:
    with subprocess.Popen([sys.executable, "-c", "exit(3)"], stdout=subprocess.PIPE) as process:
        container = Mock(process=process, output=process.stdout, kill=Mock(side_effect=[GONE, None]))
        container.usage.return_value = (0.0, 0.0)
        cluster = Cluster("namespace")
        cluster.members.append(Member(Mock(), container, Mock(), Mock(), Mock(), cluster.changed))
        looks = iter(range(30))
        ending = cluster.wait(lambda: "" if next(looks, None) is not None else pytest.fail("for ever"), lambda _: 0.0)
    assert ending.code == 3


def test_the_end_of_a_job_is_told_when_what_it_leaves_cannot_be_removed(tmp_path: Path) -> None:
    job = {
        "name": "job", "mode": "bwrap", "localstack_url": "http://127.0.0.1:9", "stop_seconds": 1, "capacity_reason": "none",
        "request": {"ProcessingResources": {"ClusterConfig": {"InstanceType": "ml.m5.xlarge"}}},
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    supervisor = ProcessingSupervisor(tmp_path)
    supervisor.project = Mock(close=Mock(side_effect=GONE))
    supervisor.run()
    (*_, last), _ = journal.read(tmp_path / "journal.jsonl")
    assert (last["status"], last["reason"]) == ("Failed", "none")


@pytest.mark.parametrize("jump", [86_400, -86_400])
def test_a_clock_that_is_set_changes_no_duration(jump: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "journal.jsonl", time.time
    written = journal.Journal(path)
    written.write(secondary="Downloading")
    monkeypatch.setattr(time, "time", lambda: clock() + jump)
    written.write(secondary="Training")
    (first, second), _ = journal.read(path)
    assert 0 <= second["time"] - first["time"] < 60
    written.touch()
    assert 0 <= journal.last_sign(path) - second["time"] < 60
    assert journal.last_sign(tmp_path / "none") == 0


def test_a_line_that_a_full_disk_cut_off_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "journal.jsonl", os.write
    written = journal.Journal(path)
    written.write(state="Starting")
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:9]))
    written.write(state="InService")
    monkeypatch.setattr(os, "write", write)
    written.write(state="Stopped")
    lines, offset = journal.read(path)
    assert [line["state"] for line in lines] == ["Starting", "Stopped"]
    assert journal.read(path, offset) == ([], path.stat().st_size)
