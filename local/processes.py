"""Processes that outlive us: started once, found again, stopped together."""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

PID_FILE = "supervisor.pid"  # of a supervisor, in its folder
LOCK_VARIABLE = "LLMTUNER_LOCK_FD"
_RECORD_SECONDS = 5.0
_KILL_SECONDS = 5.0
# Below the ports that systems give to outgoing connections: one of these could take it before the server does.
_ANY_PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class Process:
    """One process we started: its pid and the time it was created, so that a reused pid is not taken for it."""

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

    def listens_on(self, port: int) -> bool:
        """Whether it is this process that serves a TCP port."""
        try:
            connections = psutil.Process(self.pid).net_connections("tcp")
        except psutil.NoSuchProcess:
            return False
        return any(item.status == psutil.CONN_LISTEN and item.laddr.port == port for item in connections)

    def stop(self, grace_seconds: float, *, children: bool = True) -> None:
        """SIGTERM, then SIGKILL for it and its children after the grace time (0: at once). Waits until all are gone."""
        stop_together([self], grace_seconds, children=children)


class PidFile:
    """The pid of one process, in a file that this process keeps locked as long as it lives.

    The lock is taken before the process starts and handed over to it: there is no moment at which it runs and is
    not known, and never two of them. The kernel lets go of the lock with the process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, command: list[str], *, environment: Mapping[str, str], log: Path, folder: Path) -> Process | None:
        """Start the process in a session of its own, output to the log; None when one runs already."""
        log.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _take(lock):
                return None
            os.ftruncate(lock, 0)
            with log.open("ab") as output:
                child = subprocess.Popen(
                    command,
                    env={**environment, LOCK_VARIABLE: str(lock)},
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
            os.pwrite(lock, json.dumps({"pid": child.pid}).encode(), 0)
            child.returncode = 0  # it outlives this object, which would warn that nobody has waited for it
            return Process(child.pid, psutil.Process(child.pid).create_time())
        finally:
            os.close(lock)

    @property
    def held(self) -> bool:
        """Whether the process lives."""
        try:
            lock = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def stop(self, grace_seconds: float, *, children: bool = True) -> None:
        """Stop the process; what it held (ports, files) is free when this returns, also after a kill that came before.

        Args:
            children: also what it has started; False where that is to live on.
        """
        if process := self.process():
            process.stop(grace_seconds, children=children)
        deadline = time.monotonic() + _RECORD_SECONDS
        while self.held and time.monotonic() < deadline:
            time.sleep(0.005)  # the threads of a killed process end one after the other, and only then its lock does

    def process(self) -> Process | None:
        """The process that lives, or None."""
        deadline = time.monotonic() + _RECORD_SECONDS
        while self.held and time.monotonic() < deadline:
            try:
                pid = int(json.loads(self.path.read_text())["pid"])
                found = Process(pid, psutil.Process(pid).create_time())
                if self.held:  # it was the holder all the while, so the pid is its own
                    return found
            except (ValueError, KeyError, FileNotFoundError, psutil.NoSuchProcess):
                time.sleep(0.02)  # its starter was killed before it wrote the pid; the process does so itself
        return None


def _take(lock: int) -> bool:
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.005)  # somebody who only looks holds it for microseconds
    return False


def keep_lock() -> None:
    """In a process that a `PidFile` started: keep the lock from children, and write the pid in its starter's place."""
    if lock := os.environ.pop(LOCK_VARIABLE, ""):
        os.set_inheritable(int(lock), False)
        os.pwrite(int(lock), json.dumps({"pid": os.getpid()}).encode(), 0)


def stop_together(processes: list[Process], grace_seconds: float, *, children: bool = True) -> None:
    """Stop several processes, with their children or alone; the grace time runs for all of them at once."""
    mains = [item for item in (process.find() for process in processes) if item]
    families = [*mains, *(child for main in mains if children for child in _children(main))]
    if grace_seconds:
        for main in mains:
            _signal(main.terminate)
        _wait_for_ends(mains, grace_seconds)
    kill(families)


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, and wait until they are gone."""
    for item in processes:
        _signal(item.kill)
    _wait_for_ends(processes, _KILL_SECONDS)


def _wait_for_ends(processes: list[psutil.Process], seconds: float) -> None:
    """Until all have ended, or the time is over.

    Not psutil's own wait, which lasts until the parent has asked for the exit code: the first process of a container,
    which inherits what we started, may do so seconds later or never.
    """
    deadline = time.monotonic() + seconds
    for item in processes:
        while _runs(item) and time.monotonic() < deadline:
            time.sleep(0.005)
    psutil.wait_procs(processes, timeout=0)  # asks for the exit codes of those that are children of ours


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def marked(name: str, folder: Path) -> list[tuple[psutil.Process, Path]]:
    """Processes whose environment variable `name` is a path in a folder, whoever their parent is now, and the path."""
    found = []
    for item in psutil.process_iter():
        try:
            value = item.environ().get(name)
        except (psutil.AccessDenied, psutil.NoSuchProcess, OSError):
            continue
        if value and Path(value).is_relative_to(folder):
            found.append((item, Path(value)))
    return found


def free_port() -> int:
    """A loopback port for a server that will listen in a while; raises OSError when there is none."""
    for port in random.sample(_ANY_PORTS, len(_ANY_PORTS)):
        if can_listen(port):
            return port
    raise OSError(f"No loopback port from {_ANY_PORTS[0]} to {_ANY_PORTS[-1]} is free.")


def can_listen(port: int) -> bool:
    """Whether a server can have a loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder_of(port: int) -> str:
    """Who listens on a port of this machine, in words; empty when that cannot be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})" if connection.pid else ""
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass
    return ""


def reap(pid: int) -> bool:
    """Collect a child that has ended, so that it does not stay as a zombie; whether it is gone."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
