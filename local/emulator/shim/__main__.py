"""A supervisor's entry: `python -m llmtuner_local.emulator.shim MODULE FOLDER`, started by `supervisors.py`."""

from __future__ import annotations

import importlib
import os
import sys

from llmtuner_local.processes import keep_lock


def main() -> None:
    """Keep the lock that says this supervisor lives, then do the module's work."""
    keep_lock()
    os.umask(0o077)
    name = sys.argv.pop(1)
    importlib.import_module(f"llmtuner_local.emulator.shim.{name}").main()


if __name__ == "__main__":
    main()
