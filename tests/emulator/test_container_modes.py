"""Containers in each of the three ways, as this user and as one without rights: what they see, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from emulator.conftest import BUCKET, Cloud
from emulator.hosting import ask, create, remove, settled
from llmtuner_local.emulator.containers import process as containers
from local_commands import Local
from ways import need

MODES = ("bwrap", "unshare", "mapped")
# Root becomes somebody without any right in a user namespace; anybody else is that already.
ORDINARY = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
USERS = {"this-user": [], "ordinary-user": ORDINARY}
ISOLATED = ("bwrap", "unshare")
EVERY_WAY = pytest.mark.parametrize(("mode", "user"), [(mode, user) for user in USERS for mode in MODES])

HARNESS = """
import json, os, sys
from pathlib import Path
from llmtuner_local.emulator.containers import process as containers
base, state, mode, source = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
hosts = state / "hosts"
hosts.write_text("127.0.0.1 localhost algo-1\\n")
container = containers.start(["python3", "-c", source], base, {"PATH": os.environ["PATH"]}, mode=mode, hide=state, hosts=hosts)
"""
RUNS = HARNESS + "print(container.output.read().decode(), end=''); sys.exit(container.process.wait())"
STOPS = HARNESS + "print(container.output.readline()); container.terminate(); print('code', container.process.wait())"
BEGINS = (
    HARNESS
    + """
import time
container.kill()
for pause in (0, 0.001, 0.003, 0.01, 0.03):
    container = containers.start(["python3", "-c", source], base, {"PATH": os.environ["PATH"]}, mode=mode, hide=state)
    time.sleep(pause)
    container.terminate()
    print("code", container.process.wait(20))
"""
)
IS_KILLED = HARNESS + "container.output.readline(); os.kill(os.getpid(), 9)"


def harness(program: str, user: str, base: Path, mode: str, source: str) -> subprocess.CompletedProcess[str]:
    need(mode, *USERS[user])
    base.mkdir(parents=True, exist_ok=True)
    command = [*USERS[user], sys.executable, "-c", program, str(base), str(base.parents[1]), mode, source]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The /opt/ml of one job in a state folder, with a name that needs care."""
    return tmp_path / "state of $HOME 'x'" / "job" / "opt-ml"


@EVERY_WAY
def test_container_has_its_folder_at_opt_ml_and_a_temporary_folder_of_its_own(base: Path, mode: str, user: str) -> None:
    source = """
import os, tempfile
root = os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")
open(root + "/made", "w").write("by the job")
open(tempfile.gettempdir() + "/litter", "w").write("x")
print(root, os.getcwd())
"""
    done = harness(RUNS, user, base, mode, source)
    assert done.returncode == 0, done.stderr
    root = str(base) if mode == "mapped" else "/opt/ml"
    assert done.stdout == f"{root} {root}\n"
    assert (base / "made").read_text() == "by the job"
    assert (base / "tmp" / "litter").exists()  # goes with the job


@EVERY_WAY
def test_state_home_other_jobs_and_processes_are_hidden_by_namespaces(
    base: Path, mode: str, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "home of the user" / ".ssh" / "id"
    other = base.parents[1] / "other-job" / "opt-ml" / "data"
    for path in (secret, other):
        path.parent.mkdir(parents=True)
        path.write_text("of somebody else")
    monkeypatch.setenv("HOME", str(tmp_path / "home of the user"))
    places = [str(secret), str(other), str(base.parents[1] / "hosts"), f"/proc/{os.getpid()}/cmdline"]
    source = f"import json, os; print(json.dumps([os.path.exists(path) for path in {places!r}]))"
    seen = json.loads(harness(RUNS, user, base, mode, source).stdout)
    assert seen == [mode == "mapped"] * 4  # without namespaces nothing is hidden, as local/README.md says


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("mode", ISOLATED)
def test_what_is_hidden_cannot_be_uncovered(base: Path, mode: str, user: str) -> None:
    (base.parents[1]).mkdir(parents=True)
    (base.parents[1] / "secret").write_text("x")
    source = f"""
import subprocess
for command in (["umount", "-l", {str(base.parents[1])!r}], ["umount", "-a"], ["mount", "-t", "proc", "proc", "/mnt"]):
    print(subprocess.run(command, capture_output=True).returncode != 0)
import os
print(os.path.exists({str(base.parents[1] / "secret")!r}))
"""
    assert harness(RUNS, user, base, mode, source).stdout.split() == ["True", "True", "True", "False"]


@EVERY_WAY
def test_program_that_the_request_names_in_path_is_found_also_where_folders_are_hidden(
    base: Path, tmp_path: Path, mode: str, user: str
) -> None:
    program = tmp_path / "programs" / "greet"  # below /tmp, of which a container sees its own
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    runs = RUNS.replace('["python3", "-c", source]', "[source]")
    runs = runs.replace('{"PATH": os.environ["PATH"]}', f'{{"PATH": "{program.parent}:/usr/bin:/bin"}}')
    assert harness(runs, user, base, mode, "greet").stdout == "hello\n"


@EVERY_WAY
def test_sigterm_reaches_the_program_and_ends_one_that_ignores_nothing(base: Path, mode: str, user: str) -> None:
    handles = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('on', flush=True)\n"
        "while True: time.sleep(0.1)"  # not for long: Python 3.14 begins it even when a signal came during print
    )
    assert harness(STOPS, user, base, mode, handles).stdout.endswith("code 7\n")
    plain = "import time; print('on', flush=True); time.sleep(60)"
    code = int(harness(STOPS, user, base, mode, plain).stdout.split()[-1])
    assert code in (143, -15)


