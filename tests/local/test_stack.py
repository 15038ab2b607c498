"""Up, down, status and reset: idempotent, safe to call at once, readable when something is in the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from llmtuner_local import processes, profile, servers
from llmtuner_local.home import LocalError
from local_commands import Local
from ways import need


def runs(pid: int) -> bool:
    """Whether a process has not ended; what has may be listed until its parent asks for its exit code."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    made = Local(tmp_path / "home")
    yield made
    assert made.run("down").returncode == 0


def test_up_is_idempotent_and_listens_on_loopback_only(cloud_home: Path) -> None:
    local = Local(cloud_home)
    first = local.up()
    pids = local.pids()
    assert local.up() == first
    assert local.pids() == pids
    for pid in pids.values():
        addresses = {item.laddr.ip for item in psutil.Process(pid).net_connections("inet") if item.status == "LISTEN"}
        assert addresses == {"127.0.0.1"}


def test_two_callers_at_once_get_one_cloud(local: Local) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: local.up(), range(3)))
    assert found[0] == found[1] == found[2]


def test_down_leaves_no_process_and_status_says_so(local: Local) -> None:
    local.up()
    pids = local.pids()
    status = json.loads(local.run("status", "--json").stdout)
    assert status["localstack"]["healthy"]
    assert status["emulator"]["healthy"]
    assert local.run("down").stdout.startswith("Stopped: emulator, localstack")
    assert not [pid for pid in pids.values() if runs(pid)]
    assert local.run("status").returncode == 3
    assert "Nothing was running" in local.run("down").stdout


def test_what_was_killed_is_started_again_at_the_same_address(local: Local) -> None:
    first = local.up()
    for pid in local.pids().values():
        os.kill(pid, signal.SIGKILL)
    assert local.up() == first


def test_taken_port_is_named_with_what_to_do_and_nothing_is_started(local: Local) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        done = local.run("up", LLMTUNER_LOCALSTACK_PORT=port)
        assert done.returncode == 1
        assert f"Port {port} for LocalStack is taken" in done.stderr
        assert f"pid {os.getpid()}" in done.stderr
        assert "LLMTUNER_LOCALSTACK_PORT" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (local.home / "local.json").exists()


def test_the_usual_port_is_left_to_who_has_it_and_a_free_one_is_taken_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMTUNER_SAGEMAKER_PORT")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        usual = other.getsockname()[1]
        asked: list[int] = []
        servers._on_port("LLMTUNER_SAGEMAKER_PORT", usual, "the SageMaker emulator", None, asked.append)
    assert asked != [usual]
    servers._on_port("LLMTUNER_SAGEMAKER_PORT", usual, "the SageMaker emulator", asked[0], asked.append)
    assert asked == [asked[0]] * 2


def test_who_is_slower_at_the_usual_port_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMTUNER_SAGEMAKER_PORT")
    asked: list[int] = []
    with socket.socket() as faster:

        def start(port: int) -> None:
            asked.append(port)
            if len(asked) == 1:
                faster.bind(("127.0.0.1", port))
                raise LocalError("the SageMaker emulator ended while starting")

        servers._on_port("LLMTUNER_SAGEMAKER_PORT", processes.free_port(), "the SageMaker emulator", None, start)
    assert len(set(asked)) == 2

    def broken(_: int) -> None:
        raise LocalError("no memory")

    with pytest.raises(LocalError, match="no memory"):  # another reason than the port
        servers._on_port("LLMTUNER_SAGEMAKER_PORT", processes.free_port(), "the SageMaker emulator", None, broken)


def test_ports_of_servers_are_not_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < processes.free_port() < lowest for _ in range(20))


def test_port_of_a_process_that_still_ends_is_waited_for() -> None:
    with socket.socket() as ending:  # the kernel closes the sockets of a killed process one after the other
        ending.bind(("127.0.0.1", 0))
        port = ending.getsockname()[1]
        assert not servers._is_free(port)
        threading.Timer(0.2, ending.close).start()
        assert servers._is_free(port, patience=10)


def test_another_servers_answer_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud_home: Path
) -> None:
    """Somebody took the port after it was seen free: they answer the health address, and ours cannot start."""
    taken = json.loads((cloud_home / "local.json").read_text())
    monkeypatch.setattr(servers, "_port", lambda *_: taken["sagemaker_port"])
    (tmp_path / "home").mkdir()
    with pytest.raises(LocalError, match="the SageMaker emulator ended while starting"):
        servers.start_emulator(tmp_path / "home", {"localstack_url": taken["localstack_url"]})
    monkeypatch.setattr(servers, "_port", lambda *_: taken["localstack_port"])
    with pytest.raises(LocalError, match="LocalStack ended while starting"):
        servers.start_localstack(tmp_path / "home", {})


