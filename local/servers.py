"""Starting the two servers of the local cloud: LocalStack in its own environment, and the SageMaker emulator."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

from llmtuner_local.home import LocalError, cache_folder, locked, write_atomic
from llmtuner_local.processes import PidFile, Process, can_listen, free_port, holder_of

LOCALSTACK_VERSION = "4.10.0"
SERVICES = "s3,sts,iam,kms,logs,cloudwatch"
_START_SECONDS = 90
_END_SECONDS = 10
_ANSWER_SECONDS = 10  # a server that runs may be busy; after this it counts as hung and is started anew
_FULL_BYTES = 1_000_000
_LARGE_LOG_BYTES = 10_000_000


def localstack_pid(home: Path) -> PidFile:
    return PidFile(home / "localstack.pid")


def emulator_pid(home: Path) -> PidFile:
    return PidFile(home / "emulator.pid")


def remember(home: Path, state: dict[str, Any]) -> None:
    """Write `local.json`."""
    write_atomic(home / "local.json", json.dumps(state, indent=2))


def install() -> Path:
    """LocalStack's own environment in the cache, built once; returns its Python."""
    folder = cache_folder() / f"localstack-{LOCALSTACK_VERSION}"
    python = folder / "bin" / "python"
    marker = folder / ".complete"
    if marker.exists() and python.exists():  # its Python is gone where the system has been upgraded
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f".localstack-{LOCALSTACK_VERSION}.lock"):
        if not (marker.exists() and python.exists()):
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


def given_localstack() -> str:
    """The address of a LocalStack that is somebody else's, or nothing."""
    return os.environ.get("LLMTUNER_LOCALSTACK_URL", "").rstrip("/")


