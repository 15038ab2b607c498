"""AWS's own script-mode toolkit (`sagemaker-training` of PyPI), unmodified, as the program of a job."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path
from typing import Any

import pytest
from emulator.conftest import BUCKET, Cloud, archive, channel
from ways import leave_out

# What the tests' environment does not have of the toolkit's requirements.
TOOLKIT = [
    "sagemaker-training==5.1.4",
    "gevent==26.9.0",
    "greenlet==3.5.6",
    "inotify_simple==1.2.1",
    "retrying==1.4.2",
    "zope.event==6.2",
    "zope.interface==8.7",
]
SCRIPT = """
import argparse, json, os, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--fail", type=int, default=0)
options = parser.parse_args()
if options.fail:
    sys.exit(options.fail)
seen = {name: value for name, value in os.environ.items() if name.startswith("SM_")} | {"lr": options.lr}
pathlib.Path(os.environ["SM_MODEL_DIR"], "seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="session")
def toolkit() -> Path:
    """The toolkit in a folder of its own beside the Python environment: its scripts name that one's interpreter."""
    folder = Path(sys.prefix, TOOLKIT[0].replace("==", "-"))
    if not folder.exists():
        part = folder.with_name(f"{folder.name}-{uuid.uuid4().hex}")  # another worker may be at it too
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(part), *TOOLKIT]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
        if done.returncode:
            shutil.rmtree(part, ignore_errors=True)
            leave_out(
                f"the toolkit cannot be built, for which gcc and Python's headers are needed: {done.stderr[-800:]}"
            )
        try:
            part.rename(folder)
        except OSError:
            shutil.rmtree(part)
    return folder


def script_mode(emulator: Cloud, toolkit: Path, **hyperparameters: str) -> dict[str, Any]:
    """Run the script as SDK v2's estimators do: sourcedir.tar.gz, and JSON inside of the hyperparameters."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as made:
        entry = tarfile.TarInfo("main.py")
        entry.size = len(SCRIPT)
        made.addfile(entry, io.BytesIO(SCRIPT.encode()))
    source = emulator.put(f"toolkit/{emulator.name()}/sourcedir.tar.gz", data.getvalue())
    emulator.put("toolkit-data/rows.csv", "1,2")
    name = emulator.name("toolkit")
    own = {"sagemaker_program": "main.py", "sagemaker_submit_directory": source, "sagemaker_region": "us-east-1"}
    request = emulator.request(
        "",
        TrainingJobName=name,
        HyperParameters={key: json.dumps(value) for key, value in own.items()} | hyperparameters,
        Environment={"PYTHONPATH": str(toolkit), "PATH": f"{toolkit}/bin:/usr/bin:/bin"},
    )
    request["InputDataConfig"] = [channel("train", f"s3://{BUCKET}/toolkit-data/")]
    del request["AlgorithmSpecification"]["ContainerEntrypoint"]  # the toolkit's own: `train`
    emulator.sagemaker.create_training_job(**request)
    return emulator.ended(name)


def test_script_gets_its_arguments_and_every_variable(emulator: Cloud, toolkit: Path) -> None:
    job = script_mode(emulator, toolkit, lr="0.1")
    assert job["TrainingJobStatus"] == "Completed", (job, emulator.log(job["TrainingJobName"]))
    seen = json.loads(archive(emulator, job)["seen.json"])
    assert seen["lr"] == 0.1
    assert seen["SM_MODEL_DIR"] == "/opt/ml/model"
    assert seen["SM_CHANNEL_TRAIN"] == "/opt/ml/input/data/train"
    assert json.loads(seen["SM_HOSTS"]) == ["algo-1"]
    assert seen["SM_CURRENT_HOST"] == "algo-1"
    assert seen["SM_CURRENT_INSTANCE_TYPE"] == "ml.g5.xlarge"
    assert json.loads(seen["SM_HPS"]) == {"lr": 0.1}
    assert seen["SM_HP_LR"] == "0.1"
    assert json.loads(seen["SM_TRAINING_ENV"])["job_name"]


def test_failing_script_is_the_failure_reason(emulator: Cloud, toolkit: Path) -> None:
    job = script_mode(emulator, toolkit, lr="0.1", fail="7")
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("AlgorithmError: ExecuteUserScriptError:\nExitCode 7")
    assert job["FailureReason"].endswith("exit code: 1")
