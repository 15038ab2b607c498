"""Training: the quote, the CreateTrainingJob request, start and stop.

quote(workspace, settings)           what it will take: money, time, does it fit
training_job_request(plan)           the request, pure
start(workspace, settings)           the same inputs find the same job instead of paying again
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from typing import Any

import llmtuner_kit
from llmtuner_kit import (
    access,
    base_models,
    catalog,
    creation,
    images,
    job_inputs,
    job_names,
    paths,
    rehearsals,
    runs,
    staging,
)
from llmtuner_kit.aws import ClientError, described, error_message, is_error
from llmtuner_kit.errors import ConflictError, NotFoundError, SettingsError
from llmtuner_kit.quotes import LONGEST_SECONDS, Quote, quote, require_budget
from llmtuner_kit.runs import Run
from llmtuner_kit.sending import Progress
from llmtuner_kit.settings import TrainSettings
from llmtuner_kit.workspace import Workspace

METRICS = (
    "train_loss", "eval_loss", "token_accuracy", "eval_token_accuracy", "tokens_per_second", "learning_rate",
    "grad_norm", "epoch", "step", "total_steps", "eta_seconds", "memory_gb", "base_loss", "base_perplexity",
    "test_loss", "perplexity",
)  # fmt: skip
VOLUME_GB = 30  # what SageMaker asks for where an instance has no disk of its own
# Scratch on the instance's own disk; the container's home is on a root volume that the image nearly fills.
_HUB_FOLDER = "/tmp/huggingface"  # noqa: S108 - a folder of the job's container
_SECRET = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:\S+")
# Settings that travel to train.py under the same name.
_PASSED = (
    "method", "epochs", "max_steps", "learning_rate", "lora_r", "lora_alpha", "lora_dropout", "max_length",
    "batch_tokens", "seed", "evaluation_samples",
)  # fmt: skip
# Settings that say where, as whom and how long, but not what is trained: a job that was stopped goes on with others.
_NO_INPUTS = {
    "run_name", "target", "region", "user_id", "bucket", "budget_usd", "max_runtime_minutes", "role_arn", "spot",
    "subnets", "security_groups",
}  # fmt: skip


@dataclass(frozen=True)
class TrainingJob:
    """A job of this run. `reused`: it was there already, nothing new was started.

    `earlier`: the first try of the same inputs, which failed or was stopped; the job goes on from its last checkpoint.
    `other_code`: the status of a reused one that runs other training code than this kit's, else empty.
    """

    job_name: str
    earlier: str
    arn: str
    model_uri: str
    request: dict[str, Any] = field(repr=False)
    quote: Quote | None
    reused: bool
    other_code: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything a request is made of, resolved; building the request from it needs nothing else."""

    job_name: str
    first_try: str  # the first job of the same inputs, whose checkpoints all tries share
    settings: TrainSettings
    model: catalog.BaseModel
    role_arn: str
    image: str
    user_paths: paths.UserPaths
    code_uri: str
    model_uri: str
    channels: dict[str, str]
    dataset_sha256: str
    max_runtime_seconds: int
    run_name: str
    environment: dict[str, str]


def start(workspace: Workspace, settings: TrainSettings, progress: Progress | None = None) -> TrainingJob:
    """Start the job, or find the one the same inputs started before; `progress` follows the copying of a base model.

    A job that the run has started before an update of the kit is found too, while it runs or where it was paid for.

    Raises BudgetError where jobs are charged and no budget is set, SettingsError when the model cannot fit,
    ConflictError when the job's name is taken by something else.
    """
    run = runs.open_run(workspace, settings.run_name)
    made = quote(workspace, settings, run)
    require_startable(made)
    plan = make_plan(workspace, settings, run, made, progress)
    request = training_job_request(plan)
    noted = run.noted("jobs").get(plan.job_name)
    before = job_inputs.of_other_code(run, request) if noted is None else None
    if before is not None:
        return _found_again(run, settings, plan, made, before)
    facts = noted or {"kind": "training", "instance_type": made.instance_type, "quote": _quoted(made)}
    facts |= {"first_try": plan.first_try}
    if noted is None:  # first: of a start that is interrupted here nobody else would know
        run.note("jobs", plan.job_name, facts | {"started": False})
    created = creation.once(workspace.aws.client("sagemaker").create_training_job, **request)
    arn = created["TrainingJobArn"] if created else _same_job(workspace, request)
    run.note("jobs", plan.job_name, facts | {"started": True})
    record = _record(plan, made, arn, request)
    run.save("train", settings=settings.model_dump(), result=record)
    earlier = plan.first_try if plan.first_try != plan.job_name else ""
    return TrainingJob(plan.job_name, earlier, arn, record["model_uri"], request, made, not created)