def start_localstack(home: Path, state: dict[str, Any]) -> None:
    """Use the given one, or the one that runs, or start it; `state` gets its address."""
    if url := given_localstack():
        if not answers(url, any_status=True):
            raise LocalError(f"Nothing answers at LLMTUNER_LOCALSTACK_URL={url}. Start it, or unset the variable.")
        state["localstack_url"] = url
        return
    file, code = localstack_pid(home), _code(Path(__file__).parent / "localstack")
    if running := file.process():
        same = _is_same_code(state, "localstack", code, "LocalStack")
        if same and _answers_soon(running, state.get("localstack_url"), "/_localstack/health"):
            return
        file.stop(0)  # what it has acknowledged is on disk
    python = install()
    root = home / "localstack"
    root.mkdir(exist_ok=True)
    environment = _environment() | {
        "SERVICES": SERVICES,
        "OVERRIDE_IN_DOCKER": "0",  # a /.dockerenv on the host would make it ignore FILESYSTEM_ROOT
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

    def start(port: int) -> None:
        state.update(localstack_port=port, localstack_url=f"http://127.0.0.1:{port}", localstack_code=code)
        _start(home, state, "localstack", file, command, environment | {"GATEWAY_LISTEN": f"127.0.0.1:{port}"})
        _wait(home, file, port, "/_localstack/health", "LocalStack", "localstack")

    _on_port("LLMTUNER_LOCALSTACK_PORT", 4566, "LocalStack", state.get("localstack_port"), start)
    _keep_catalog(python.parents[1], catalog)


def start_emulator(home: Path, state: dict[str, Any]) -> None:
    """Use the one that runs on this LocalStack, or start it; `state` gets its address."""
    file, code = emulator_pid(home), _code(Path(__file__).parent)
    if running := file.process():
        same = state.get("emulator_on") == state["localstack_url"]
        same = same and _is_same_code(state, "emulator", code, "the SageMaker emulator")
        if same and _answers_soon(running, state.get("sagemaker_url"), "/_health"):
            return
        file.stop(10, children=False)  # jobs and endpoints run on, the next one finds them
    command = [sys.executable, "-m", "llmtuner_local.emulator", "--home", str(home)]
    command += ["--localstack-url", state["localstack_url"]]

    def start(port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        state.update(emulator_on=state["localstack_url"], sagemaker_port=port, sagemaker_url=url, emulator_code=code)
        _start(home, state, "emulator", file, [*command, "--port", str(port)], _environment())
        _wait(home, file, port, "/_health", "the SageMaker emulator", "emulator")

    _on_port("LLMTUNER_SAGEMAKER_PORT", 4580, "the SageMaker emulator", state.get("sagemaker_port"), start)


def _code(folder: Path) -> str:
    """Changes when the code of a server does: what was started before an update would not fit the clients after it."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(b"%s\0%s\0" % (str(file.relative_to(folder)).encode(), file.read_bytes()))
    return digest.hexdigest()[:16]


def _is_same_code(state: dict[str, Any], name: str, code: str, who: str) -> bool:
    if state.get(f"{name}_code") == code:
        return True
    if name in state:  # else its state file was lost, and what follows is no update
        print(f"Starting {who} anew, as its code has changed; what it has stays.", file=sys.stderr, flush=True)
    return False


def _start(
    home: Path, state: dict[str, Any], name: str, file: PidFile, command: list[str], environment: dict[str, str]
) -> None:
    """Start a server; where it will be found is written first, for an `up` that is killed meanwhile."""
    remember(home, state)
    _turn_over(_log(home, name))
    process = file.start(command, environment=environment, log=_log(home, name), folder=home)
    if process:
        state[name] = process.record()
    remember(home, state)


def _log(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _turn_over(log: Path) -> None:
    """A log that has grown large becomes the one before it, so that two of them are the most there is."""
    if log.exists() and log.stat().st_size > _LARGE_LOG_BYTES:
        log.replace(log.with_suffix(".before.log"))


def _answers_soon(process: Process, url: str | None, path: str) -> bool:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while url and process.alive and time.monotonic() < deadline:
        if answers(url + path):
            return True
        time.sleep(0.05)  # a process gives no event for "ready"; its health address is the only sign
    return False


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


def _environment() -> dict[str, str]:
    """The caller's environment without AWS settings: the local cloud must not reach for a real account."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def _on_port(variable: str, default: int, who: str, last: int | None, start: Callable[[int], None]) -> None:
    """Start a server on its port; where nobody has named that, on a free one when somebody else is faster."""
    port = _port(variable, default, who, last)
    try:
        start(port)
    except LocalError:
        if variable in os.environ or can_listen(port):
            raise
        start(free_port())


def check_ports() -> None:
    """Raises LocalError for a variable that names no port, before anything is started."""
    for variable in ("LLMTUNER_LOCALSTACK_PORT", "LLMTUNER_SAGEMAKER_PORT"):
        wanted = os.environ.get(variable, "0")
        if not wanted.isdecimal() or int(wanted) > 65535:
            raise LocalError(f"{variable} is {wanted!r}. Valid: a port number, or 0 for any free port.")


def _port(variable: str, default: int, who: str, last: int | None) -> int:
    """The port that is named, or else the usual one, which another user of this machine may have already."""
    wanted = os.environ.get(variable)
    if wanted is None:
        usual = last or default
        return usual if _is_free(usual, patience=_END_SECONDS if last else 0) else free_port()
    if port := int(wanted):
        if _is_free(port, patience=_END_SECONDS if port == last else 0):
            return port
        holder = holder_of(port)
        raise LocalError(
            f"Port {port} for {who} is taken{f' by {holder}' if holder else ''}. "
            f"Stop what holds it, or set {variable} to a free port (0: any), then run `llmtuner local up`."
        )
    return last if last and can_listen(last) else free_port()


def _is_free(port: int, patience: float = 0) -> bool:
    """Whether a server can have the port; `patience`: seconds for a process of ours that was killed and still goes."""
    deadline = time.monotonic() + patience
    while not can_listen(port):
        if time.monotonic() > deadline or holder_of(port):
            return False
        time.sleep(0.01)  # the kernel closes its sockets one after the other and tells nobody
    return True


def _wait(home: Path, file: PidFile, port: int, path: str, who: str, name: str) -> None:
    """Until the process itself answers: another server may have taken the port between the look at it and the start."""
    deadline = time.monotonic() + _START_SECONDS
    log = _log(home, name)
    while not (answers(f"http://127.0.0.1:{port}{path}") and (process := file.process()) and process.listens_on(port)):
        running = file.held
        if running and time.monotonic() < deadline:
            time.sleep(0.03)  # a process gives no event for "ready"; its health address is the only sign
            continue
        if shutil.disk_usage(home).free < _FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home))
        if not running:
            raise LocalError(f"{who} ended while starting. The last lines of {log}:\n{_tail(log)}")
        file.stop(2)
        raise LocalError(f"{who} did not answer within {_START_SECONDS} s. The last lines of {log}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def answers(url: str, *, any_status: bool = False) -> bool:
    """Whether a GET is answered with 200, or at all."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return any_status
    except (URLError, OSError):
        return False
