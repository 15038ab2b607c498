"""Which command an image runs when a container is a plain process.

An image cannot run without a container engine; what can run is the program it stands for. `images.json` in the
home folder adds rules: a list of {"match": regex on the image URI, "train": [argv] or null, "serve": ..., "process": ...}.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llmtuner_local.emulator.errors import validation

# Serving images whose place the server inside the model archive takes: it speaks the same bodies.
_SERVING = r"(vllm|huggingface-pytorch-inference|huggingface-llm|djl-inference|llama-cpp|sglang)"
_DEFAULTS: list[dict[str, Any]] = [
    {"match": ".*", "train": ["train"], "serve": ["serve"]},
    {"match": _SERVING, "train": None, "serve": ["python3", "/opt/ml/model/code/serve.py"]},
]


def command(image: str, verb: str, home: Path) -> list[str]:
    """What an image runs for `train`, `serve` or `process`; the last matching rule that names one wins, [] for none.

    Raises ValidationException when images.json cannot be used.
    """
    for rule in [*reversed(_own_rules(home / "images.json")), *reversed(_DEFAULTS)]:
        found = rule.get(verb)
        if found and re.search(rule["match"], image):
            return list(found)
    return []


def _own_rules(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        rules: list[dict[str, Any]] = json.loads(path.read_text())
        for rule in rules:
            re.compile(rule["match"])
    except (ValueError, TypeError, KeyError, re.error) as error:
        raise validation(
            f"{path} cannot be used ({type(error).__name__}: {error}). Valid: a list of rules such as "
            '{"match": "my-image", "train": ["python3", "/opt/program/train.py"]}.'
        ) from None
    return rules
