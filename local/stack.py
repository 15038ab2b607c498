"""Up, down, status and reset of the local cloud: LocalStack and the SageMaker emulator as two processes.

Addresses and ports are in `local.json` of the home folder; who runs is told by the locked pid files beside it.
`up` may be called at any time, by several processes at once: what runs is used, what does not is started, what
was left behind is cleared.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llmtuner_local import profile, servers
from llmtuner_local.emulator.containers.process import MARK, check_forced_mode
from llmtuner_local.emulator.shim import trees
from llmtuner_local.home import ACCOUNT_ID, REGION, disk_errors_in_words, home_folder, locked, read_json
from llmtuner_local.processes import PID_FILE, PidFile, Process, kill, marked, stop_together

_SUPERVISED = {
    "jobs/*": "training job",
    "processing/*": "processing job",
    "endpoints/*/*/*": "endpoint instance",
}


def up() -> dict[str, Any]:
    """Make sure that the local cloud runs and its profile is written; returns its addresses."""
    check_forced_mode()
    servers.check_ports()
    home = home_folder()
    with disk_errors_in_words(home), locked(home / ".lock"):
        state = _state(home)
        servers.start_localstack(home, state)
        servers.start_emulator(home, state)
        profile.keep(home, state)
        # Our own LocalStack keeps its roles; one that is only used may have been started anew.
        served_by = state["localstack_url"] if servers.given_localstack() else "own"
        if state.get("bootstrapped") != served_by:
            profile.create_role(state["localstack_url"])
            state["bootstrapped"] = served_by
        servers.remember(home, state)
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
    with disk_errors_in_words(home), locked(home / ".lock"):
        return _down(home)


def _down(home: Path) -> list[str]:
    """The emulator first, which would replace instances that end; LocalStack last, to which they send their logs: killed,
    as what it has acknowledged is on disk and its own way to end takes seconds.
    """
    from llmtuner_local.emulator.containers import docker

    stopped = _stop(servers.emulator_pid(home), 10.0, "emulator", children=False)  # supervisors end in their own way
    for pattern, what in _SUPERVISED.items():
        stopped += _stop_supervisors(home, what, pattern)
    docker.sweep(home)
    kill([process for process, _ in marked(MARK, home)])
    stopped += _stop(servers.localstack_pid(home), 0, "localstack")
    state = _state(home)
    if {"localstack", "emulator"} & state.keys():
        servers.remember(home, {key: value for key, value in state.items() if key not in ("localstack", "emulator")})
    return stopped


def _stop(file: PidFile, grace_seconds: float, name: str, *, children: bool = True) -> list[str]:
    running = file.held
    file.stop(grace_seconds, children=children)
    return [name] if running else []


def _stop_supervisors(home: Path, what: str, pattern: str) -> list[str]:
    """Stop jobs at once and endpoints gently."""
    running: dict[Path, Process] = {}
    for path in home.glob(f"{pattern}/{PID_FILE}"):
        if process := PidFile(path).process():
            running[path.parent] = process
    stop_together(list(running.values()), 8 if pattern.startswith("endpoints") else 0)
    for folder in running:
        trees.remove(folder / "opt-ml")
    return [f"{len(running)} {what}(s)"] if running else []


def running() -> list[str]:
    """What would be cut off now, in words: `training job demo-1`, `endpoint demo-1`."""
    home = home_folder()
    found = [  # an endpoint once, whatever its instances
        f"{what.removesuffix(' instance')} {path.relative_to(home).parts[1]}"
        for pattern, what in _SUPERVISED.items()
        for path in sorted(home.glob(f"{pattern}/{PID_FILE}"))
        if PidFile(path).held
    ]
    return list(dict.fromkeys(found))


def status() -> dict[str, Any]:
    """Which parts run, where, since when."""
    home = home_folder()
    state = _state(home)
    parts = {}
    for name, file, url, path in (
        ("localstack", servers.localstack_pid(home), state.get("localstack_url", ""), "/_localstack/health"),
        ("emulator", servers.emulator_pid(home), state.get("sagemaker_url", ""), "/_health"),
    ):
        process = file.process()
        found = process.find() if process else None
        healthy = bool(url) and servers.answers(url + path)
        parts[name] = {
            "running": bool(found) or healthy,
            "healthy": healthy,
            "url": url,
            "pid": process.pid if process and found else None,
            "memory_mb": round(found.memory_info().rss / 1e6) if found else None,
        }
    return {"home": str(home), **parts}


def reset() -> None:
    """Stop everything and delete the state: objects, jobs, endpoints, logs."""
    home = home_folder()
    with locked(home / ".lock"):
        _down(home)
        for item in list(home.iterdir()):
            if item.name != ".lock":
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()


def _state(home: Path) -> dict[str, Any]:
    """What `local.json` remembers; a file that is no JSON any more remembers nothing, the pid files still do."""
    try:
        return read_json(home / "local.json")
    except ValueError:
        return {}
