"""Which command stands for an image: the serving images' own server, what images.json says, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from llmtuner_local.emulator import images
from llmtuner_local.emulator.errors import ServiceError


def test_the_last_rule_that_names_a_command_wins(tmp_path: Path) -> None:
    assert images.command("any/image:1", "train", tmp_path) == ["train"]
    assert images.command("1.dkr.ecr/vllm:0.30", "serve", tmp_path) == ["python3", "/opt/ml/model/code/serve.py"]
    assert images.command("any/image:1", "process", tmp_path) == []
    (tmp_path / "images.json").write_text(
        '[{"match": "vllm", "serve": ["mine"]}, {"match": "vllm", "serve": null, "process": ["made"]}]'
    )
    assert images.command("1.dkr.ecr/vllm:0.30", "serve", tmp_path) == ["mine"]
    assert images.command("1.dkr.ecr/vllm:0.30", "process", tmp_path) == ["made"]
    assert images.command("any/image:1", "serve", tmp_path) == ["serve"]


@pytest.mark.parametrize("text", ["[", "{}}", "[1]", '[{"train": ["x"]}]', '[{"match": "("}]', "7"])
def test_rules_that_cannot_be_used_are_refused_with_what_is_valid(tmp_path: Path, text: str) -> None:
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(ServiceError, match=r"images.json cannot be used .*\. Valid: a list of rules such as"):
        images.command("any/image:1", "train", tmp_path)
