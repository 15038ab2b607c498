"""Up, down, status and reset of the local cloud: LocalStack and the SageMaker emulator as two processes.

Everything about a running cloud is in `local.json` of the home folder. `up` may be called at any time, by
several processes at once: what runs is used, what does not is started, what was left behind is cleared.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

from llmtuner_local import profile
from llmtuner_local.emulator.containers import docker
from llmtuner_local.home import ACCOUNT_ID, REGION, LocalError, cache_folder, home_folder, read_json, write_atomic
from llmtuner_local.processes import Process, holder_of, start, stop_together

LOCALSTACK_VERSION = "4.10.0"
SERVICES = "s3,sts,iam,kms,logs,cloudwatch"
_START_SECONDS = 90


def up() -> dict[str, Any]:
    """Make sure that the local cloud runs and its profile is written; returns its addresses."""
    home = home_folder()
    with _lock(home):
        state = read_json(home / "local.json")
        state = _start_localstack(home, state)
        # Remembered at once: when the emulator cannot start, `down` must still find what runs.
        write_atomic(home / "local.json", json.dumps(state, indent=2))
        state = _start_emulator(home, state)
        profile.write(home, state["localstack_url"], state["sagemaker_url"])
        served_by = [state["localstack_url"], state.get("localstack")]
        if state.get("bootstrapped") != served_by:
            profile.create_role(state["localstack_url"])
            state["bootstrapped"] = served_by
        write_atomic(home / "local.json", json.dumps(state, indent=2))
    return addresses(home, state)


def addresses(home: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What a client needs to talk to the local cloud."""
    return {
        "home": str(home),
        "localstack_url": state["localstack_url"],
        "sagemaker_url": state["sagemaker_url"],
        "config_file": str(home / "aws" / "config"),
        "credentials_file": str(home / "aws" / "credentials"),
        "profile": profile.NAME,
        "region": REGION,
        "account_id": ACCOUNT_ID,
    }


def down() -> list[str]:
    """Stop what runs; returns what was stopped. State stays: at the next `up` endpoints serve again, and a job
    that was cut off is reported as SageMaker reports a lost instance.
    """
    home = home_folder()
    with _lock(home):
        state = read_json(home / "local.json")
        stopped = _stop_supervisors(home)
        docker.sweep(home)
        for name, grace in (("emulator", 10.0), ("localstack", 6.0)):
            process = Process.of(state.get(name))
            if process and process.alive:
                process.stop(grace)
                stopped.append(name)
            state.pop(name, None)
        if state:
            write_atomic(home / "local.json", json.dumps(state, indent=2))
    return stopped


def _stop_supervisors(home: Path) -> list[str]:
    """Stop jobs at once and endpoints gently, before what they talk to goes away."""
    jobs = [Process.of(read_json(path)) for path in home.glob("jobs/*/supervisor.json")]
    replicas = [Process.of(read_json(path)) for path in home.glob("endpoints/*/*/*/supervisor.json")]
    running_jobs = [item for item in jobs if item and item.alive]
    running_replicas = [item for item in replicas if item and item.alive]
    for job in running_jobs:
        job.stop(0)
    stop_together(running_replicas, 8)
    words = []
    if running_jobs:
        words.append(f"{len(running_jobs)} training job(s)")
    if running_replicas:
        words.append(f"{len(running_replicas)} endpoint instance(s)")
    return words


def status() -> dict[str, Any]:
    """Which parts run, where, since when."""
    home = home_folder()
    state = read_json(home / "local.json")
    parts = {}
    for name, key, path in (
        ("localstack", "localstack_url", "/_localstack/health"),
        ("emulator", "sagemaker_url", "/_health"),
    ):
        process = Process.of(state.get(name))
        found = process.find() if process else None
        url = state.get(key, "")
        parts[name] = {
            "running": bool(found) or bool(url and not process and _answers(url + path)),
            "healthy": bool(url) and _answers(url + path),
            "url": url,
            "pid": process.pid if process and found else None,
            "memory_mb": round(found.memory_info().rss / 1e6) if found else None,
        }
    return {"home": str(home), **parts}


def reset() -> None:
    """Stop everything and delete the state: objects, jobs, endpoints, logs."""
    down()
    home = home_folder()
    for item in list(home.iterdir()):
        if item.name != ".lock":
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()