def _found_again(run: Run, settings: TrainSettings, plan: Plan, made: Quote, before: dict[str, Any]) -> TrainingJob:
    """A job that other code has made from the same inputs is the run's; its note keeps the quote of then."""
    plan = replace(plan, job_name=before["TrainingJobName"])
    request = training_job_request(plan) | {"HyperParameters": before["HyperParameters"]}
    record = _record(plan, made, before["TrainingJobArn"], request)
    run.save("train", settings=settings.model_dump(), result=record)
    uri, status = record["model_uri"], before["TrainingJobStatus"]
    return TrainingJob(plan.job_name, "", record["job_arn"], uri, request, made, reused=True, other_code=status)


def require_startable(made: Quote) -> None:
    """Raises SettingsError where the method needs a GPU that a rehearsal does not have or the model does not fit the
    instance, BudgetError as `require_budget` does.
    """
    rehearsals.require_possible(made.target, made.method)
    if not made.fit.fits:
        raise SettingsError(
            f"{made.model_id} with {made.method} does not fit {made.instance_type}: {made.fit.why}.",
            fix=f"set instance_type to {made.fit.smallest!r}"
            if made.fit.smallest
            else "choose qlora or a smaller model",
        )
    require_budget(made)


def _record(plan: Plan, made: Quote, arn: str, request: dict[str, Any]) -> dict[str, Any]:
    return {
        "job_name": plan.job_name,
        "job_arn": arn,
        "model_id": plan.model.model_id,
        "model_uri": plan.user_paths.uri(plan.user_paths.model_archive(plan.job_name)),
        "instance_type": made.instance_type,
        "instance_count": made.instance_count,
        "dataset_sha256": plan.dataset_sha256,
        "quote": _quoted(made),
        "hyperparameters": request["HyperParameters"],
    }


def _quoted(made: Quote) -> dict[str, Any]:
    usd = [made.money.low, made.money.high]
    return {"seconds": made.seconds, "usd": usd, "tokens": made.tokens, "rows": made.rows}


def _same_job(workspace: Workspace, request: dict[str, Any]) -> str:
    """The ARN of the job that has the name, when it was made from the same inputs."""
    found = workspace.aws.client("sagemaker").describe_training_job(TrainingJobName=request["TrainingJobName"])
    same = job_inputs.same(found, request)
    if same and found["TrainingJobStatus"] not in ("Failed", "Stopped"):
        return str(found["TrainingJobArn"])
    status = found["TrainingJobStatus"]
    raise ConflictError(
        f"The job name {request['TrainingJobName']!r} is taken by a job that is {status}"
        + ("." if same else ", made from other inputs."),
        fix="change a setting (the seed is enough) or use another run_name; the finished job stays as it is",
    )


def make_plan(
    workspace: Workspace, settings: TrainSettings, run: Run, made: Quote, progress: Progress | None = None
) -> Plan:
    """Resolve names, role and image, and put code and base model where the job will look for them."""
    prepared = run.result("prepare")
    model = base_models.of_run(run, settings.model_id)
    base_models.remember(workspace, model)
    settings = settings.model_copy(update={"instance_type": made.instance_type})
    code_sha, code_uri = staging.stage_code(workspace)
    model_uri = staging.stage_model(workspace, model, progress) if model.staged else ""
    channels = {name: part["uri"] for name, part in prepared["splits"].items() if part["rows"]}
    for uri in channels.values():
        workspace.require_own(uri)
    asked = settings.model_dump(exclude=_NO_INPUTS)
    inputs = [workspace.user_id, [model.model_id, model.revision, code_sha, prepared["dataset_sha256"], asked]]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]
    base = f"{run.name}-{model.model_id}"
    return Plan(
        job_name=job_names.of_inputs(base, digest, workspace.user_id, lambda name: job_status(workspace, name)),
        first_try=job_names.of_try(base, digest, workspace.user_id),
        settings=settings,
        model=model,
        role_arn=access.execution_role(workspace.aws, settings.role_arn, workspace.user_id),
        image=images.training_image(workspace.aws.region),
        user_paths=workspace.paths,
        code_uri=code_uri,
        model_uri=model_uri,
        channels=channels,
        dataset_sha256=prepared["dataset_sha256"],
        max_runtime_seconds=made.max_runtime_seconds,
        run_name=run.name,
        environment=_environment(model, workspace.user_id) | _time(made),
    )


def _environment(model: catalog.BaseModel, user_id: str) -> dict[str, str]:
    """A gated model needs a token; only the name of the secret that holds it may appear in a job description."""
    if model.staged:
        return {"HF_HUB_OFFLINE": "1"}
    secret = os.environ.get("HF_TOKEN_SECRET_ARN", "")
    how = (
        f"store the token in AWS Secrets Manager under the name {access.SECRETS}{user_id}/hf-token, which the kit's roles "
        "may read, and set HF_TOKEN_SECRET_ARN to the secret's ARN where this runs"
    )
    if model.gated and not secret:
        raise SettingsError(f"{model.title} is gated on the Hub: the job needs a token.", fix=how)
    if secret and not _SECRET.fullmatch(secret):
        raise SettingsError(
            f"HF_TOKEN_SECRET_ARN is {secret!r}, which is no ARN of a secret.",
            valid="arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME-SUFFIX",
            fix=how,
        )
    mirror = os.environ.get("HF_ENDPOINT", "")  # of a company or a region; the kit's own look-ups go there too
    return (
        {"HF_HOME": _HUB_FOLDER}
        | ({"HF_TOKEN_SECRET_ARN": secret} if secret else {})
        | ({"HF_ENDPOINT": mirror} if mirror else {})
    )


