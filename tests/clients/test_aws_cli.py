"""The AWS CLI (version 1, from PyPI), in an environment of its own: it pins another botocore than ours."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients.conftest import BUCKET, FAST, PROGRAMS, ROLE, SERVING_IMAGE, Bench, unique
from llmtuner_local.home import cache_folder

from llmtuner_kit import inference
from llmtuner_kit.inference import Deployed
from llmtuner_kit.settings import StartSettings
from llmtuner_kit.workspace import open_workspace

VERSION = "1.46.3"
Aws = Callable[..., Any]


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with `aws` and its Python: an environment in the cache, made once."""
    folder = cache_folder() / f"awscli-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".awscli.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"awscli=={VERSION}"]
            subprocess.run([*install, "--disable-pip-version-check"], check=True)
            (folder / ".complete").touch()
    return folder / "bin"


@pytest.fixture
def aws(programs: Path, shell_variables: dict[str, str], tmp_path: Path) -> Iterator[Aws]:
    """Run `aws ...`; its answer as JSON, or the text on stderr when it fails."""
    command = [str(programs / "python"), str(PROGRAMS / "aws_cli.py")]
    with subprocess.Popen(
        command, env=shell_variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdin
        assert process.stdout

        def run(*arguments: str, fails: bool = False) -> Any:
            print(json.dumps(arguments), file=process.stdin, flush=True)
            code, told, errors = json.loads(process.stdout.readline())
            assert bool(code) == fails, f"{arguments}: {errors}{told}"
            if fails:
                return errors
            try:
                return json.loads(told or "{}")
            except ValueError:
                return told

        yield run
        process.stdin.close()


@pytest.mark.slow
def test_cli_journey(aws: Aws, bench: Bench, tmp_path: Path, programs: Path, shell_variables: dict[str, str]) -> None:
    version = subprocess.run(
        [programs / "aws", "--version"], env=shell_variables, capture_output=True, text=True, check=True
    )
    assert version.stdout.startswith(f"aws-cli/{VERSION} ")
    job, model, endpoint = unique("job"), unique("model"), unique("endpoint")
    request = bench.training_request(job)
    (tmp_path / "request.json").write_text(json.dumps(request))
    arn = aws("sagemaker", "create-training-job", "--cli-input-json", "file://request.json")["TrainingJobArn"]
    assert arn.endswith(f":training-job/{job}")
    described = ("sagemaker", "describe-training-job", "--training-job-name", job)
    sagemaker = bench.client("sagemaker")  # waits here: the CLI's own `wait` commands ask every 30 and 120 seconds
    sagemaker.get_waiter("training_job_completed_or_stopped").wait(TrainingJobName=job, WaiterConfig=FAST)
    assert aws(*described)["TrainingJobStatus"] == "Completed"
    aws("sagemaker", "wait", "training-job-completed-or-stopped", "--training-job-name", job)
    filtered = ("logs", "filter-log-events", "--log-group-name", "/aws/sagemaker/TrainingJobs")
    events = aws(*filtered, "--log-stream-name-prefix", f"{job}/")["events"]
    assert [item["message"] for item in events] == ["epoch=0 loss=1.000;", "epoch=1 loss=0.500;"]
    listed = aws("sagemaker", "list-training-jobs", "--name-contains", job, "--status-equals", "Completed")
    assert [item["TrainingJobName"] for item in listed["TrainingJobSummaries"]] == [job]
    aws("sagemaker", "add-tags", "--resource-arn", arn, "--tags", "Key=team,Value=blue")
    assert aws("sagemaker", "list-tags", "--resource-arn", arn)["Tags"] == [{"Key": "team", "Value": "blue"}]

    data = aws(*described)["ModelArtifacts"]["S3ModelArtifacts"]
    aws("s3", "cp", data, "model.tar.gz")
    assert (tmp_path / "model.tar.gz").stat().st_size > 100
    for name in (model, f"{model}-b"):
        container = f"Image={SERVING_IMAGE},ModelDataUrl={data},Environment={{NAME={name}}}"
        create = ("sagemaker", "create-model", "--model-name", name, "--execution-role-arn", ROLE)
        aws(*create, "--primary-container", container)
        variant = f"VariantName=AllTraffic,ModelName={name},InstanceType=ml.m5.xlarge,InitialInstanceCount=1"
        create = ("sagemaker", "create-endpoint-config", "--endpoint-config-name", name)
        aws(*create, "--production-variants", variant)
    names = ("--endpoint-name", endpoint)
    aws("sagemaker", "create-endpoint", *names, "--endpoint-config-name", model)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=FAST)
    assert aws("sagemaker", "describe-endpoint", *names)["EndpointStatus"] == "InService"
    aws("sagemaker", "wait", "endpoint-in-service", *names)
    assert _invoke(aws, endpoint, tmp_path) == {"echo": "hi", "name": model}
    example = inference.client_examples(open_workspace(StartSettings()), Deployed(endpoint, "seq2seq"), "it's on")
    shell = shell_variables | {"PATH": f"{programs}:{shell_variables['PATH']}"}
    pasted = subprocess.run(
        ["sh", "-c", example["AWS CLI"]], cwd=tmp_path, env=shell, capture_output=True, text=True, check=True
    )
    assert pasted.stdout.endswith(json.dumps({"echo": "it's on", "name": model}))
    aws("sagemaker", "update-endpoint", *names, "--endpoint-config-name", f"{model}-b")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=FAST)
    assert _invoke(aws, endpoint, tmp_path)["name"] == f"{model}-b"

    aws("sagemaker", "delete-endpoint", *names)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=endpoint, WaiterConfig=FAST)
    assert aws("sagemaker", "list-endpoints", "--name-contains", endpoint)["Endpoints"] == []
    aws("sagemaker", "wait", "endpoint-deleted", *names)
    for name in (model, f"{model}-b"):
        aws("sagemaker", "delete-endpoint-config", "--endpoint-config-name", name)
        aws("sagemaker", "delete-model", "--model-name", name)
    refused = aws("sagemaker", "stop-training-job", "--training-job-name", job, fails=True)
    assert "The request was rejected because the training job is in status Completed." in refused
    aws("sagemaker", "delete-training-job", "--training-job-name", job)
    assert "(ValidationException)" in aws(*described, fails=True)
    assert BUCKET in aws("s3", "ls")


def _invoke(aws: Aws, endpoint: str, folder: Path) -> dict[str, Any]:
    (folder / "body.json").write_text(json.dumps({"inputs": "hi"}))
    call = ("sagemaker-runtime", "invoke-endpoint", "--endpoint-name", endpoint, "--body", "fileb://body.json")
    told = aws(*call, "--content-type", "application/json", "answer.json")
    assert told["InvokedProductionVariant"] == "AllTraffic"
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return found
