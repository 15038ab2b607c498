"""local/README.md tells what is emulated, faked and absent, exactly."""

from __future__ import annotations

import re

from llmtuner_local import documentation
from llmtuner_local.emulator.faults import KINDS
from llmtuner_local.emulator.operations import AUTOSCALING, SAGEMAKER

README = documentation.FILE.read_text()


def test_readme_is_what_the_operation_table_says() -> None:
    assert documentation.render(README) == README, "run: python -m llmtuner_local.documentation"


def test_readme_names_every_operation_and_fault_and_no_other() -> None:
    assert set(re.findall(r"^- `([\w-]+)`", README, re.MULTILINE)) == {*SAGEMAKER, *AUTOSCALING, *KINDS}


def test_readme_has_its_three_parts() -> None:
    assert re.findall(r"^## (\w+)", README, re.MULTILINE) == ["Emulated", "Faked", "Absent"]


def test_nouns_join_what_belongs_together() -> None:
    names = ("CreateTrainingJob", "ListTrainingJobs", "StopTrainingJob", "SearchTrainingPlanOfferings", "ListTrials")
    assert [documentation._noun(name) for name in names] == [
        "TrainingJob", "TrainingJob", "TrainingJob", "TrainingPlanOffering", "Trial",
    ]  # fmt: skip
