"""Calls of the Docker engine through its own command line, which also knows contexts and rootless engines."""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import lru_cache

from llmtuner_local.home import LocalError


class EngineError(LocalError):
    """A refusal of the Docker engine, in its own words."""


def docker(*arguments: str, seconds: float = 120, stdin: str | None = None) -> str:
    """Run `docker ARGUMENTS`; its output, stripped. Raises EngineError with the engine's words."""
    try:
        done = subprocess.run(
            ["docker", *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=seconds
        )
    except FileNotFoundError:
        raise EngineError("There is no `docker` command on this machine.") from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"`docker {arguments[0]}` did not end within {seconds:.0f} s.") from None
    if done.returncode:
        raise EngineError(done.stderr.strip() or f"`docker {arguments[0]}` ended with exit code {done.returncode}.")
    return done.stdout.strip()


def require() -> None:
    """Check that containers can be run here; raises LocalError with what to do."""
    fix = (
        "Install and start Docker (its install page: docs.docker.com/engine/install), let this user use it, then try "
        "again. Or use target local, which needs no containers."
    )
    try:
        docker("version", "--format", "{{.Server.Version}}", seconds=20)
        compose()
    except EngineError as error:
        raise LocalError(f"Target local-docker cannot be used: {error} {fix}") from None


@lru_cache(maxsize=1)
def compose() -> tuple[str, ...]:
    """How Docker Compose is called here: as Docker's plugin, else the older command of its own."""
    try:
        docker("compose", "version", seconds=20)
        return ("docker", "compose")
    except EngineError:
        if shutil.which("docker-compose"):
            return ("docker-compose",)
    raise EngineError("Docker Compose is not installed (`docker compose` or `docker-compose`).")


def has_image(name: str) -> bool:
    """Whether the engine holds an image."""
    return bool(docker("image", "ls", "--quiet", name))


@lru_cache(maxsize=1)
def remaps_root() -> bool:
    """Whether root in a container is not root here: rootless engines, and Docker Desktop's virtual machine."""
    options = docker("info", "--format", "{{.SecurityOptions}}")
    return "rootless" in options or "userns" in options or platform.system() != "Linux"
