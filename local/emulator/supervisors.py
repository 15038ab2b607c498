"""Starting supervisors and finding them again: the emulator may die, they go on."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.containers import docker
from llmtuner_local.emulator.context import Context
from llmtuner_local.home import read_json, write_atomic
from llmtuner_local.processes import Process, reap, start


def launch(context: Context, module: str, folder: Path, file: str, spec: dict[str, Any]) -> None:
    """Write what to run and start the supervisor of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / file, json.dumps(spec))
    command = [sys.executable, "-m", f"llmtuner_local.emulator.shim.{module}", str(folder)]
    process = start(command, environment=dict(os.environ), log=folder / "supervisor.log", folder=context.home)
    write_atomic(folder / "supervisor.json", json.dumps(process.record()))


def alive(folder: Path) -> bool:
    """Whether the supervisor of a folder runs."""
    process = _process(folder)
    if process is None:
        return False
    reap(process.pid)
    return process.alive


def signal_stop(folder: Path) -> None:
    """Ask the supervisor to stop what it runs."""
    process = _process(folder)
    if process and process.alive:
        os.kill(process.pid, signal.SIGTERM)


def _process(folder: Path) -> Process | None:
    record = read_json(folder / "supervisor.json")
    return Process(int(record["pid"]), float(record["created"])) if record else None


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
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        **urls,
        "S3_ENDPOINT_URL": context.localstack_url,
        **extra,
    }
