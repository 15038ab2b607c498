"""Starting supervisors and finding them again: the emulator may die, they go on.

A supervisor's folder holds what it is to run, and `supervisor.pid`, which it keeps locked while it lives. What to
run is written before the change that asks for it is committed, and started after: nothing runs that no resource
names, and what was acknowledged but not started when the emulator was killed can be started again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.containers import docker
from llmtuner_local.emulator.containers.process import MARK, best_mode
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.shim import trees
from llmtuner_local.home import ACCESS_KEY, SECRET_KEY, read_json, write_atomic
from llmtuner_local.processes import PID_FILE, PidFile, kill, marked, reap

log = logging.getLogger("llmtuner_local.emulator")
# Where supervisors live below the home folder, and the kind of resource that a folder is named after.
FOLDERS = {"jobs/*": "training-job", "processing/*": "processing-job", "endpoints/*/*/*": ""}
_LAUNCH = "launch.json"
_MOST_STARTS = 3
_SEEN_SECONDS = 0.4
_seen: dict[Path, float] = {}  # when a supervisor was last seen alive: looking costs a system call or three
_waiting: dict[Path, Context] = {}  # to be started when their change is committed
_children: set[int] = set()


def launch(context: Context, module: str, folder: Path, file: str, spec: dict[str, Any]) -> None:
    """Write what to run into a new folder; its supervisor starts when the change at hand is committed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / file, json.dumps(spec))
    write_atomic(folder / _LAUNCH, json.dumps({"module": module, "starts": 0}))
    _start_after_commit(context, folder)


def launch_again(context: Context, folder: Path) -> bool:
    """Start a supervisor that never began, because the emulator was killed first; False when it only ever dies."""
    plan = read_json(folder / _LAUNCH)
    if not plan or plan["starts"] >= _MOST_STARTS:
        return False
    _start_after_commit(context, folder)
    return True


def _start_after_commit(context: Context, folder: Path) -> None:
    _waiting[folder] = context
    context.store.after_commit(folder, lambda: _start(context, folder))


def _start(context: Context, folder: Path) -> None:
    _waiting.pop(folder, None)
    plan = read_json(folder / _LAUNCH)
    if not plan:
        return  # deleted again by the same change
    write_atomic(folder / _LAUNCH, json.dumps(plan | {"starts": plan["starts"] + 1}))
    command = [sys.executable, "-m", "llmtuner_local.emulator.shim", plan["module"], str(folder)]
    try:
        process = PidFile(folder / PID_FILE).start(
            command, environment=os.environ, log=folder / "supervisor.log", folder=context.home
        )
    except OSError:
        log.exception("the supervisor of %s could not be started; it is tried again", folder)
        return
    if process:
        _children.add(process.pid)


def alive(folder: Path) -> bool:
    """Whether the supervisor of a folder runs, or is about to."""
    now = time.monotonic()
    if now - _seen.get(folder, -1.0) < _SEEN_SECONDS:
        return True
    if folder in _waiting:
        if _waiting[folder].store.awaits_commit(folder):
            return True
        del _waiting[folder]  # its change was refused
    if PidFile(folder / PID_FILE).held:
        _seen[folder] = now
        return True
    _seen.pop(folder, None)
    return False


def reap_ended() -> None:
    """Collect supervisors that have ended, so that they do not stay as zombies of the emulator."""
    for pid in list(_children):
        if reap(pid):
            _children.discard(pid)


def signal_stop(folder: Path) -> None:
    """Ask the supervisor to stop what it runs; asking again does no harm."""
    process = PidFile(folder / PID_FILE).process()
    if process and process.alive:
        os.kill(process.pid, signal.SIGTERM)


def clear(folder: Path) -> None:
    """Remove what a supervisor that was killed has left: its containers, and /opt/ml."""
    clear_containers(folder)
    if best_mode() == "mapped":  # namespaces end with their supervisor
        kill([process for process, _ in marked(MARK, folder)])
    trees.remove(folder / "opt-ml")


def sweep(context: Context) -> None:
    """At the start: end supervisors and containers, and remove folders, that no resource names any more."""
    # An instance's id is in the document that has the instance.
    instances = context.store.text(without=set(FOLDERS.values()))
    for pattern, kind in FOLDERS.items():
        for folder in context.home.glob(pattern):
            if context.store.get(kind, folder.name) if kind else f'"{folder.name}"' in instances:
                continue
            log.warning("removing %s, which belongs to nothing", folder)
            PidFile(folder / PID_FILE).stop(0)
            clear(folder)
            shutil.rmtree(folder, ignore_errors=True)
    orphans = []
    for process, base in marked(MARK, context.home):
        if not any(PidFile(parent / PID_FILE).held for parent in base.parents):
            orphans.append(process)
    kill(orphans)


def clear_containers(folder: Path) -> None:
    """Remove what a supervisor that was killed has left on the Docker engine."""
    if (folder / docker.MARKER).exists():
        docker.clear(folder)


def container_environment(context: Context, extra: dict[str, str]) -> dict[str, str]:
    """What a container gets besides its own settings: region, credentials and the local cloud's addresses."""
    urls = {
        f"AWS_ENDPOINT_URL_{name}": context.localstack_url
        for name in ("S3", "STS", "IAM", "KMS", "CLOUDWATCH", "CLOUDWATCH_LOGS")
    }
    return {
        "AWS_REGION": context.region,
        "AWS_DEFAULT_REGION": context.region,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        **urls,
        "S3_ENDPOINT_URL": context.localstack_url,
        **extra,
    }