def test_port_that_is_no_port_is_refused_before_anything_is_started(local: Local) -> None:
    done = local.run("up", LLMTUNER_SAGEMAKER_PORT="ninety")
    assert done.returncode == 1
    assert "LLMTUNER_SAGEMAKER_PORT is 'ninety'" in done.stderr
    assert local.run("down").stdout == "Nothing was running.\n"


def test_one_that_ended_is_not_waited_for_when_its_parent_does_not_ask() -> None:
    """As the first process of many a container, which is the parent of all that is left behind."""
    source = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as careless:
        try:
            assert careless.stdout
            orphan = psutil.Process(int(careless.stdout.readline()))
            began = time.monotonic()
            processes.kill([orphan])
            assert time.monotonic() - began < processes._KILL_SECONDS
            assert orphan.status() == psutil.STATUS_ZOMBIE
        finally:
            careless.kill()


def test_a_server_is_stopped_without_what_it_has_started(tmp_path: Path) -> None:
    """Supervisors of jobs and endpoints are children of the emulator, and outlive it."""
    file = processes.PidFile(tmp_path / "server.pid")
    source = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    log = tmp_path / "log"
    file.start([sys.executable, "-c", source], environment=os.environ, log=log, folder=tmp_path)
    while not log.read_text().endswith("\n"):
        time.sleep(0.01)
    started = psutil.Process(int(log.read_text()))
    try:
        file.stop(10, children=False)
        assert not file.held
        assert started.is_running()
    finally:
        started.kill()


def test_after_an_update_servers_of_other_code_are_started_anew_at_the_same_address(local: Local) -> None:
    first, before = local.up(), local.pids()
    state = json.loads((local.home / "local.json").read_text())
    del state["emulator_code"]  # as one that knew no such thing has left it
    (local.home / "local.json").write_text(json.dumps(state))
    done = local.run("up", "--json")
    assert json.loads(done.stdout) == first
    assert done.stderr == "Starting the SageMaker emulator anew, as its code has changed; what it has stays.\n"
    after = local.pids()
    assert (after["localstack"] == before["localstack"], after["emulator"] == before["emulator"]) == (True, False)


def test_pid_of_somebody_else_is_never_stopped(local: Local) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        local.home.mkdir(parents=True)
        state = {"localstack": {"pid": stranger.pid, "created": 1.0}, "localstack_url": "http://127.0.0.1:9"}
        (local.home / "local.json").write_text(json.dumps(state))
        assert local.run("down").returncode == 0
        assert stranger.poll() is None
        stranger.terminate()


def test_one_that_lost_its_state_file_is_found_by_its_lock_and_never_started_twice(local: Local) -> None:
    local.up()
    pids = local.pids()
    (local.home / "local.json").write_text('{"localstack": {"pid": 1')  # half-written
    assert not json.loads(local.run("status", "--json").stdout)["emulator"]["healthy"]
    assert local.run("down").stdout.startswith("Stopped: emulator, localstack")
    assert not [pid for pid in pids.values() if runs(pid)]


def test_up_that_is_killed_leaves_nothing_that_the_next_cannot_use(local: Local) -> None:
    command = [sys.executable, "-m", "llmtuner_local", "up"]
    with subprocess.Popen(command, env=os.environ | {"LLMTUNER_HOME": str(local.home)}) as first:
        while not (local.home / "localstack.pid").exists() and first.poll() is None:
            time.sleep(0.001)
        first.kill()
    local.up()
    home = str(local.home)
    mine = [item for item in psutil.process_iter(["environ"]) if home in str(item.info["environ"])]
    assert sum("launcher.py" in " ".join(item.cmdline()) for item in mine) == 1


def test_ups_downs_and_resets_at_once_end_in_a_cloud_that_works(local: Local) -> None:
    commands = [("up",), ("down",), ("up",), ("reset", "--yes"), ("up",)]
    with ThreadPoolExecutor(len(commands)) as pool:
        done = list(pool.map(lambda command: local.run(*command), commands))
    assert [item.returncode for item in done] == [0] * len(commands), [item.stderr for item in done]
    local.up()
    assert local.run("status").returncode == 0


