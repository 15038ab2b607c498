"""A container as a plain process that sees a private /opt/ml.

Three ways, best first: bubblewrap, plain namespaces (`unshare`), and path mapping (no namespaces, as on macOS:
`/opt/ml` in the command and the environment becomes the real folder, and SAGEMAKER_BASE_DIR names it). What the
first two hide from a job is in `view.py`. However a supervisor ends, its container ends with it: by the kernel in
the first two, and in the third as far as it can be told (`MARK`, by which the emulator finds what is left).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal, get_args

import psutil
from llmtuner_local.emulator.containers import interpreter, view
from llmtuner_local.home import LocalError
from llmtuner_local.processes import kill, marked

Mode = Literal["bwrap", "unshare", "mapped"]
# In the environment of every process of a container: a path of its own below the folder that is its /opt/ml.
MARK = "LLMTUNER_CONTAINER"
VARIABLE = "LLMTUNER_CONTAINERS"
_BEGIN_SECONDS = 10.0  # a busy machine may take so long to make namespaces


@dataclass
class Container:
    """A started container: its outer process, and the pipe with stdout and stderr merged."""

    process: subprocess.Popen[bytes]
    mode: Mode
    mark: Path

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def terminate(self) -> None:
        """SIGTERM to the main process only, as SageMaker does. A container that has only just started gets it as well."""
        deadline = time.monotonic() + _BEGIN_SECONDS
        while not (pids := self._main_pids()) and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)  # its namespaces are still being made, of which nothing tells the end
        for pid in pids:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """SIGKILL to everything of the container."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        for item in family:
            try:
                item.kill()
            except psutil.NoSuchProcess:
                continue
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self.mode == "mapped":  # no namespace ends what has moved away from its parent
            kill([process for process, _ in marked(MARK, self.mark)])

    def usage(self) -> tuple[float, float]:
        """The CPU time in seconds used by what runs now, and its share (0 to 1) of this machine's memory."""
        seconds, resident = 0.0, 0
        try:
            family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        for item in family:
            try:
                with item.oneshot():
                    used = item.cpu_times()
                    seconds += used.user + used.system
                    resident += item.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return seconds, resident / psutil.virtual_memory().total

    def _main_pids(self) -> list[int]:
        """The user's own process: with namespaces the child of the one that is pid 1 in there."""
        try:
            current = [psutil.Process(self.process.pid)]
            for _ in range(0 if self.mode == "mapped" else 2):
                current = [child for item in current for child in item.children()]
            # Before it, the shell of `unshare` has others for its mounts.
            return [item.pid for item in current if self.mode != "unshare" or view.MAIN in item.environ()]
        except psutil.NoSuchProcess:
            return []

    def _end_with_main(self) -> None:
        self.process.wait()
        self.kill()


def check_forced_mode() -> None:
    """Raise LocalError when LLMTUNER_CONTAINERS names no way to run a container."""
    forced = os.environ.get(VARIABLE)
    if forced and forced not in get_args(Mode):
        raise LocalError(f"{VARIABLE} is {forced!r}. Valid: {', '.join(get_args(Mode))}, or unset for the best one.")


@lru_cache(maxsize=1)
def best_mode() -> Mode:
    """The best way that works here; LLMTUNER_CONTAINERS=bwrap|unshare|mapped forces one."""
    modes: tuple[Mode, ...] = get_args(Mode)
    forced = os.environ.get(VARIABLE)
    for mode in modes:
        if mode == forced:
            return mode
    return next(mode for mode in modes if works(mode))


def works(mode: Mode) -> bool:
    """Whether this machine lets this user run a container in this way."""
    if mode == "mapped":
        return True
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        view.prepare(base)
        command = wrap(["true"], base, mode=mode, hide=None, hosts=None)
        if not all(map(shutil.which, (command[0], mode))):
            return False
        return not subprocess.run(command, capture_output=True, check=False, timeout=20).returncode


def wrap(
    command: list[str],
    base: Path,
    *,
    mode: str,
    hide: Path | None,
    hosts: Path | None,
    read_only: Sequence[str] = (),
    shown: Sequence[str] = (),
) -> list[str]:
    """The command line that runs `command` with `base` at /opt/ml.

    Args:
        hide: a folder the container must not see (the state of the local cloud).
        hosts: a file to show as /etc/hosts.
        read_only: folders below /opt/ml that the container may not change.
        shown: folders with programs that it must see wherever they are.
    """
    seen = view.View(base, hide, hosts, read_only, shown)
    if mode == "bwrap":
        return view.bubblewrap(command, seen)
    # The kernel ends the outer process with the thread that started it; bubblewrap asks for that itself.
    tied = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    if mode == "unshare":
        return [*tied, *view.unshare(command, seen)]
    return [*tied, *command]


def start(
    command: list[str],
    base: Path,
    environment: Mapping[str, str],
    *,
    mode: Mode,
    hide: Path | None = None,
    hosts: Path | None = None,
    read_only: Sequence[str] = (),
) -> Container:
    """Start a container; its output is a pipe of merged lines. With path mapping `read_only` folders lose their w bits.

    Call it in a thread that lives as long as the container is to: the kernel ends the container with it.
    """
    values = dict(environment)
    interpreter.prepare(base)
    values |= interpreter.variables(values)
    values.setdefault("PYTHONUNBUFFERED", "1")
    mark = base / uuid.uuid4().hex
    values[MARK] = str(mark)
    view.prepare(base)
    if mode == "mapped":
        command = [part.replace("/opt/ml", str(base)) for part in command]
        values = {name: value.replace("/opt/ml", str(base)) for name, value in values.items()}
        values |= {"SAGEMAKER_BASE_DIR": str(base), "TMPDIR": str(base / view.TEMPORARY)}
        for item in read_only:
            for path in [base / item, *(base / item).rglob("*")]:
                path.chmod(path.stat().st_mode & ~0o222)
    process = subprocess.Popen(
        wrap(command, base, mode=mode, hide=hide, hosts=hosts, read_only=read_only, shown=view.named(environment)),
        cwd=base,
        env=values,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    container = Container(process, mode, mark)
    if mode == "mapped":  # what its main process leaves running would hold the pipe open for ever
        threading.Thread(target=container._end_with_main, name="container-end", daemon=True).start()
    return container
