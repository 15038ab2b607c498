"""SageMaker SDK v3 as it is installed, in a process of its own with the printed variables and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from clients.conftest import PROGRAMS, Bench, unique


def _run(program: str, *arguments: str, bench: Bench, folder: Path) -> tuple[dict[str, Any], str]:
    """What a program wrote down, and all it printed."""
    command = [sys.executable, str(PROGRAMS / program), *arguments]
    done = subprocess.run(
        command, env=bench.variables, cwd=folder, capture_output=True, text=True, check=False, timeout=540
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "told.json").read_text()), done.stdout + done.stderr


def _wheel(folder: Path) -> str:
    """A package nobody has; the name of its wheel."""
    name = "kit_probe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as made:
        made.writestr("kit_probe.py", "VALUE = 42\n")
        made.writestr("kit_probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: kit-probe\nVersion: 1.0\n")
        made.writestr("kit_probe-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("kit_probe-1.0.dist-info/RECORD", "")
    return name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_model_trainer_journey(bench: Bench, tmp_path: Path) -> None:
    source, data, prefix = tmp_path / "source", tmp_path / "data", unique("sdk")
    source.mkdir()
    data.mkdir()
    (source / "train.py").write_text((PROGRAMS / "source" / "train.py").read_text())
    (source / "requirements.txt").write_text(f"packaging\n./{_wheel(source)}\n")
    (data / "rows.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    told, printed = _run("sdk_training.py", str(source), str(data), prefix, bench=bench, folder=tmp_path)
    assert told["status"] == "Completed"
    assert told["hyperparameters"] == {"epochs": "2", "note": "a b"}
    for rank in (0, 1):
        assert f"rank {rank} of 2: 2 rows, 2 epochs, note 'a b', probe 42" in printed
    assert "AlgorithmError: out of luck, exit code: 3" in told["failure"]
    assert told["stopped"] == "Stopped"
    assert told["all"] == ["Completed", "Failed", "Stopped"]
    assert told["left"] == 0
    bucket, key = told["artifacts"].removeprefix("s3://").split("/", 1)
    bench.client("s3").download_file(bucket, key, str(tmp_path / "model.tar.gz"))
    with tarfile.open(tmp_path / "model.tar.gz") as archive:
        assert "weights.json" in archive.getnames()
    assert find_spec("kit_probe") is None  # what a job installs stays in the job


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_endpoint_and_model_builder_journey(bench: Bench, tmp_path: Path) -> None:
    prefix = unique("sdk")
    told, _ = _run("sdk_hosting.py", bench.archive(), prefix, bench=bench, folder=tmp_path)
    assert told == {
        "first": {"echo": "hi", "name": "1"},
        "updated": {"echo": "hi", "name": "2"},
        "instances": 2,
        "listed": [prefix],
        "built": {"echo": "hi", "name": "built"},
        "left": [],
    }