def test_full_disk_is_told_in_words(local: Local) -> None:
    need("unshare")  # a small disk is mounted in a namespace
    local.home.mkdir(parents=True)
    mounts = (
        'mount -t tmpfs -o size=64k none "$LLMTUNER_HOME" && head -c 1m /dev/zero > "$LLMTUNER_HOME/full"; exec "$@"'
    )
    command = ["unshare", "-Urm", "sh", "-c", mounts, "sh", sys.executable, "-m", "llmtuner_local", "up"]
    values = os.environ | {"LLMTUNER_HOME": str(local.home)}
    done = subprocess.run(command, env=values, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"The disk of {local.home} is full. Make room there" in done.stderr
    assert "Traceback" not in done.stderr


def test_home_with_spaces_and_a_long_name_works_and_env_lines_are_quoted(tmp_path: Path) -> None:
    local = Local(tmp_path / ("a folder with spaces, 'quotes' and $signs " + "x" * 150) / "home")
    try:
        found = local.up()
        script = local.run("env").stdout + 'printf %s "$AWS_CONFIG_FILE"'
        shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
        assert shown == found["config_file"] == str(local.home / "aws" / "config")
    finally:
        assert local.run("down").returncode == 0


def test_pid_in_a_lock_file_is_trusted_only_while_the_lock_is_held(local: Local) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        local.home.mkdir(parents=True)
        for name in ("emulator.pid", "localstack.pid"):
            (local.home / name).write_text(json.dumps({"pid": stranger.pid}))
        assert "Nothing was running" in local.run("down").stdout
        assert stranger.poll() is None
        stranger.terminate()


def test_env_lines_are_for_a_shell(cloud_home: Path) -> None:
    done = Local(cloud_home).run("env")
    lines = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
    assert lines["AWS_ENDPOINT_URL_SAGEMAKER"] == lines["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"]
    assert lines["AWS_ENDPOINT_URL_S3"].startswith("http://127.0.0.1:")
    assert Path(lines["SAGEMAKER_USER_CONFIG_OVERRIDE"]).exists()
    assert Path(lines["AWS_CONFIG_FILE"]).read_text().count("[profile ") == 2


def test_up_writes_the_profile_anew_where_it_is_missing_or_for_other_addresses(tmp_path: Path) -> None:
    state: dict[str, Any] = {"localstack_url": "http://127.0.0.1:1", "sagemaker_url": "http://127.0.0.1:2"}
    folder = tmp_path / "aws"
    profile.keep(tmp_path, state)
    assert {item.name for item in folder.iterdir()} == set(profile.FILES)
    (folder / "config").write_text("kept: nothing has changed")
    profile.keep(tmp_path, state)
    assert (folder / "config").read_text() == "kept: nothing has changed"
    state["sagemaker_url"] = "http://127.0.0.1:3"
    profile.keep(tmp_path, state)
    assert "http://127.0.0.1:3/docker" in (folder / "config").read_text()
    (folder / "credentials").unlink()
    profile.keep(tmp_path, state)
    os.utime(folder / "env", (1, 1))  # from before an upgrade of the kit
    profile.keep(tmp_path, state)
    assert (folder / "env").stat().st_mtime > 1
    assert (folder / "credentials").exists()


def test_reset_asks_first_and_then_forgets_everything(local: Local) -> None:
    local.up()
    values = os.environ | {"LLMTUNER_HOME": str(local.home)}
    job = local.home / "jobs" / "one" / processes.PID_FILE
    job.parent.mkdir(parents=True)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    processes.PidFile(job).start(command, environment=values, log=local.home / "one.log", folder=local.home)
    for said in ("no\n", ""):  # the second as from a timer, without a terminal
        refused = subprocess.run(
            [sys.executable, "-m", "llmtuner_local", "reset"],
            env=values,
            input=said,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 1
        assert "Running now, and stopped first: training job one." in refused.stdout
        assert (local.home / "local.json").exists()
    assert local.run("reset", "--yes").returncode == 0
    assert {item.name for item in local.home.iterdir()} <= {".lock"}


def test_unknown_base_model_lists_the_models(local: Local) -> None:
    done = local.run("base-model", "gpt-99")
    assert done.returncode == 1
    assert "smollm2-135m-instruct, tiny-llama, tiny-t5" in done.stderr
