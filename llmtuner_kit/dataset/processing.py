"""The same preparation as a SageMaker Processing job, for data beyond this machine.

    processing_job_request(plan)       the CreateProcessingJob request, pure
    prepare(workspace, ...)            stage, start or find, watch, and put the version in its place

The job gets this package, the training code, the tokenizer and the settings as its channel `code`, under a name that
follows from their content: the same input finds the job that is running, or the version it has made.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import llmtuner_kit
from llmtuner_kit import access, aws, costs, creation, images, job_code, job_names, logs, outages, staging
from llmtuner_kit.aws import ClientError, is_error
from llmtuner_kit.dataset import card as cards
from llmtuner_kit.dataset import quotes, versions
from llmtuner_kit.dataset.report import Report
from llmtuner_kit.dataset.sources import Listing
from llmtuner_kit.dataset.tokens import Encoding
from llmtuner_kit.errors import JobFailedError
from llmtuner_kit.model_names import TOKENIZER_FILES
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import PrepareSettings
from llmtuner_kit.workspace import Workspace

LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
ROOT = "/opt/ml/processing"
PROGRESS = "progress"
"""First word of the job's progress lines: `progress 120 400 reading and checking rows`."""
_TERMINAL = ("Completed", "Failed", "Stopped")
_POLL_SECONDS = 2.0


