"""Which command an image runs when a container is a plain process.

An image cannot run without a container engine; what can run is the program it stands for. `images.json` in the
home folder adds rules: a list of {"match": regex on the image URI, "train": [argv] or null, "serve": ..., "process": ...}.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

# Serving images whose place the server inside the model archive takes: it speaks the same bodies.
_SERVING = r"(vllm|huggingface-pytorch-inference|huggingface-llm|djl-inference|llama-cpp|sglang)"
_DEFAULTS: list[dict[str, object]] = [
    {"match": ".*", "train": ["train"], "serve": ["serve"]},
    {"match": _SERVING, "train": None, "serve": ["python3", "/opt/ml/model/code/serve.py"]},
]


def command(image: str, verb: str, home: Path) -> list[str]:
    """What an image runs for `train`, `serve` or `process`; the last matching rule that names one wins, [] for none."""
    rules = list(_DEFAULTS)
    own = home / "images.json"
    if own.exists():
        rules += json.loads(own.read_text())
    for rule in reversed(rules):
        found = rule.get(verb)
        if found and re.search(str(rule["match"]), image):
            return list(found)  # type: ignore[call-overload]
    return []
