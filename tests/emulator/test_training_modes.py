"""The ways to run a container without an engine, each with a cloud of its own: namespaces by `unshare`, path mapping."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator.conftest import BUCKET, Cloud, archive, channel, clients
from ways import need

TWO = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}
SOURCE = """
import json, os, pathlib, socket, sys
base = pathlib.Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
resources = json.loads((base / "input/config/resourceconfig.json").read_text())
host, hosts = resources["current_host"], resources["hosts"]
addresses = [socket.gethostbyname(name) for name in hosts]
stream = (base / "input/data/stream_0").read_text()
fast = base / "input/data/fast/rows"
seen = {"addresses": addresses, "stream": stream, "fast": fast.read_text(), "writable": os.access(fast, os.W_OK)}
(base / "model" / f"{hosts.index(host)}.json").write_text(json.dumps(seen))
"""
IGNORES = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('waiting', flush=True); time.sleep(600)"
)


@pytest.fixture(scope="module", params=["unshare", "mapped"])
def own_home(request: pytest.FixtureRequest, run_cloud: Any) -> Iterator[tuple[str, Path]]:
    need(request.param)
    with run_cloud(LLMTUNER_CONTAINERS=request.param, LLMTUNER_LIMITS='{"stop_seconds": 1}') as home:
        yield request.param, home


@pytest.fixture
def mode(own_home: tuple[str, Path]) -> str:
    return own_home[0]


@pytest.fixture
def emulator(own_home: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setenv("LLMTUNER_HOME", str(own_home[1]))
    return clients(own_home[1])


def test_hosts_reach_each_other_and_read_every_kind_of_input(emulator: Cloud, mode: str) -> None:
    emulator.put("rows/rows", "1,2")
    inputs = [
        channel("fast", f"s3://{BUCKET}/rows/") | {"InputMode": "FastFile"},
        channel("stream", f"s3://{BUCKET}/rows/") | {"InputMode": "Pipe"},
    ]
    name = emulator.train(SOURCE, channels=inputs, ResourceConfig=TWO)
    job = emulator.ended(name)
    assert job["TrainingJobStatus"] == "Completed", (job, emulator.log(name))
    seen = {key: json.loads(body) for key, body in archive(emulator, job).items()}
    assert set(seen) == {"0.json", "1.json"}
    first, second = seen["0.json"]["addresses"]
    assert first.startswith("127.")
    assert first != second
    for found in seen.values():
        assert (found["stream"], found["fast"]) == ("1,2", "1,2")
        if mode == "unshare":  # the superuser may write what has no w bit
            assert found["writable"] is False
    assert not (emulator.home / "jobs" / name / "opt-ml").exists()


def test_job_that_ignores_sigterm_is_killed_after_the_grace_time(emulator: Cloud) -> None:
    name = emulator.train(IGNORES)
    emulator.await_line(name, "waiting")
    started = time.monotonic()
    emulator.sagemaker.stop_training_job(TrainingJobName=name)
    job = emulator.ended(name)
    assert job["TrainingJobStatus"] == "Stopped"
    assert 1 <= time.monotonic() - started < 30
    assert archive(emulator, job) == {}
