"""The archive behind the real handler service of the Hugging Face inference image."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import inference

TOOLKIT = (
    "sagemaker-huggingface-inference-toolkit==2.6.0",
    "sagemaker-inference==1.10.1",
    "multi-model-server==1.1.11",
)
QUESTION = "What is the colour of thing 3?"


@pytest.fixture(scope="session")
def toolkit() -> Path:
    """A folder with the toolkit and nothing else, kept in the kit's cache. Its Java model server is not needed."""
    cache = Path(os.environ.get("LLMTUNER_CACHE") or Path.home() / ".cache" / "llmtuner")
    folder = cache / f"inference-toolkit-{TOOLKIT[0].rpartition('=')[2]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f".{folder.name}.{os.getpid()}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(part), *TOOLKIT]
        subprocess.run(command, check=True, timeout=240)
        try:
            part.rename(folder)
        except OSError:  # another test process was faster
            assert folder.is_dir()
    return folder


@pytest.mark.parametrize("family", ["seq2seq", "causal"])
def test_the_image_answers_as_the_server_does(toolkit: Path, finished: dict[str, Path], family: str) -> None:
    folder = finished[family] / "model"
    bodies: list[Any] = [
        {"inputs": QUESTION, "parameters": {"max_new_tokens": 12}},
        {"inputs": [QUESTION, "Hello"], "parameters": {"max_new_tokens": 8, "temperature": 0.9, "seed": 4}},
        {"inputs": QUESTION, "parameters": {"max_new_tokens": 8}, "model": "base"},
        {"inputs": ""},
        {"inputs": QUESTION, "stream": True},
    ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("toolkit_driver.py")), str(folder)],
        input="".join(json.dumps(body) + "\n" for body in bodies),
        env={**os.environ, "PYTHONPATH": str(toolkit), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=240,
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    model = inference.model_fn(str(folder))
    for body, reply in zip(bodies[:3], replies, strict=False):
        own = inference.transform_fn(model, json.dumps(body), "application/json", "application/json")
        assert (reply["status"], json.loads(reply["body"])) == (200, json.loads(own))
    assert [reply["status"] for reply in replies] == [200, 200, 200, 400, 400]
    assert "inputs must be text that is not empty" in replies[3]["body"]
    assert "this container cannot stream" in replies[4]["body"]
