"""Ways to run a container: as a process with a /opt/ml of its own, or in Docker."""

from __future__ import annotations

import subprocess
from typing import IO, Protocol


class Container(Protocol):
    """A started container, however it runs."""

    process: subprocess.Popen[bytes]  # ends when the container does, with its exit code

    @property
    def output(self) -> IO[bytes]:
        """stdout and stderr, merged."""

    def terminate(self) -> None:
        """SIGTERM to the main process."""

    def kill(self) -> None:
        """SIGKILL to everything of it, also when it has ended; nothing of it is left."""

    def usage(self) -> tuple[float, float]:
        """The CPU time in seconds used by what runs now, and its share (0 to 1) of this machine's memory."""
