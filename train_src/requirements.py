"""Installs what the container lacks, and calls pip only then: looking takes milliseconds, pip takes seconds."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from failures import TrainingError

# Only jobs on NVIDIA GPUs use these.
FOUR_BIT = "bitsandbytes>=0.46"  # method qlora needs it
KERNELS = "liger-kernel>=0.6"  # faster norms and rotary positions (replacements.py)
LINE = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?$")


def install_missing(path: Path) -> list[str]:
    """Install the lines of a requirements file that are not met. Returns them; raises TrainingError when pip fails."""
    return _install(_lines(path))


def install_for_gpus(method: str) -> None:
    """What a job on NVIDIA GPUs uses besides. Raises TrainingError where it cannot do without and pip fails."""
    if method == "qlora":
        _install([FOUR_BIT])
    try:
        _install([KERNELS])
    except TrainingError as error:
        print(f"going on without faster norms: {error}", flush=True)


def pass_over_four_bit(method: str) -> None:
    """Keep peft from loading bitsandbytes where a job has no use for it: that is a fifth of all it loads."""
    if method != "qlora" and "bitsandbytes" not in sys.modules:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


def _install(lines: list[str]) -> list[str]:
    missing = [line for line in lines if not _is_met(line)]
    if missing:
        print(f"installing {', '.join(missing)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-input", *missing], check=False)
        if done.returncode:
            raise TrainingError(
                f"the container lacks {', '.join(missing)} and pip cannot install it: use an image that has it, or "
                "give the job a network"
            )
    return missing


def _lines(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _is_met(line: str) -> bool:
    match = LINE.match(line)
    if match is None:
        raise TrainingError(f"requirements.txt: {line!r} must be a name, or a name and its least version (>=)")
    name, least = match.groups()
    try:
        present = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return least is None or _numbers(present) >= _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