class Watch(Protocol):
    """Told what is being done, how much of it is done, how much there is, and what it has cost so far."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None: ...


@dataclass(frozen=True)
class Plan:
    """Everything a request is made of, resolved."""

    job_name: str
    role_arn: str
    image: str
    instance_type: str
    volume_gb: int
    max_runtime_seconds: int
    code_uri: str
    manifest_uri: str
    output_uri: str
    user_id: str
    run_name: str
    vpc_config: dict[str, Any] = field(default_factory=dict)


def processing_job_request(plan: Plan) -> dict[str, Any]:
    """The CreateProcessingJob request of a plan. Pure."""
    install = f"python3 -m pip install --quiet --disable-pip-version-check -r {ROOT}/input/code/requirements.txt"
    network = {"NetworkConfig": plan.vpc_config} if plan.vpc_config else {}
    return network | {
        "ProcessingJobName": plan.job_name,
        "RoleArn": plan.role_arn,
        "AppSpecification": {
            "ImageUri": plan.image,
            "ContainerEntrypoint": ["/bin/sh", "-c", f"{install} && exec python3 -m llmtuner_kit.dataset.job {ROOT}"],
        },
        "Environment": {"PYTHONPATH": f"{ROOT}/input/code", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
        "ProcessingInputs": [
            _input("code", plan.code_uri, "S3Prefix"),
            _input("source", plan.manifest_uri, "ManifestFile"),
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": "dataset",
                    "S3Output": {
                        "S3Uri": plan.output_uri,
                        "LocalPath": f"{ROOT}/output/dataset",
                        "S3UploadMode": "EndOfJob",
                    },
                }
            ]
        },
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": 1,
                "InstanceType": plan.instance_type,
                "VolumeSizeInGB": plan.volume_gb,
            }
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": plan.max_runtime_seconds},
        "Tags": access.listed_tags(access.tags(plan.user_id, plan.run_name)),
    }


def _input(name: str, uri: str, kind: str) -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {
            "S3Uri": uri,
            "LocalPath": f"{ROOT}/input/{name}",
            "S3DataType": kind,
            "S3InputMode": "File",
            "S3DataDistributionType": "FullyReplicated",
        },
    }


def prepare(
    run: Run, settings: PrepareSettings, listing: Listing, encoding: Encoding, progress: Watch
) -> tuple[Report, dict[str, Any], bool]:
    """Report and card of the version, and whether it was there before.

    Raises BudgetError where jobs are charged and no budget is set, JobFailedError with the job's own words. Watching
    can be interrupted: the job runs on, and the same call finds it again. The run remembers what it has started.
    """
    workspace = run.workspace
    files = job_files(settings, listing, encoding)
    sha = staging.content_hash(files)
    origin = f"{workspace.paths.datasets(listing.dataset)}job-{sha}/"
    if (found := _made_before(workspace, listing.dataset, origin)) is not None:
        return *found, True
    quoted = quotes.quote(workspace, settings, listing)
    quotes.require_budget(quoted)
    code_uri = staging.stage(workspace, workspace.paths.code(sha), files)
    base = f"prepare-{listing.dataset}"
    job_name = job_names.of_inputs(base, sha[:8], workspace.user_id, lambda name: _status(workspace, name))
    plan = Plan(
        job_name=job_name,
        role_arn=access.execution_role(workspace.aws, settings.role_arn, workspace.user_id),
        image=images.training_image(workspace.aws.region),
        instance_type=settings.instance_type,
        volume_gb=quotes.volume_gb(listing),
        max_runtime_seconds=quoted.max_runtime_seconds,
        code_uri=code_uri,
        manifest_uri=f"{code_uri}manifest.json",
        output_uri=workspace.paths.uri(origin.rstrip("/")),
        user_id=workspace.user_id,
        run_name=run.name,
        vpc_config=settings.vpc_config,
    )
    if _start(workspace, plan) == run.name:
        facts = {"seconds": quoted.seconds, "usd": [quoted.money.low, quoted.money.high]}
        run.note("jobs", job_name, {"kind": "processing", "instance_type": plan.instance_type, "quote": facts})
    _wait(workspace, job_name, progress)
    document = json.loads(
        workspace.aws.client("s3").get_object(Bucket=workspace.bucket, Key=f"{origin}card.json")["Body"].read()
    )
    progress("putting the version in its place", 0, 1)
    prefix = workspace.paths.dataset(listing.dataset, document["version"])
    versions.move(workspace, origin, prefix, document)
    made = versions.existing(workspace, prefix)
    assert made is not None, f"{prefix} has no card"
    workspace.aws.client("s3").put_object(
        Bucket=workspace.bucket, Key=f"{origin}version.json", Body=json.dumps({"version": document["version"]}).encode()
    )
    return *made, False


def _start(workspace: Workspace, plan: Plan) -> str:
    """Start the job unless it runs already; the run that has started it."""
    client = workspace.aws.client("sagemaker")
    if creation.once(client.create_processing_job, **processing_job_request(plan)):
        return plan.run_name
    found = client.describe_processing_job(ProcessingJobName=plan.job_name)
    tags = client.list_tags(ResourceArn=found["ProcessingJobArn"])["Tags"]
    return next((str(tag["Value"]) for tag in tags if tag["Key"] == access.RUN_TAG), "")


def job_files(settings: PrepareSettings, listing: Listing, encoding: Encoding) -> dict[str, bytes]:
    """Relative name -> content of everything the job needs besides the data. Pure but for reading this package."""
    package = Path(llmtuner_kit.__file__).parent
    files = {f"llmtuner_kit/{name}": content for name, content in staging.code_files(package).items()}
    files |= {f"train_src/{name}": content for name, content in staging.code_files(job_code.folder()).items()}
    for name in TOKENIZER_FILES:
        if (path := encoding.folder / name).exists():
            files[f"tokenizer/{name}"] = path.read_bytes()
    folder = listing.folder
    job = {
        "settings": cards.resolved(settings),
        "dataset": listing.dataset,
        "files": [[item.name, item.key.removeprefix(folder), item.etag] for item in listing.files],
        "left_out": listing.left_out,
        "encoding": {"family": encoding.family, "max_length": encoding.max_length, "model_id": encoding.model_id},
    }
    manifest = [
        {"prefix": f"s3://{listing.bucket}/{folder}"},
        *(item.key.removeprefix(folder) for item in listing.files),
    ]
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements()).encode()
    files["job.json"] = json.dumps(job, indent=1).encode()
    files["manifest.json"] = json.dumps(manifest, indent=1).encode()
    return files


def requirements() -> list[str]:
    """What the job installs where its image lacks it: the kit's own dependencies and those of its extra `data`."""
    found = []
    for line in importlib.metadata.requires("llmtuner-kit") or []:
        name, _, marker = line.partition(";")
        if not marker or marker.replace(" ", "").replace('"', "'") == "extra=='data'":
            found.append(name.strip())
    return sorted(set(found))


