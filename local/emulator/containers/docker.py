"""Containers of target local-docker: SageMaker local mode describes them, Docker Compose starts them.

A supervisor has one Project: a compose file, a network when several hosts must find each other, a way for the
containers to reach LocalStack, and the containers. Everything carries labels, so that what a killed supervisor leaves
behind is found and cleared (`sweep`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psutil
from llmtuner_local.docker import image as own_image
from llmtuner_local.docker.engine import EngineError, compose, docker, has_image, remaps_root
from llmtuner_local.emulator.containers.forwarder import Forwarder
from llmtuner_local.emulator.containers.local_mode import COMPOSE_FILE, PORT_VARIABLE

HOME_LABEL, FOLDER_LABEL, PROJECT_LABEL = "llmtuner.home", "llmtuner.folder", "llmtuner.project"
MARKER = ".docker"  # in the home folder: containers have been used here; in a supervisor's: there may be some now
_AWS_IMAGE = re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/")
_NAMED_HOST = "host.docker.internal"  # how containers of Docker Desktop call this machine
# Follows the log of a container from its first line to its last, then ends with the container's own exit code.
_FOLLOW = 'docker logs --follow "$0" 2>&1; exit "$(docker wait "$0")"'


class Container:
    """A started container: a process that gives its output and ends with its exit code."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            ["sh", "-c", _FOLLOW, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def terminate(self) -> None:
        """SIGTERM to the main process, as `docker stop` sends it."""
        self._tell("kill", "--signal", "TERM", self.name)

    def kill(self) -> None:
        """SIGKILL to everything of the container; then it is removed."""
        if self.process.poll() is None:
            self._tell("kill", self.name)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, 9)
        self._tell("rm", "--force", "--volumes", self.name)

    def usage(self) -> tuple[float, float]:
        """The CPU time in seconds used by what runs now, and its share (0 to 1) of this machine's memory. Zero where
        the engine's processes cannot be seen from here (Docker Desktop).
        """
        seconds, resident = 0.0, 0
        try:
            main = psutil.Process(int(docker("inspect", "--format", "{{.State.Pid}}", self.name)))
            for item in [main, *main.children(recursive=True)]:
                with item.oneshot():
                    used = item.cpu_times()
                    seconds += used.user + used.system
                    resident += item.memory_info().rss
        except (EngineError, psutil.Error, ValueError):
            return seconds, 0.0
        return seconds, resident / psutil.virtual_memory().total

    @staticmethod
    def _tell(*arguments: str) -> None:
        try:
            docker(*arguments)
        except EngineError as error:
            if not re.search(r"no such container|is not running|already in progress", str(error), re.IGNORECASE):
                raise


