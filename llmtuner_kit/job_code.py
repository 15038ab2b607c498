"""The code that jobs run (train_src): where it lies, and those of its modules that the kit computes by.

The kit never imports what needs PyTorch. A module of plain arithmetic is loaded from the file that jobs are given, so
that kit and job cannot come to different results.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from llmtuner_kit.errors import NotFoundError


def folder() -> Path:
    """train_src, found without importing it: the folder of that name that holds train.py."""
    spec = importlib.util.find_spec("train_src")
    found = list(spec.submodule_search_locations or ()) if spec else []
    # Any folder called train_src on the path counts as the package; ours lies beside the kit.
    for place in [Path(__file__).parents[1] / "train_src", *map(Path, found)]:
        if (place / "train.py").is_file():
            return place
    raise NotFoundError("train_src is not installed beside llmtuner_kit.", fix="install the project again")


def module(name: str) -> ModuleType:
    """One of its modules, which must import nothing but Python's own library; loaded once."""
    full = f"train_src.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, folder() / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[full] = loaded  # dataclasses look their module up
        spec.loader.exec_module(loaded)
    return sys.modules[full]
