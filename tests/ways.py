"""Which ways to run a container this machine has: Ubuntu 24.04 lets nobody but the superuser make namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache

import pytest

_PROGRAM = """
import sys
from llmtuner_local.emulator.containers.process import works
sys.exit(not works(sys.argv[1]))
"""


def need(mode: str, *user: str) -> None:
    """Skip the test where a container cannot be run this way, by the user that the command `user` makes one; fail in CI."""
    if not _works(mode, *user):
        leave_out(f"{mode} cannot run a container on this machine: it lacks it, or allows no namespaces")


def need_namespaces() -> None:
    """Skip the test where containers have no /opt/ml of their own, and what is outside is not hidden; fail in CI."""
    if not (_works("bwrap") or _works("unshare")):
        leave_out("containers have no namespaces on this machine: it allows none")


def leave_out(reason: str) -> None:
    """Skip the test, except in CI, which has all that tests need."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; .ci/run is to see to it")
    pytest.skip(reason)


@lru_cache
def _works(mode: str, *user: str) -> bool:
    return not subprocess.run(
        [*user, sys.executable, "-c", _PROGRAM, mode], capture_output=True, check=False
    ).returncode
