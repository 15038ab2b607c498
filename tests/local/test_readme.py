"""local/README.md tells what is emulated, exactly."""

from __future__ import annotations

import re
from pathlib import Path

from llmtuner_local.emulator.operations import AUTOSCALING, SAGEMAKER

README = (Path(__file__).parents[2] / "local" / "README.md").read_text()


def test_readme_lists_every_operation_and_no_other() -> None:
    listed = set(re.findall(r"^- `(\w+)`$", README, re.MULTILINE))
    assert listed == set(SAGEMAKER) | set(AUTOSCALING)


def test_readme_has_its_three_parts() -> None:
    assert re.findall(r"^## (\w+)", README, re.MULTILINE) == ["Emulated", "Faked", "Absent"]
