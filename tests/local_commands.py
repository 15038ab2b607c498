"""The local cloud by its command line, on a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class Local:
    """`python -m llmtuner_local ...` on one home."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        values = os.environ | {"LLMTUNER_HOME": str(self.home)} | environment
        command = [sys.executable, "-m", "llmtuner_local", *arguments]
        return subprocess.run(command, env=values, capture_output=True, text=True, check=False, timeout=120)

    def up(self, **environment: str) -> dict[str, Any]:
        done = self.run("up", "--json", **environment)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def pids(self) -> dict[str, int]:
        state = json.loads((self.home / "local.json").read_text())
        return {name: state[name]["pid"] for name in ("localstack", "emulator")}
