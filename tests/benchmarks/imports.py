"""How long the things people wait for at every start take: imports and the command line.

.venv/bin/python tests/benchmarks/imports.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import llmtuner_kit": [sys.executable, "-c", "import llmtuner_kit"],
    "import every step module": [
        sys.executable,
        "-c",
        "import llmtuner_kit.uploads, llmtuner_kit.training, llmtuner_kit.monitoring, llmtuner_kit.deployments",
    ],
    "llmtuner --help": [str(Path(sys.executable).with_name("llmtuner")), "--help"],
    "python -m llmtuner_local status": [sys.executable, "-m", "llmtuner_local", "status"],
}
ROUNDS = 7


def main() -> None:
    """Run every command in turn, round by round, and print the median and the fastest wall time."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            seconds[name].append(time.perf_counter() - start)
    print(f"{'command':34} {'median s':>9} {'min s':>7}   ({ROUNDS} rounds after one warm-up)")
    for name, values in seconds.items():
        counted = values[1:]
        print(f"{name:34} {statistics.median(counted):9.2f} {min(counted):7.2f}")


if __name__ == "__main__":
    main()
