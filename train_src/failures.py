"""The error a user of the job is meant to read, and the file SageMaker reads it from."""

import sys
from pathlib import Path


class TrainingError(Exception):
    """The job cannot go on; the text says why, with the value at fault, and what to change."""


def write_failure(path: Path, reason: str, details: str = "") -> None:
    """Write the reason first, so that it survives SageMaker's cut at 1,024 characters, and the details after it.

    The first reason of a job stays: its other processes fail next, and know only that one is gone.
    """
    if path.is_file():
        return
    text = reason.strip()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n\n{details.strip()}\n" if details else f"{text}\n", encoding="utf-8")
    except OSError as error:
        print(f"failed: {text} ({path} cannot be written: {error})", file=sys.stderr, flush=True)
