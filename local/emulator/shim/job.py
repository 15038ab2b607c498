"""What the supervisors of training and processing jobs share: phases, stop, faults, containers, and an end in any case.

The job's folder is the seam to the outside. `job.json` says what to run; the supervisor appends to `journal.jsonl`.
A file `stop` beside them, or SIGTERM to the supervisor, asks to stop. Faults come the same way: the file `interrupt`
takes a spot instance away and `internal-error` makes the service fail, both when they appear; in job.json
`interrupt_after_seconds` and `internal_error_after_seconds` do it that long into Training, `start_delay_seconds` holds
the job in Starting, and `capacity_reason` ends it there with that FailureReason.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from llmtuner_local.emulator.containers import Container, docker
from llmtuner_local.emulator.containers import process as containers
from llmtuner_local.emulator.errors import INTERNAL
from llmtuner_local.emulator.shim import cloud, hosts, trees
from llmtuner_local.emulator.shim.cluster import Cluster, Ending, Member
from llmtuner_local.emulator.shim.hosts import Host
from llmtuner_local.emulator.shim.journal import Journal, reason_of
from llmtuner_local.emulator.shim.logs import LogShipper
from llmtuner_local.emulator.shim.metrics import MachineMetrics
from llmtuner_local.home import LocalError
from llmtuner_local.processes import free_port

log = logging.getLogger(__name__)
SYNC_SECONDS = 3.0
REASON_CHARACTERS = 1024


class HaltError(Exception):
    """The job was asked to end before its containers ran; the argument is the reason."""


class JobError(Exception):
    """The job has failed; the argument becomes its FailureReason."""


class InternalError(Exception):
    """The service itself has failed; a job with attempts left starts again."""


class JobSupervisor(ABC):
    """One job from Starting to its end. A subclass tells the story in `live`."""

    namespace = ""  # of its logs and metrics
    default_arguments: tuple[str, ...] = ()  # what an image is given when the request says nothing

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job: dict[str, Any] = json.loads((folder / "job.json").read_text())
        self.request: dict[str, Any] = self.job["request"]
        self.name: str = self.job["name"]
        self.base = folder / "opt-ml"
        self.journal = Journal(folder / "journal.jsonl")
        self.s3 = cloud.client("s3", self.job["localstack_url"])
        self.hosts = hosts.plan(self.groups(), job=self.name, base=self.base, mode=self.job["mode"])
        # Made now: it gets ready while the data is fetched.
        self.project = self._new_project() if self.job["mode"] == "docker" else None
        self.grace = float(self.job["stop_seconds"])
        self.ran = 0.0  # seconds that containers ran before this attempt
        self.running_since: float | None = None
        self._stopping = threading.Event()
        self._stream_epoch = 0
        self._port = free_port() if len(self.hosts) > 1 else 0

    @abstractmethod
    def groups(self) -> list[tuple[str, str, int]]:
        """(instance group, instance type, count) of the request."""

    @abstractmethod
    def live(self) -> None:
        """The story of the job, which ends with `end`."""

    @abstractmethod
    def halted(self, reason: str) -> None:
        """End a job that was asked to end before its containers ran."""

    def run(self) -> None:
        """Live; whatever happens, the journal gets an end."""
        signal.signal(signal.SIGTERM, lambda *_: self._stopping.set())
        try:
            self.live()
        except HaltError as halt:
            self.halted(str(halt))
        except JobError as error:
            self.fail(str(error))
        except InternalError:
            self.fail(INTERNAL)
        except trees.LinkError as error:
            self.fail(f"AlgorithmError: {error}")
        except Exception as error:
            # The last line of defence of a process nobody watches: the reason must reach Describe.
            self.fail(f"InternalServerError: {reason_of(error, self.folder)}")
            raise

    @abstractmethod
    def fail(self, reason: str) -> None:
        """End as Failed."""

    def end(self, **told: Any) -> None:
        """Write the last line of the journal. What the job had on disk is gone before: who sees the end finds nothing."""
        try:
            self.clear()
        except Exception:
            log.exception("what job %s leaves could not be removed", self.name)
        self.journal.write(**told)

    def clear(self) -> None:
        """Take the machines away, also what the job has made read-only."""
        if self.project:
            self.project.close()
            self.project = None
        trees.remove(self.base)

    def stop_asked(self) -> bool:
        return self._stopping.is_set() or (self.folder / "stop").exists()

    def halt(self) -> str:
        """Why what happens now must end: "" for no reason."""
        return "stop" if self.stop_asked() else ""

    def seconds(self) -> float:
        """How long containers have run, all attempts together."""
        return self.ran + (time.monotonic() - self.running_since if self.running_since is not None else 0.0)

    def fault(self, file: str, after: str) -> bool:
        """Whether a fault acts now; each does once."""
        if (self.folder / file).exists():
            (self.folder / file).unlink()
            return True
        if after in self.job and self.seconds() >= self.job[after]:
            del self.job[after]
            return True
        return False

    def check(self) -> None:
        """Raise HaltError when there is a reason to end."""
        if reason := self.halt():
            raise HaltError(reason)

    def pause(self, seconds: float) -> None:
        """Let time pass, as long as there is no reason to end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.check()
            self._stopping.wait(min(0.1, max(0.0, until - time.monotonic())))
        self.check()

    @contextmanager
    def transfer(self, what: str) -> Iterator[None]:
        """Errors of S3 inside become the job's FailureReason, in SageMaker's form."""
        try:
            yield
        except ClientError as error:
            code, text = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
            if code == "404":  # the answer to a HEAD request has no body that could say more
                code, text = "NoSuchKey", "The specified key does not exist."
            status = error.response["ResponseMetadata"].get("HTTPStatusCode", "")
            raise JobError(f"ClientError: {what} failed:{code} ({status}): {text}") from error
        except trees.LinkError as error:
            raise JobError(f"AlgorithmError: {error}") from None
        except (BotoCoreError, OSError, ValueError) as error:
            raise JobError(f"ClientError: {what} failed:{error}") from error

    def run_containers(
        self,
        *,
        on_line: Callable[[str, LogShipper], None],
        read_only: Callable[[Host], list[str]],
        stopping: Callable[[str], float],
    ) -> Ending:
        """Start the containers of all hosts and wait for their end. `read_only`: what a host may not write, below /opt/ml."""
        cluster = Cluster(self.namespace)
        self.running_since = time.monotonic()
        self._stream_epoch = max(int(time.time()), self._stream_epoch + 1)
        shippers = [
            LogShipper(self.job["localstack_url"], self.namespace, f"{self.name}/{host.name}-{self._stream_epoch}")
            for host in self.hosts
        ]
        started = self._start_containers({host.name: read_only(host) for host in self.hosts})
        for host, container, shipper in zip(self.hosts, started, shippers, strict=True):
            self.journal.write(container=container.process.pid)
            machine = MachineMetrics(self.name, host.name, host.base, self.job.get("volume_gb", 0))
            cluster.members.append(Member(host, container, shipper, machine, on_line, cluster.changed))
        ending = cluster.wait(self._look, stopping)
        self.ran, self.running_since = self.seconds(), None
        if self.project:
            self.project.close()  # now, not in `clear`: what the containers wrote must be this user's to be uploaded
        return ending

    def _look(self) -> str:
        self.journal.touch()
        return self.halt()

    def _start_containers(self, read_only: dict[str, list[str]]) -> list[Container]:
        """A started container for each host."""
        for host in self.hosts:
            (host.base / "home").mkdir(parents=True, exist_ok=True)
        if self.job["mode"] == "docker":
            return self._start_in_docker(read_only)
        names = hosts.names_file(self.folder / "hosts", self.hosts)
        return [
            containers.start(
                self.job["command"],
                host.base,
                self._environment(),
                mode=self.job["mode"],
                hide=Path(self.job["hide"]),
                hosts=names,
                read_only=read_only[host.name],
            )
            for host in self.hosts
        ]

    def _start_in_docker(self, read_only: dict[str, list[str]]) -> list[Container]:
        self.project = project = self.project or self._new_project()
        try:
            definition = self.request.get("AlgorithmSpecification") or self.request["AppSpecification"]
            names = ("TrainingImage", "ImageUri", "AlgorithmName")
            project.prepare(
                "train",
                {host.name: host.base for host in self.hosts},
                image=next(definition[name] for name in names if name in definition),
                environment=self.job["environment"] | {"HOME": "/opt/ml/home"},
                localstack_url=self.job["localstack_url"],
                entrypoint=definition.get("ContainerEntrypoint", []),
                arguments=definition.get("ContainerArguments")
                or (() if "ContainerEntrypoint" in definition else self.default_arguments),
                read_only=read_only,
            )
            started = project.up()
        except LocalError as error:
            raise JobError(f"ClientError: {error}") from error
        return [started[host.name] for host in self.hosts]

    def _new_project(self) -> docker.Project:
        return docker.Project(self.folder, Path(self.job["hide"]))

    def _environment(self) -> dict[str, str]:
        # A home of its own, outside of what is hidden from the job.
        found = cloud.base_environment() | self.job["environment"] | {"HOME": "/opt/ml/home"}
        mapped = self.job["mode"] == "mapped"
        if len(self.hosts) > 1:
            # PyTorch listens on every address, and jobs share this machine's network: a port of its own for each.
            first = "127.0.0.1" if mapped else self.hosts[0].alias
            found = {"LLMTUNER_MASTER": f"{first}:{self._port}"} | found
        if mapped:
            # Names of hosts cannot be looked up here: the training toolkit must not wait for them.
            found = {"SM_STUDIO_LOCAL_MODE": "true"} | found
        return found

    def text(self, host: Host, name: str) -> str:
        """The beginning of a short file that the job wrote for the service; empty when it did not."""
        try:
            with trees.open_file(host.base, name) as file:
                return file.read(4 * REASON_CHARACTERS).decode("utf-8", "replace")[:REASON_CHARACTERS].strip()
        except (OSError, trees.LinkError):  # none, or a link: what that points to is nobody's business
            return ""