def described(workspace: Workspace, job_name: str) -> dict[str, Any] | None:
    """A processing job as SageMaker describes it, or None."""
    return aws.described(workspace.aws.client("sagemaker").describe_processing_job, ProcessingJobName=job_name)


def billable_seconds(job: dict[str, Any]) -> float:
    """From the start of a described job until its end, or until now; 0 before it has started."""
    begun = job.get("ProcessingStartTime")
    return costs.elapsed_seconds(begun, job.get("ProcessingEndTime")) if begun else 0.0


def _meter(workspace: Workspace, job: dict[str, Any]) -> str:
    """What a job has cost so far, in words."""
    resources = job["ProcessingResources"]["ClusterConfig"]
    amount = costs.running_cost(
        resources["InstanceType"], workspace.aws.region, billable_seconds(job), resources["InstanceCount"], "processing"
    )
    where = "" if workspace.aws.charged else " on AWS; here it costs nothing"
    return f"{job['ProcessingJobName']} on {resources['InstanceType']}: cost so far {costs.usd(amount)}{where}"


def stop(workspace: Workspace, job_name: str) -> None:
    """Stop a processing job; one that has ended is left as it is."""
    try:
        workspace.aws.client("sagemaker").stop_processing_job(ProcessingJobName=job_name)
    except ClientError as error:
        if not is_error(error, "ValidationException"):
            raise


def _made_before(workspace: Workspace, dataset: str, origin: str) -> tuple[Report, dict[str, Any]] | None:
    try:
        body = workspace.aws.client("s3").get_object(Bucket=workspace.bucket, Key=f"{origin}version.json")["Body"]
    except ClientError as error:
        if is_error(error, "NoSuchKey", "404"):
            return None
        raise
    return versions.existing(workspace, workspace.paths.dataset(dataset, json.loads(body.read())["version"]))


def _status(workspace: Workspace, job_name: str) -> str:
    return str((described(workspace, job_name) or {}).get("ProcessingJobStatus", ""))


def _wait(workspace: Workspace, job_name: str, progress: Watch) -> None:
    """Show the job's own progress until it has ended well; raises JobFailedError otherwise."""
    tokens: dict[str, str] = {}

    def look() -> tuple[dict[str, Any], list[tuple[str, str]]]:
        job = described(workspace, job_name)
        assert job is not None, job_name
        return job, logs.new_lines(workspace, LOG_GROUP, f"{job_name}/", tokens)

    progress(f"processing job {job_name} is starting", 0, 1)
    while True:
        job, lines = outages.wait_out(look, workspace, f"processing job {job_name}")
        for _, line in lines:
            told = line.split(" ", 3)
            if len(told) == 4 and told[0] == PROGRESS and told[1].isdigit() and told[2].isdigit():
                progress(told[3], int(told[1]), int(told[2]), _meter(workspace, job))
        status = job["ProcessingJobStatus"]
        if status == "Completed":
            return
        if status in _TERMINAL:
            reason = job.get("ExitMessage") or job.get("FailureReason") or "no reason was given"
            raise JobFailedError(
                f"The processing job {job_name} ended as {status}: {reason}",
                fix="put right what it names and run the cell again"
                if status == "Failed"
                else "run the cell again; raise max_runtime_minutes when it was stopped by its limit",
            )
        time.sleep(_POLL_SECONDS if workspace.aws.charged else _POLL_SECONDS / 4)