@EVERY_WAY
def test_sigterm_is_not_lost_while_a_container_is_only_beginning(base: Path, mode: str, user: str) -> None:
    done = harness(BEGINS, user, base, mode, "import time; time.sleep(60)")
    assert done.stdout.splitlines() == ["code -15" if mode == "mapped" else "code 143"] * 5, done.stderr


@EVERY_WAY
def test_container_ends_with_a_supervisor_that_is_killed(base: Path, mode: str, user: str) -> None:
    source = "import time; print('on', flush=True); time.sleep(3600)"
    assert harness(IS_KILLED, user, base, mode, source).returncode == -9
    assert gone(base)


@pytest.mark.parametrize("mode", ISOLATED)
def test_nothing_a_program_starts_outlives_it_or_its_supervisor(base: Path, mode: str) -> None:
    detached = (
        "import subprocess, time; subprocess.Popen(['sleep', '3600'], start_new_session=True); print(1, flush=True); "
    )
    assert harness(RUNS, "this-user", base, mode, detached).returncode == 0
    assert gone(base)
    harness(IS_KILLED, "this-user", base, mode, detached + "time.sleep(3600)")
    assert gone(base)


def test_without_namespaces_what_is_left_is_found_by_its_mark(base: Path) -> None:
    detached = "import subprocess; subprocess.Popen(['sleep', '3600'], start_new_session=True)"
    assert harness(RUNS, "this-user", base, "mapped", detached).returncode == 0  # its open output holds nothing up
    assert gone(base)


def gone(base: Path) -> bool:
    """Whether no process of a container is left; the kernel needs a moment for its part."""
    deadline = time.monotonic() + 5
    while left := containers.marked(containers.MARK, base):
        if time.monotonic() > deadline:
            containers.kill([process for process, _ in left])
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(("missing", "expected"), [((), "bwrap"), (("bwrap",), "unshare"), (ISOLATED, "mapped")])
def test_best_way_is_what_this_machine_has(
    missing: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(expected)
    find = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in missing else find(name))
    monkeypatch.delenv(containers.VARIABLE, raising=False)
    containers.best_mode.cache_clear()
    assert containers.best_mode() == expected
    containers.best_mode.cache_clear()


def test_way_that_does_not_exist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = Local(tmp_path / "home").run("up", LLMTUNER_CONTAINERS="docker")
    assert done.returncode == 1
    assert "LLMTUNER_CONTAINERS is 'docker'. Valid: bwrap, unshare, mapped" in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.fixture
def journey(tmp_path: Path, mode: str, user: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A local cloud of its own whose containers run in one way."""
    need(mode, *USERS[user])
    local = Local(tmp_path / "home")
    environment = os.environ | {"LLMTUNER_HOME": str(local.home), containers.VARIABLE: mode}
    up = [*USERS[user], sys.executable, "-m", "llmtuner_local", "up", "--json"]
    done = subprocess.run(up, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    def client(service: str, url: str = found["localstack_url"]) -> Any:
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        return boto3.client(service, endpoint_url=url, region_name=found["region"], **keys)

    sagemaker = [client(name, found["sagemaker_url"]) for name in ("sagemaker", "sagemaker-runtime")]
    cloud = Cloud(local.home, *sagemaker, *map(client, ("s3", "logs", "cloudwatch", "kms")))
    cloud.s3.create_bucket(Bucket=BUCKET)
    yield cloud
    assert local.run("down").returncode == 0
    assert gone(local.home)


GATHERS = """
import json, os, socket, time
config = json.load(open(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml") + "/input/config/resourceconfig.json"))
me, first = config["current_host"], config["hosts"][0]
if me == first:
    with socket.create_server((first, 7777)) as server:
        print("met", server.accept()[0].recv(99).decode())
else:
    while True:
        try:
            socket.create_connection((first, 7777)).sendall(me.encode())
            break
        except OSError:
            time.sleep(0.05)
"""
WAITS = """
import os, signal, sys, time
def leave(*_):
    open(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml") + "/model/saved.txt", "w").write("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("waiting", flush=True)
while True:
    time.sleep(0.1)  # not for long: Python 3.14 begins it even when a signal came during print
"""


@EVERY_WAY
def test_jobs_stops_hosts_and_endpoints_work_in_every_way(journey: Cloud, mode: str, user: str) -> None:
    endpoint = create(journey)
    waits = journey.train(WAITS)
    several = journey.train(
        GATHERS, ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    )
    journey.await_line(waits, "waiting")
    journey.sagemaker.stop_training_job(TrainingJobName=waits)
    job = journey.ended(several)
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    assert any(line.startswith("met ") for line in journey.log(several))
    assert journey.ended(waits)["TrainingJobStatus"] == "Stopped"
    assert settled(journey, endpoint)["EndpointStatus"] == "InService"
    assert ask(journey, endpoint, b"hello")["body"] == "hello"
    remove(journey, endpoint)
    assert not list(journey.home.glob("jobs/*/opt-ml"))
    assert not list(journey.home.glob("endpoints/*"))
