"""Where the local cloud keeps its things, and what it remembers of its processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ACCOUNT_ID = "000000000000"
REGION = "us-east-1"
ROLE_NAME = "llmtuner-execution"
ACCESS_KEY = "test"
SECRET_KEY = "test"  # noqa: S105 - LocalStack's well-known dummy


class LocalError(Exception):
    """Something the user can put right; the command line prints it without a traceback."""


def home_folder() -> Path:
    """The state of the local cloud: `LLMTUNER_HOME`, else ~/.llmtuner. Created when missing."""
    folder = Path(os.environ.get("LLMTUNER_HOME") or Path.home() / ".llmtuner").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LocalError(
            f"The folder {folder} cannot be used ({error.strerror}). Set LLMTUNER_HOME to a folder you may write."
        ) from None
    return folder


def cache_folder() -> Path:
    """Things that can be rebuilt: `LLMTUNER_CACHE`, else `llmtuner` in the user's cache folder."""
    if named := os.environ.get("LLMTUNER_CACHE"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "llmtuner"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is none yet."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def write_atomic(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(name).chmod(mode)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; one process at a time, let go of when it ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def disk_errors_in_words(folder: Path) -> Iterator[None]:
    """Inside, a full or closed disk is a LocalError that names the place, and the variable that names another."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # the error may name the file that was read, on another disk
            raise LocalError(
                f"The disk of {folder} is full. Make room there, or set {_variable(folder)} to a folder on another disk."
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            place = Path(str(error.filename or folder))
            raise LocalError(
                f"{place} cannot be written ({error.strerror}). Set {_variable(place)} to a folder you may write."
            ) from None
        raise


def _variable(place: Path) -> str:
    return "LLMTUNER_CACHE" if place.is_relative_to(cache_folder()) else "LLMTUNER_HOME"
