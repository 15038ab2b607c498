"""The containers of all hosts of a job, run together: logs out, the first failure or a reason to stop ends all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from llmtuner_local.emulator.containers import Container
from llmtuner_local.emulator.shim.hosts import Host
from llmtuner_local.emulator.shim.logs import LogShipper
from llmtuner_local.emulator.shim.metrics import MachineMetrics

LOOK_SECONDS = 0.1
METRIC_SECONDS = 30.0
FIRST_METRIC_SECONDS = 1.0
# One host has failed: the others have lost their partner, and nothing of theirs is waited for long.
PARTNER_SECONDS = 20.0


@dataclass(frozen=True)
class Ending:
    """How a run ended: the exit code that counts, whose it was, and the reason when it was ended from outside."""

    code: int
    host: Host
    reason: str = ""


class Member:
    """One host's running container with the threads that read it and wait for it."""

    def __init__(
        self,
        host: Host,
        container: Container,
        shipper: LogShipper,
        machine: MachineMetrics,
        on_line: Callable[[str, LogShipper], None],
        changed: threading.Event,
    ) -> None:
        self.host, self.container, self.shipper, self.machine = host, container, shipper, machine
        self.code: int | None = None
        self._on_line, self._changed = on_line, changed
        self._reader = threading.Thread(target=self._read, name=f"reader-{host.name}", daemon=True)
        self._waiter = threading.Thread(target=self._wait, name=f"waiter-{host.name}", daemon=True)
        self._reader.start()
        self._waiter.start()

    def _read(self) -> None:
        for raw in self.container.output:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            self.shipper.line(line)
            self._on_line(line, self.shipper)

    def _wait(self) -> None:
        code = self.container.process.wait()
        try:
            self.container.kill()  # what the main process left running must not outlive it, nor hold its output open
            self._reader.join()
        finally:  # a Docker engine that is gone cannot kill; the job must not wait for it
            self.code = code if code >= 0 else 128 - code
            self._changed.set()

    def measure(self, namespace: str) -> None:
        """Send how much of its machine the container uses."""
        cpu_seconds, memory_share = self.container.usage()
        self.shipper.points(namespace, self.machine.points(cpu_seconds, memory_share))

    def close(self) -> None:
        """Everything is stored when this returns."""
        self._waiter.join()
        self.shipper.close()


class Cluster:
    """The members of one run."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self.changed = threading.Event()
        self.members: list[Member] = []

    def wait(self, halt: Callable[[], str], stopping: Callable[[str], float]) -> Ending:
        """Until every container has ended.

        Args:
            halt: asked all the time; a reason to end the run, or "".
            stopping: told that reason once; answers the seconds between SIGTERM and SIGKILL.
        """
        reason, kill_at = "", float("inf")
        failed: Member | None = None
        measure_at = time.monotonic() + FIRST_METRIC_SECONDS
        try:
            while alive := [member for member in self.members if member.code is None]:
                if failed is None and not reason:
                    failed = next((member for member in self.members if member.code), None)
                    reason = "" if failed else halt()
                    if failed or reason:
                        grace = PARTNER_SECONDS if failed else stopping(reason)
                        for member in alive:
                            member.container.terminate()
                        kill_at = time.monotonic() + grace
                if time.monotonic() >= kill_at:
                    for member in alive:
                        member.container.kill()
                    kill_at = time.monotonic() + 5
                if time.monotonic() >= measure_at:
                    for member in alive:
                        member.measure(self._namespace)
                    measure_at = time.monotonic() + METRIC_SECONDS
                self.changed.wait(LOOK_SECONDS)
                self.changed.clear()
        finally:
            for member in self.members:
                member.container.kill()
            for member in self.members:
                member.close()
        counts = failed or next((member for member in self.members if member.code), self.members[0])
        return Ending(counts.code or 0, counts.host, reason)
