"""Detached processes by pid and start time, so that a recycled pid is never taken for ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Process:
    """One process we started: its pid and the time it was created."""

    pid: int
    created: float

    @classmethod
    def of(cls, record: Mapping[str, float] | None) -> Process | None:
        """From what was remembered, or None."""
        return cls(int(record["pid"]), float(record["created"])) if record else None

    def record(self) -> dict[str, float]:
        return {"pid": self.pid, "created": self.created}

    def find(self) -> psutil.Process | None:
        """The living process, or None when it has ended or the pid belongs to somebody else now."""
        try:
            found = psutil.Process(self.pid)
            # psutil's clock is steady to a few hundredths of a second between readings.
            if abs(found.create_time() - self.created) < 1.0 and found.status() != psutil.STATUS_ZOMBIE:
                return found
        except psutil.NoSuchProcess:
            pass
        return None

    @property
    def alive(self) -> bool:
        return self.find() is not None

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL for it and its children after the grace time (0: at once). Waits until all are gone."""
        stop_together([self], grace_seconds)


def stop_together(processes: list[Process], grace_seconds: float) -> None:
    """Stop several processes with their children; the grace time runs for all of them at once."""
    mains = [item for item in (process.find() for process in processes) if item]
    families = [*mains, *(child for main in mains for child in main.children(recursive=True))]
    if grace_seconds:
        for main in mains:
            main.terminate()
        psutil.wait_procs(mains, timeout=grace_seconds)
    for item in families:
        try:
            item.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(families, timeout=5)


def start(command: list[str], *, environment: Mapping[str, str], log: Path, folder: Path) -> Process:
    """Start a process in a session of its own that outlives us; its output goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(child.pid, psutil.Process(child.pid).create_time())


def holder_of(port: int) -> str:
    """Who listens on a port of this machine, in words; empty when that cannot be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})" if connection.pid else ""
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass
    return ""


def reap(pid: int) -> None:
    """Collect a child that has ended, so that it does not stay as a zombie of a long-lived caller."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
