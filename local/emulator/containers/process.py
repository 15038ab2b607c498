"""A container as a plain process that sees a private /opt/ml.

Three ways, best first: bubblewrap (mount and pid namespaces), plain mount namespaces (`unshare`), and path
mapping (no namespaces, as on macOS: `/opt/ml` in the command and the environment becomes the real folder, and
SAGEMAKER_BASE_DIR names it). With namespaces the state of the local cloud is hidden from the job.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal

import psutil
from llmtuner_local.emulator.containers import interpreter

Mode = Literal["bwrap", "unshare", "mapped"]


@dataclass
class Container:
    """A started container: its outer process, and the pipe with stdout and stderr merged."""

    process: subprocess.Popen[bytes]
    mode: Mode

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def terminate(self) -> None:
        """SIGTERM to the main process only, as SageMaker does: bubblewrap itself would take the job down at once."""
        for pid in self._main_pids():
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
            return

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
        try:
            current = [psutil.Process(self.process.pid)]
            while current and current[0].name() == "bwrap":
                current = current[0].children()
            return [item.pid for item in current]
        except psutil.NoSuchProcess:
            return []


@lru_cache(maxsize=1)
def best_mode() -> Mode:
    """The best way that works here; LLMTUNER_CONTAINERS=bwrap|unshare|mapped forces one."""
    modes: tuple[Mode, ...] = ("bwrap", "unshare", "mapped")
    forced = os.environ.get("LLMTUNER_CONTAINERS")
    for mode in modes:
        if mode == forced:
            return mode
    for mode in modes[:2]:
        command = wrap(["true"], Path("/tmp"), mode=mode, hide=None, hosts=None)  # noqa: S108 - only bound, not used
        if (
            shutil.which(command[0])
            and not subprocess.run(command, capture_output=True, check=False, timeout=20).returncode
        ):
            return mode
    return "mapped"


def wrap(
    command: list[str],
    base: Path,
    *,
    mode: str,
    hide: Path | None,
    hosts: Path | None,
    read_only: Sequence[str] = (),
) -> list[str]:
    """The command line that runs `command` with `base` at /opt/ml.

    Args:
        hide: a folder the container must not see (the state of the local cloud).
        hosts: a file to show as /etc/hosts.
        read_only: folders below /opt/ml that the container may not change.
    """
    if mode == "bwrap":
        line = ["bwrap", "--dev-bind", "/", "/", "--tmpfs", "/opt"]
        for item in _siblings():
            line += ["--bind", item, item]
        line += ["--bind", str(base), "/opt/ml"]
        for item in read_only:
            line += ["--ro-bind", str(base / item), f"/opt/ml/{item}"]
        if hide:
            line += ["--tmpfs", str(hide)]
        if hosts:
            line += ["--ro-bind", str(hosts), "/etc/hosts"]
        return [*line, "--unshare-pid", "--proc", "/proc", "--die-with-parent", "--chdir", "/opt/ml", "--", *command]
    if mode == "unshare":
        user = [] if os.geteuid() == 0 else ["-Ur"]
        script = (
            'base=$1; hide=$2; hosts=$3; count=$4; shift 4; set -e; keep=$(mktemp -d); mount -t tmpfs none "$keep"; '
            'mkdir "$keep/ml"; mount --bind "$base" "$keep/ml"; '
            'while [ "$count" -gt 0 ]; do place="$keep/ml/$1"; mount --bind "$place" "$place"; '
            'mount -o remount,bind,ro "$place"; shift; count=$((count - 1)); done; '
            'for item in /opt/*; do [ -e "$item" ] || continue; [ "$item" = /opt/ml ] && continue; '
            'name=${item##*/}; if [ -d "$item" ]; then mkdir "$keep/$name"; else : >"$keep/$name"; fi; '
            'mount --rbind "$item" "$keep/$name"; done; '
            'if [ -n "$hosts" ]; then mount --bind "$hosts" /etc/hosts; fi; '
            'mount --rbind "$keep" /opt; if [ -n "$hide" ]; then mount -t tmpfs none "$hide"; fi; '
            'cd /opt/ml; exec "$@"'
        )
        extra = [str(base), str(hide or ""), str(hosts or ""), str(len(read_only)), *read_only]
        return ["unshare", *user, "-m", "--propagation", "private", "sh", "-c", script, "sh", *extra, *command]
    return command


def _siblings() -> list[str]:
    opt = Path("/opt")
    return [str(item) for item in sorted(opt.iterdir()) if item.name != "ml"] if opt.is_dir() else []


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
    """Start a container; its output is a pipe of merged lines. With path mapping `read_only` folders lose their w bits."""
    values = dict(environment)
    interpreter.prepare(base)
    values |= interpreter.variables(values)
    values.setdefault("PYTHONUNBUFFERED", "1")
    folder = base
    if mode == "mapped":
        command = [part.replace("/opt/ml", str(base)) for part in command]
        values = {name: value.replace("/opt/ml", str(base)) for name, value in values.items()}
        values["SAGEMAKER_BASE_DIR"] = str(base)
        for item in read_only:
            for path in [base / item, *(base / item).rglob("*")]:
                path.chmod(path.stat().st_mode & ~0o222)
    line = wrap(command, base, mode=mode, hide=hide, hosts=hosts, read_only=read_only)
    process = subprocess.Popen(
        line,
        cwd=folder,
        env=values,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return Container(process, mode)