def install() -> Path:
    """LocalStack's own environment in the cache, built once; returns its Python."""
    folder = cache_folder() / f"localstack-{LOCALSTACK_VERSION}"
    python = folder / "bin" / "python"
    marker = folder / ".complete"
    if marker.exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent, f".localstack-{LOCALSTACK_VERSION}.lock"):
        if not marker.exists():
            print("Installing LocalStack into an environment of its own (once, about half a minute).", file=sys.stderr)
            requirements = Path(__file__).parent / "localstack" / "requirements.txt"
            shutil.rmtree(folder, ignore_errors=True)
            for command in (
                [sys.executable, "-m", "venv", str(folder)],
                [
                    str(python),
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--no-deps",
                    "-r",
                    str(requirements),
                ],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise LocalError(f"LocalStack could not be installed: {done.stderr.strip()[-800:]}")
            marker.touch()
    return python


def _start_localstack(home: Path, state: dict[str, Any]) -> dict[str, Any]:
    if given := os.environ.get("LLMTUNER_LOCALSTACK_URL"):
        url = given.rstrip("/")
        if not _answers(url, any_status=True):
            raise LocalError(f"Nothing answers at LLMTUNER_LOCALSTACK_URL={url}. Start it, or unset the variable.")
        return {**{k: v for k, v in state.items() if k != "localstack"}, "localstack_url": url}
    process = Process.of(state.get("localstack"))
    if process and process.alive:
        if _answers(state["localstack_url"] + "/_localstack/health"):
            return state
        process.stop(5)
    python = install()
    port = _port("LLMTUNER_LOCALSTACK_PORT", 4566, "LocalStack", state.get("localstack_port"))
    root = home / "localstack"
    root.mkdir(exist_ok=True)
    environment = _environment() | {
        "SERVICES": SERVICES,
        "OVERRIDE_IN_DOCKER": "0",  # a /.dockerenv on the host would make it ignore FILESYSTEM_ROOT
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "DNS_ADDRESS": "0",
        "FILESYSTEM_ROOT": str(root),
        "XDG_CACHE_HOME": str(python.parents[1] / "cache"),
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DISABLE_EVENTS": "1",
        "EAGER_SERVICE_LOADING": "1",
        "PERSISTENCE": "1",
        "S3_SKIP_SIGNATURE_VALIDATION": "0",
        "S3_SKIP_KMS_KEY_VALIDATION": "0",
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
        "LLMTUNER_S3_FOLDER": str(home / "s3"),
        "LLMTUNER_FAULTS_FOLDER": str(home),
    }
    catalog = _seed_catalog(python.parents[1], root)
    command = [str(python), str(Path(__file__).parent / "localstack" / "launcher.py")]
    log = home / "logs" / "localstack.log"
    process = start(command, environment=environment, log=log, folder=root)
    url = f"http://127.0.0.1:{port}"
    _wait(process, url + "/_localstack/health", "LocalStack", log)
    _keep_catalog(python.parents[1], catalog)
    return {**state, "localstack": process.record(), "localstack_port": port, "localstack_url": url}


def _seed_catalog(environment: Path, root: Path) -> Path:
    """LocalStack's index of all AWS services takes seconds to build: every new state folder gets a copy."""
    folder = root / "var" / "lib" / "localstack" / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    for kept in environment.glob("service-catalog-*.dill"):
        if not (folder / kept.name).exists():
            shutil.copy(kept, folder / kept.name)
    return folder


def _keep_catalog(environment: Path, folder: Path) -> None:
    for made in folder.glob("service-catalog-*.dill"):
        if not (environment / made.name).exists():
            part = environment / f".{made.name}-{os.getpid()}"
            shutil.copy(made, part)
            part.replace(environment / made.name)


def _start_emulator(home: Path, state: dict[str, Any]) -> dict[str, Any]:
    process = Process.of(state.get("emulator"))
    if process and process.alive:
        if state.get("emulator_on") == state["localstack_url"] and _answers(state["sagemaker_url"] + "/_health"):
            return state
        process.stop(10)
    port = _port("LLMTUNER_SAGEMAKER_PORT", 4580, "the SageMaker emulator", state.get("sagemaker_port"))
    command = [sys.executable, "-m", "llmtuner_local.emulator", "--home", str(home), "--port", str(port)]
    command += ["--localstack-url", state["localstack_url"]]
    log = home / "logs" / "emulator.log"
    process = start(command, environment=_environment(), log=log, folder=home)
    url = f"http://127.0.0.1:{port}"
    _wait(process, url + "/_health", "the SageMaker emulator", log)
    return {
        **state,
        "emulator": process.record(),
        "emulator_on": state["localstack_url"],
        "sagemaker_port": port,
        "sagemaker_url": url,
    }


def _environment() -> dict[str, str]:
    """The caller's environment without AWS settings: the local cloud must not reach for a real account."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def _port(variable: str, default: int, who: str, last: int | None) -> int:
    wanted = os.environ.get(variable, str(default))
    if not wanted.isdigit() or int(wanted) > 65535:
        raise LocalError(f"{variable} is {wanted!r}. Valid: a port number, or 0 for any free port.")
    port = int(wanted) or last or 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            if not int(wanted):  # any free port is fine; the last one is taken now
                probe.bind(("127.0.0.1", 0))
            else:
                holder = holder_of(port)
                raise LocalError(
                    f"Port {port} for {who} is taken{f' by {holder}' if holder else ''}. "
                    f"Stop what holds it, or set {variable} to a free port (0: any), then run `llmtuner local up`."
                ) from None
        return int(probe.getsockname()[1])


def _wait(process: Process, url: str, who: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(url):
        if not process.alive:
            raise LocalError(f"{who} ended while starting. The last lines of {log}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            process.stop(2)
            raise LocalError(f"{who} did not answer within {_START_SECONDS} s. The last lines of {log}:\n{_tail(log)}")
        time.sleep(0.05)  # a process gives no event for "ready"; its health address is the only sign


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def _answers(url: str, *, any_status: bool = False) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return any_status
    except (URLError, OSError):
        return False


@contextmanager
def _lock(folder: Path, name: str = ".lock") -> Iterator[None]:
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
