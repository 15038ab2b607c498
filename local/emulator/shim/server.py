"""One container of a replica: start it, wait until it is healthy, keep asking, start it again when it ends."""

from __future__ import annotations

import http.client
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.containers import Container, docker
from llmtuner_local.emulator.containers import process as containers
from llmtuner_local.emulator.faults import Faults
from llmtuner_local.emulator.shim import cloud
from llmtuner_local.emulator.shim.journal import reason_of
from llmtuner_local.emulator.shim.logs import LogShipper
from llmtuner_local.processes import free_port

STOP_GRACE_SECONDS = 30
PING_TIMEOUT_SECONDS = 2.0
MISSED_PINGS = 3  # in a row: a server that stays silent that long is replaced
_LONGEST_PAUSE_SECONDS = 30.0


class Server:
    """One container definition on one replica; `run` returns when it is stopped or given up."""

    def __init__(
        self, replica: dict[str, Any], spec: dict[str, Any], folder: Path, changed: Callable[[], None]
    ) -> None:
        self.replica, self.spec = replica, spec
        self.name: str = spec["name"]
        self.base = folder / spec["folder"]
        self.container: Container | None = None
        self.project: docker.Project | None = None
        if replica["mode"] == "docker":
            self.project = docker.Project(folder, Path(replica["hide"]), spec["folder"])
        self.port = 0
        self.healthy = False
        self.failure = ""
        self._faults = Faults(Path(replica["hide"]))
        self._changed = changed
        self._was_healthy = False
        self._stopping = False
        self._wake = threading.Event()  # the container has ended, or the server is to stop
        self._shipper: LogShipper

    def ship_to(self, shipper: LogShipper) -> None:
        self._shipper = shipper

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def close(self) -> None:
        """Leave nothing behind."""
        if self.project:
            self.project.close()
        shutil.rmtree(self.base, ignore_errors=True)

    def run(self) -> None:
        """Keep the container running; one that was never healthy is given up, any other is started again."""
        pause = 0.0
        try:
            while not self._stopping:
                was_good = self._run_once()
                if self._stopping:
                    return
                if not self._was_healthy:
                    self.failure = self._why_unhealthy()
                    return
                pause = 0.0 if was_good else min(_LONGEST_PAUSE_SECONDS, max(1.0, pause * 2))
                self._wake.clear()
                if pause and not self._stopping:
                    self._wake.wait(pause)
        except Exception as error:
            # A thread has no caller: the reason must reach DescribeEndpoint.
            self.failure = reason_of(error, self.base)
            raise
        finally:
            self._changed()

    def _run_once(self) -> bool:
        """Run the container until it ends, falls silent or is stopped; whether it had become healthy."""
        container = self._start()
        reader = threading.Thread(target=self._read, args=(container,), daemon=True)
        reader.start()
        good = self._await_healthy(container)
        if good:
            self.healthy = self._was_healthy = True
            self._changed()
            self._watch(container)
            self.healthy = False
            if not self._stopping:
                self._changed()  # at once: no request goes to a container that is being stopped
        _stop(container)
        reader.join(timeout=5)
        return good

    def _start(self) -> Container:
        self._wake.clear()
        if self._stopping:
            self._wake.set()
        self.port = free_port()
        for name in ("home", "model"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        environment = self.spec["environment"] | {"HOME": "/opt/ml/home"}
        if self.project:
            self.container = self._start_in_docker(self.project, environment)
            return self.container
        environment = cloud.base_environment() | environment
        environment |= {
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            "LLMTUNER_HOST": "127.0.0.1",
        }  # a process must not listen everywhere
        self.container = containers.start(
            self.spec["command"], self.base, environment, mode=self.replica["mode"], hide=Path(self.replica["hide"])
        )
        return self.container

    def _start_in_docker(self, project: docker.Project, environment: dict[str, str]) -> Container:
        if not project.prepared:
            project.prepare(
                "serve",
                {"algo-1": self.base},
                image=self.spec["image"],
                environment=environment,
                localstack_url=self.replica["localstack_url"],
            )
        return project.up(self.port)["algo-1"]

    def _read(self, container: Container) -> None:
        for raw in container.output:
            self._shipper.line(raw.decode("utf-8", "replace").rstrip("\r\n"))
        container.process.wait()
        self._wake.set()

    def _await_healthy(self, container: Container) -> bool:
        deadline = time.monotonic() + self.replica["startup_seconds"]
        while time.monotonic() < deadline and container.process.poll() is None and not self._stopping:
            if self._answers():
                return True
            self._wake.wait(0.1)
        return False

    def _watch(self, container: Container) -> None:
        """Return when the container has ended, misses too many health checks, or is to stop."""
        missed = 0
        while container.process.poll() is None and not self._stopping:
            if self._wake.wait(self.replica["ping_seconds"]):
                continue
            missed = 0 if self._answers() else missed + 1
            if missed >= MISSED_PINGS:
                self._shipper.line(f"The container missed {missed} health checks in a row and is started again.")
                return

    def _answers(self) -> bool:
        return not self._faults.find("failed-ping", self.replica["endpoint"]) and ping(self.port)

    def _why_unhealthy(self) -> str:
        return (
            f"The {self.name} container for {self.replica['served']} did not pass the ping health check. "
            "Please check CloudWatch logs for this endpoint."
        )


def _stop(container: Container) -> None:
    if container.process.poll() is None:
        container.terminate()
        deadline = time.monotonic() + STOP_GRACE_SECONDS
        while container.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)  # Popen.wait(timeout) polls with growing pauses; a quick stop is worth a short one
    container.kill()
    container.process.wait()


def ping(port: int) -> bool:
    """One health check: GET /ping answered with 200 within two seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PING_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