def _time(made: Quote) -> dict[str, str]:
    """When the job is to end by itself. No hyperparameter: another budget is not another job."""
    return {"LLMTUNER_STOP_AFTER": str(made.stop_after_seconds)} if made.stop_after_seconds else {}


def job_status(workspace: Workspace, job_name: str) -> str:
    """TrainingJobStatus, or an empty text when there is no such job."""
    found = described(workspace.aws.client("sagemaker").describe_training_job, TrainingJobName=job_name)
    return str(found["TrainingJobStatus"]) if found else ""


def training_job_request(plan: Plan) -> dict[str, Any]:
    """The CreateTrainingJob request of a plan. Pure."""
    settings = plan.settings
    output: dict[str, Any] = {"S3OutputPath": plan.user_paths.uri(plan.user_paths.models)}
    if settings.kms_key_id:
        output["KmsKeyId"] = settings.kms_key_id
    stopping = {"MaxRuntimeInSeconds": plan.max_runtime_seconds}
    if settings.spot:
        # Spot may wait and start again: three times the work, within SageMaker's own limit.
        stopping["MaxWaitTimeInSeconds"] = min(LONGEST_SECONDS, 3 * plan.max_runtime_seconds + 3600)
    channels = {"code": plan.code_uri, **plan.channels}
    if plan.model_uri:
        channels["model"] = plan.model_uri
    return {
        "TrainingJobName": plan.job_name,
        "RoleArn": plan.role_arn,
        "AlgorithmSpecification": {
            "TrainingImage": plan.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/train.py"],
            "MetricDefinitions": [{"Name": name, "Regex": rf"^metric .*\b{name}=([-+0-9.eE]+)"} for name in METRICS],
        },
        "HyperParameters": hyperparameters(plan),
        "Environment": plan.environment,
        "InputDataConfig": [_channel(name, uri) for name, uri in channels.items()],
        "OutputDataConfig": output,
        "ResourceConfig": {
            "InstanceType": settings.instance_type,
            "InstanceCount": settings.instance_count,
            # The catalogue's instances bring disks of their own: SageMaker ignores the size and refuses a key for them.
            "VolumeSizeInGB": VOLUME_GB,
        },
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": settings.spot,
        "EnableInterContainerTrafficEncryption": settings.instance_count > 1,
        "CheckpointConfig": {
            "S3Uri": plan.user_paths.uri(plan.user_paths.checkpoints(plan.first_try)),
            "LocalPath": "/opt/ml/checkpoints",
        },
        "Tags": access.listed_tags(access.tags(plan.user_paths.user_id, plan.run_name)),
    } | settings.vpc_config


def hyperparameters(plan: Plan) -> dict[str, str]:
    """What train.py reads, as the flat map of strings SageMaker takes."""
    values = {name: getattr(plan.settings, name) for name in _PASSED}
    values |= {
        "model_id": plan.model.model_id if plan.model.staged else plan.model.hub_id,
        "model_revision": base_models.revision(plan.model),
        "family": plan.model.family,
        "dataset_sha256": plan.dataset_sha256,
        "kit_version": llmtuner_kit.__version__,
        "run_name": plan.run_name,
    }
    return {name: str(value) for name, value in values.items()}


def _channel(name: str, uri: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": "File"}


def stop(workspace: Workspace, job_name: str) -> str:
    """Stop a job; what it has saved is kept. Returns the status; a job that has ended already is left as it is."""
    client = workspace.aws.client("sagemaker")
    require_own_job(workspace, job_name)
    try:
        client.stop_training_job(TrainingJobName=job_name)
    except ClientError as error:
        if not is_error(error, "ValidationException") or "in status" not in error_message(error):
            raise
    return job_status(workspace, job_name)


def require_own_job(workspace: Workspace, job_name: str) -> dict[str, Any]:
    """DescribeTrainingJob of a job whose output lies in the user's prefix; raises NotFoundError or AccessError."""
    found = described(workspace.aws.client("sagemaker").describe_training_job, TrainingJobName=job_name)
    if found is None:
        raise NotFoundError(
            f"There is no training job {job_name!r}.", fix="run 03_train, or set job_name to an existing job"
        )
    workspace.require_own(found["OutputDataConfig"]["S3OutputPath"] + "/")
    return found


def job_of(workspace: Workspace, run_name: str, job_name: str, run: Run | None = None) -> str:
    """The job named in the settings, else the one the run started; `run`: that run, if it is open."""
    return job_name or str((run or runs.open_run(workspace, run_name)).result("train")["job_name"])
