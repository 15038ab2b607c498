"""A supervisor's entry: `python -m llmtuner_local.emulator.shim MODULE FOLDER`, started by `supervisors.py`.

MODULE is training, processing or replica; what it is to do lies in the folder.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from llmtuner_local.processes import keep_lock


def main() -> None:
    """Keep the lock that says this supervisor lives, then do the module's work."""
    keep_lock()
    os.umask(0o077)
    name, folder = sys.argv[1:]
    importlib.import_module(f"llmtuner_local.emulator.shim.{name}").supervise(Path(folder))


if __name__ == "__main__":
    main()