class Project:
    """The containers of one supervisor, or of one part of it."""

    def __init__(self, folder: Path, home: Path, part: str = "") -> None:
        self.folder, self.home = folder, home
        self.name = f"llmtuner-{_short(str(folder / part))}"
        self.image = ""
        self._root = folder
        self._hosts: list[str] = []
        self._network = ""
        self._forwarder: Forwarder | None = None
        for place in (home, folder):
            (place / MARKER).touch()
        # It imports for seconds, and that while the supervisor fetches its data.
        self._writer = subprocess.Popen(
            [sys.executable, "-m", "llmtuner_local.emulator.containers.local_mode"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"AWS_EC2_METADATA_DISABLED": "true"},
        )

    def prepare(
        self,
        kind: str,
        hosts: Mapping[str, Path],
        *,
        image: str,
        environment: Mapping[str, str],
        localstack_url: str,
        entrypoint: Sequence[str] = (),
        arguments: Sequence[str] = (),
        read_only: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Write the compose file; `up` then starts its hosts.

        Args:
            kind: "train" or "serve".
            hosts: host name -> the folder that becomes its /opt/ml.
        Raises EngineError when the image cannot be had or local mode refuses.
        """
        self.image, self._hosts = find_image(image), list(hosts)
        # Local mode expects /opt/ml of a training host in a folder of the host's name.
        self._root = next(iter(hosts.values())).parent if kind == "train" else self.folder / self.name
        self._root.mkdir(exist_ok=True)
        labels = {HOME_LABEL: home_id(self.home), FOLDER_LABEL: str(self.folder), PROJECT_LABEL: self.name}
        if len(hosts) > 1:
            self._network = self.name
            marks = [part for item in labels.items() for part in ("--label", "=".join(item))]
            docker("network", "create", *marks, self._network)
        url = self._reachable(localstack_url)
        wanted = {
            "kind": kind,
            "name": self.name,
            "image": self.image,
            "root": str(self._root),
            "hosts": {name: str(base) for name, base in hosts.items()},
            "environment": {"PYTHONUNBUFFERED": "1"}
            | {name: value.replace(localstack_url, url) for name, value in environment.items()},
            "entrypoint": list(entrypoint),
            "arguments": list(arguments),
            "network": self._network,
            "labels": labels,
            "container_names": {host: self._container_name(host) for host in hosts},
            "read_only": {name: list(items) for name, items in (read_only or {}).items()},
        }
        said, _ = self._writer.communicate(json.dumps(wanted))
        if self._writer.returncode:
            raise EngineError(f"SageMaker local mode could not describe the containers: {said.strip()[-600:]}")

    @property
    def prepared(self) -> bool:
        """Whether `up` may be called."""
        return bool(self._hosts)

    def up(self, port: int = 0) -> dict[str, Container]:
        """Start the containers of all hosts; a serving one listens on this port of 127.0.0.1."""
        command = [*compose(), "--project-name", self.name, "--file", str(self._root / COMPOSE_FILE)]
        environment = os.environ | {PORT_VARIABLE: str(port)}
        done = subprocess.run(
            [*command, "up", "--detach"], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise EngineError(f"The containers could not be started: {done.stderr.strip()[-600:]}")
        return {host: Container(self._container_name(host)) for host in self._hosts}

    def close(self) -> None:
        """Remove what belongs to this project, and hand its files over to this user. Once is enough, more do nothing."""
        if self._writer.poll() is None:
            self._writer.kill()
            self._writer.communicate()
        if self._forwarder:
            self._forwarder.close()
            self._forwarder = None
        if self._hosts:
            _remove(PROJECT_LABEL, self.name)
            take_over(self.folder, self.image)
            self._hosts, self._network = [], ""
        (self.folder / MARKER).unlink(missing_ok=True)

    def _container_name(self, host: str) -> str:
        return f"{self.name}-{host}"

    def _reachable(self, localstack_url: str) -> str:
        """The address at which the containers find LocalStack."""
        parts = urlsplit(localstack_url)
        if parts.hostname not in ("127.0.0.1", "localhost"):
            return localstack_url
        address = _bridge_address(self._network or "bridge")
        if not address:  # the network is inside a virtual machine, which forwards to this machine's loopback itself
            return f"{parts.scheme}://{_NAMED_HOST}:{parts.port}"
        self._forwarder = Forwarder(address, parts.port or 80)
        return f"{parts.scheme}://{address}:{self._forwarder.port}"


def _bridge_address(network: str) -> str:
    """This machine's own address on a container network; empty when the engine's networks are not on this machine."""
    found = json.loads(docker("network", "inspect", network))[0]
    name = found["Options"].get("com.docker.network.bridge.name") or f"br-{found['Id'][:12]}"
    addresses = psutil.net_if_addrs().get(name, [])
    return next((item.address for item in addresses if item.family == socket.AF_INET), "")


def find_image(name: str) -> str:
    """The image to run: the named one when the engine has it or can pull it; for AWS's own images ours takes its place."""
    if has_image(name):
        return name
    if _AWS_IMAGE.match(name):
        return own_image.build(lambda text: print(text, flush=True))
    try:
        docker("pull", "--quiet", name, seconds=1800)
    except EngineError as error:
        raise EngineError(f"Cannot pull the image {name}: {error}") from None
    return name


def take_over(folder: Path, image: str) -> None:
    """Give the files that containers wrote as root to this user, who could not delete them otherwise."""
    if os.geteuid() == 0 or not image or not folder.exists() or remaps_root():
        return
    owner = f"{os.geteuid()}:{os.getegid()}"
    line = ["run", "--rm", "--network", "none", "--volume", f"{folder}:/hand-over", "--entrypoint", "chown"]
    docker(*line, image, "--recursive", owner, "/hand-over", seconds=600)


def home_id(home: Path) -> str:
    """What the labels of a home folder's containers say."""
    return _short(str(home))


def sweep(home: Path) -> int:
    """Remove every container and network of a home folder; returns how many. Costs nothing where none was ever used."""
    if not (home / MARKER).exists():
        return 0
    form = f'{{{{.Label "{FOLDER_LABEL}"}}}}'
    chosen = ["--filter", f"label={HOME_LABEL}={home_id(home)}", "--format", form]
    try:
        found = docker("ps", "--all", *chosen).splitlines() + docker("network", "ls", *chosen).splitlines()
    except EngineError:
        return 0  # the engine is stopped or gone, and the containers with it
    return sum(clear(Path(folder)) for folder in dict.fromkeys(found))


def clear(folder: Path) -> int:
    """Remove the containers and networks of one folder and make its files deletable; returns how many things."""
    image = docker("ps", "--all", "--filter", f"label={FOLDER_LABEL}={folder}", "--format", "{{.Image}}").splitlines()
    removed = _remove(FOLDER_LABEL, str(folder))
    take_over(folder, image[0] if image else "")
    (folder / MARKER).unlink(missing_ok=True)
    return removed


def _remove(label: str, value: str) -> int:
    chosen = ["--quiet", "--filter", f"label={label}={value}"]
    containers = docker("ps", "--all", *chosen).split()
    if containers:
        docker("rm", "--force", "--volumes", *containers)
    networks = docker("network", "ls", *chosen).split()
    if networks:
        docker("network", "rm", *networks)
    return len(containers) + len(networks)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
