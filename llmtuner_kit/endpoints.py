"""Endpoints: deploy, watch, scale, expire, delete.

deploy(workspace, settings)          model + endpoint configuration + endpoint + autoscaling
watch(workspace, name)               statuses until it serves or failed
delete(workspace, name)              the endpoint, its configuration, its model entry, its scaling target
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import llmtuner_kit
from llmtuner_kit import access, artifacts, catalog, costs, images, paths, runs, training, troubles
from llmtuner_kit.aws import ClientError, error_code, error_message, is_error
from llmtuner_kit.errors import BudgetError, ConflictError, JobFailedError, KitError, NotFoundError, SettingsError
from llmtuner_kit.settings import CleanupSettings, DeploySettings
from llmtuner_kit.workspace import Workspace

VARIANT = "AllTraffic"
EXPIRES_TAG = "llmtuner:expires-at"
LOG_GROUP = "/aws/sagemaker/Endpoints"
BUSY = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})
# Loading 13B weights from a packed archive takes minutes; SageMaker takes 60 to 3600.
STARTUP_SECONDS = 1800
_COOLDOWN_SECONDS = {"ScaleInCooldown": 300, "ScaleOutCooldown": 60}


@dataclass(frozen=True)
class EndpointStatus:
    """An endpoint at one moment."""

    endpoint_name: str
    status: str
    failure_reason: str
    instance_type: str
    instances: int
    desired_instances: int
    created_at: datetime
    expires_at: datetime | None
    usd_per_hour: float | None
    cost_usd: float | None
    charged: bool
    owner: str
    job_name: str

    @property
    def ready(self) -> bool:
        return self.status == "InService"

    @property
    def done(self) -> bool:
        """Whether waiting longer changes nothing by itself."""
        return self.status not in BUSY

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


@dataclass(frozen=True)
class Endpoint:
    """What deploy made (or found: `reused`)."""

    endpoint_name: str
    arn: str
    job_name: str
    instance_type: str
    usd_per_hour: float | None
    usd_until_expiry: float | None
    expires_at: datetime
    autoscaling: str
    reused: bool
    charged: bool


def deploy(workspace: Workspace, settings: DeploySettings) -> Endpoint:
    """Create the endpoint of a finished job, or find the one that serves it already.

    Raises NotReadyError or NotFoundError when the job has no archive, BudgetError where endpoints are charged and
    the budget does not cover the time to live, ConflictError when the name serves another model.
    """
    job_name = training.job_of(workspace, settings.run_name, settings.job_name)
    archive = artifacts.archive_head(workspace, job_name)
    job = training.require_own_job(workspace, job_name)
    model = catalog.base_model(job["HyperParameters"]["model_id"])
    name = paths.check_name(settings.endpoint_name or paths.fit_name(job_name), "endpoint_name")
    rate = costs.hourly(settings.instance_type, workspace.aws.region, settings.max_instances)
    until_expiry = None if rate is None else rate * settings.time_to_live_minutes / 60
    _check_budget(workspace, settings, until_expiry)
    expires = datetime.now(UTC) + timedelta(minutes=settings.time_to_live_minutes)
    tags = _tags(workspace, settings, job_name, expires)
    version = f"{archive['ETag'].strip(chr(34))}-{settings.instance_type}-{settings.min_instances}"
    config_name = paths.fit_name(name, hashlib.sha256(version.encode()).hexdigest()[:8])
    arn, reused = _create(workspace, settings, model, job_name, name, config_name, tags)
    autoscaling = _autoscale(workspace, settings, name) if settings.max_instances > settings.min_instances else "off"
    made = Endpoint(
        name, arn, job_name, settings.instance_type, costs.hourly(settings.instance_type, workspace.aws.region),
        until_expiry, expires, autoscaling, reused, workspace.aws.charged,
    )  # fmt: skip
    result = {
        "endpoint_name": name,
        "endpoint_arn": arn,
        "endpoint_config_name": config_name,
        "model_name": config_name,
        "job_name": job_name,
        "family": model.family,
        "instance_type": settings.instance_type,
        "expires_at": expires.isoformat(),
        "quote": {"usd_per_hour": made.usd_per_hour, "usd_until_expiry": until_expiry},
        "autoscaling": autoscaling,
    }
    runs.open_run(workspace, settings.run_name).save("deploy", settings=settings.model_dump(), result=result)
    return made


def _check_budget(workspace: Workspace, settings: DeploySettings, until_expiry: float | None) -> None:
    if not workspace.aws.charged:
        return
    amount = costs.usd(until_expiry)
    if not settings.budget_usd:
        raise BudgetError(
            f"This endpoint is charged and no budget is set; until its time to live ends it costs up to {amount}.",
            fix=f"set budget_usd, at least {amount}, or a shorter time_to_live_minutes",
        )
    if until_expiry is not None and until_expiry > settings.budget_usd:
        raise BudgetError(
            f"Until its time to live ends the endpoint costs up to {amount}; the budget is {costs.usd(settings.budget_usd)}.",
            fix="set a shorter time_to_live_minutes, fewer max_instances, or a larger budget_usd",
        )


def _tags(workspace: Workspace, settings: DeploySettings, job_name: str, expires: datetime) -> list[dict[str, str]]:
    run = runs.open_run(workspace, settings.run_name)
    values = {
        access.OWNER_TAG: workspace.user_id,
        "llmtuner:run": run.name,
        "llmtuner:job": job_name,
        "llmtuner:kit-version": llmtuner_kit.__version__,
        EXPIRES_TAG: expires.isoformat(timespec="seconds"),
    }
    return [{"Key": key, "Value": value} for key, value in values.items()]


def _create(
    workspace: Workspace,
    settings: DeploySettings,
    model: catalog.BaseModel,
    job_name: str,
    name: str,
    config_name: str,
    tags: list[dict[str, str]],
) -> tuple[str, bool]:
    """(ARN, reused): the three creations, each of which may have happened before."""
    client = workspace.aws.client("sagemaker")
    found = _describe(workspace, name)
    if found is not None:
        if found["EndpointConfigName"] != config_name or found["EndpointStatus"] in ("Failed", "Deleting"):
            raise ConflictError(
                f"The endpoint name {name!r} is taken; that endpoint is {found['EndpointStatus']}.",
                fix="run 08_cleanup to delete it, or set another endpoint_name",
            )
        client.add_tags(ResourceArn=found["EndpointArn"], Tags=[tag for tag in tags if tag["Key"] == EXPIRES_TAG])
        return str(found["EndpointArn"]), True
    role = access.execution_role(workspace.aws, settings.role_arn)
    image = images.serving_image(model.family, workspace.aws.region, settings.instance_type)
    data = workspace.paths.uri(workspace.paths.model_archive(job_name))
    _once(client.create_model, **model_request(config_name, model, image, data, role, tags))
    _once(client.create_endpoint_config, **endpoint_config_request(config_name, settings, tags))
    try:
        answer = client.create_endpoint(EndpointName=name, EndpointConfigName=config_name, Tags=tags)
    except ClientError as error:
        raise SettingsError(
            f"SageMaker refuses the endpoint: {error_message(error)}", fix="change what it names"
        ) from error
    return str(answer["EndpointArn"]), False


def _once(create: Callable[..., Any], **request: Any) -> None:
    """Create something unless it is there; its name carries the hash of what it is made of."""
    try:
        create(**request)
    except ClientError as error:
        if not (is_error(error, "ValidationException") and "already existing" in error_message(error)):
            raise SettingsError(f"SageMaker refuses: {error_message(error)}", fix="change what it names") from error


def model_request(
    name: str, model: catalog.BaseModel, image: str, model_data_url: str, role_arn: str, tags: list[dict[str, str]]
) -> dict[str, Any]:
    """The CreateModel request. Pure."""
    container = {"Image": image, "ModelDataUrl": model_data_url, "Environment": serving_environment(model)}
    return {"ModelName": name, "PrimaryContainer": container, "ExecutionRoleArn": role_arn, "Tags": tags}


def serving_environment(model: catalog.BaseModel) -> dict[str, str]:
    """What the serving image needs to know.

    vLLM's SageMaker image turns SM_VLLM_X_Y into --x-y; the archive unpacked at /opt/ml/model is the model.
    The Hugging Face inference image runs code/inference.py of the archive.
    """
    if model.family == "causal":
        return {
            "SM_VLLM_MODEL": "/opt/ml/model",
            "SM_VLLM_SERVED_MODEL_NAME": "tuned",
            "SM_VLLM_DTYPE": "bfloat16",
            "SM_VLLM_MAX_MODEL_LEN": str(min(model.context, 4096)),
            "SM_VLLM_GPU_MEMORY_UTILIZATION": "0.9",
        }
    return {
        "HF_TASK": "text2text-generation",
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
    }


def endpoint_config_request(name: str, settings: DeploySettings, tags: list[dict[str, str]]) -> dict[str, Any]:
    """The CreateEndpointConfig request. Pure."""
    request: dict[str, Any] = {
        "EndpointConfigName": name,
        "ProductionVariants": [
            {
                "VariantName": VARIANT,
                "ModelName": name,
                "InstanceType": settings.instance_type,
                "InitialInstanceCount": settings.min_instances,
                "InitialVariantWeight": 1.0,
                "ContainerStartupHealthCheckTimeoutInSeconds": STARTUP_SECONDS,
                "ModelDataDownloadTimeoutInSeconds": STARTUP_SECONDS,
            }
        ],
        "Tags": tags,
    }
    if settings.kms_key_id:
        request["KmsKeyId"] = settings.kms_key_id
    return request


def _autoscale(workspace: Workspace, settings: DeploySettings, name: str) -> str:
    """Register target tracking on invocations per instance; returns what was set, or why it could not be."""
    client = workspace.aws.client("application-autoscaling")
    target = _scaling_target(name)
    try:
        client.register_scalable_target(
            **target, MinCapacity=settings.min_instances, MaxCapacity=settings.max_instances
        )
        client.put_scaling_policy(
            **target,
            PolicyName=f"{name}-invocations",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": float(settings.invocations_per_instance),
                "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
                **_COOLDOWN_SECONDS,
            },
        )
    except (ClientError, KitError) as error:
        return f"not set: {error_code(error) or type(error).__name__}: {error_message(error)}"
    return (
        f"{settings.min_instances} to {settings.max_instances} instances at "
        f"{settings.invocations_per_instance} invocations a minute each"
    )


def _scaling_target(name: str) -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{name}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def status(workspace: Workspace, endpoint_name: str) -> EndpointStatus:
    """An endpoint now; raises NotFoundError with the endpoints there are, AccessError for another user's."""
    found = _describe(workspace, endpoint_name)
    if found is None:
        names = [item.endpoint_name for item in list_own(workspace)]
        raise NotFoundError(
            f"There is no endpoint {endpoint_name!r}.", valid=", ".join(names), fix="run 06_deploy to create it"
        )
    tags = _tags_of(workspace, found["EndpointArn"])
    access.require_same_owner(tags.get(access.OWNER_TAG, ""), workspace.user_id, f"Endpoint {endpoint_name}")
    return _status(workspace, found, tags)


def _status(workspace: Workspace, found: dict[str, Any], tags: dict[str, str]) -> EndpointStatus:
    variants = found.get("ProductionVariants", [])
    instance_type = _instance_type(workspace, found["EndpointConfigName"])
    count = sum(item.get("CurrentInstanceCount", 0) for item in variants)
    seconds = (datetime.now(UTC) - found["CreationTime"]).total_seconds()
    region = workspace.aws.region
    return EndpointStatus(
        endpoint_name=found["EndpointName"],
        status=found["EndpointStatus"],
        failure_reason=found.get("FailureReason", ""),
        instance_type=instance_type,
        instances=count,
        desired_instances=sum(item.get("DesiredInstanceCount", 0) for item in variants),
        created_at=found["CreationTime"].astimezone(UTC),
        expires_at=datetime.fromisoformat(tags[EXPIRES_TAG]) if EXPIRES_TAG in tags else None,
        usd_per_hour=costs.hourly(instance_type, region, max(1, count)),
        cost_usd=costs.running_cost(instance_type, region, seconds, max(1, count)),
        charged=workspace.aws.charged,
        owner=tags.get(access.OWNER_TAG, ""),
        job_name=tags.get("llmtuner:job", ""),
    )


def _instance_type(workspace: Workspace, config_name: str) -> str:
    try:
        config = workspace.aws.client("sagemaker").describe_endpoint_config(EndpointConfigName=config_name)
    except ClientError as error:
        if is_error(error, "ValidationException"):
            return ""  # deleted under a living endpoint, which AWS allows
        raise
    return str(config["ProductionVariants"][0].get("InstanceType", ""))


def _describe(workspace: Workspace, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = workspace.aws.client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as error:
        if is_error(error, "ValidationException", "ResourceNotFound"):
            return None
        raise
    return found


def _tags_of(workspace: Workspace, arn: str) -> dict[str, str]:
    pages = workspace.aws.client("sagemaker").get_paginator("list_tags").paginate(ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}


def watch(
    workspace: Workspace, endpoint_name: str, *, poll_seconds: float = 1.0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[EndpointStatus]:
    """Statuses until the endpoint serves or has failed. Raises JobFailedError with the server's own last lines."""
    while True:
        current = status(workspace, endpoint_name)
        yield current
        if current.done:
            break
        sleep(poll_seconds)
    if current.status == "Failed":
        lines = log_lines(workspace, endpoint_name, 12)
        trouble = troubles.recognise(current.failure_reason, lines)
        tail = "\n".join(f"  | {line}" for line in lines)
        raise JobFailedError(
            f"Endpoint {endpoint_name} failed: {current.failure_reason}"
            + (f"\nLast log lines:\n{tail}" if tail else ""),
            fix=(trouble.fix if trouble else "read the log above") + "; run 08_cleanup, then deploy again",
        )


def log_lines(workspace: Workspace, endpoint_name: str, limit: int) -> list[str]:
    """The last log lines of an endpoint's containers, oldest first."""
    client = workspace.aws.client("logs")
    group = f"{LOG_GROUP}/{endpoint_name}"
    try:
        streams = client.describe_log_streams(logGroupName=group)["logStreams"]
    except ClientError as error:
        if is_error(error, "ResourceNotFoundException"):
            return []
        raise
    events: list[dict[str, Any]] = []
    for stream in streams:
        answer = client.get_log_events(
            logGroupName=group, logStreamName=stream["logStreamName"], limit=limit, startFromHead=False
        )
        events += answer["events"]
    return [item["message"] for item in sorted(events, key=lambda item: item["timestamp"])][-limit:]


def scale(workspace: Workspace, endpoint_name: str, instances: int) -> None:
    """Set the number of instances now."""
    if not 1 <= instances <= 64:
        raise SettingsError(f"instances is {instances}.", valid="1 to 64")
    status(workspace, endpoint_name)
    workspace.aws.client("sagemaker").update_endpoint_weights_and_capacities(
        EndpointName=endpoint_name,
        DesiredWeightsAndCapacities=[{"VariantName": VARIANT, "DesiredInstanceCount": instances}],
    )


def extend(workspace: Workspace, endpoint_name: str, minutes: int) -> datetime:
    """Let an endpoint live for some more minutes from now; returns when it ends."""
    found = _describe(workspace, endpoint_name)
    if found is None:
        raise NotFoundError(f"There is no endpoint {endpoint_name!r}.")
    status(workspace, endpoint_name)
    expires = datetime.now(UTC) + timedelta(minutes=minutes)
    tag = {"Key": EXPIRES_TAG, "Value": expires.isoformat(timespec="seconds")}
    workspace.aws.client("sagemaker").add_tags(ResourceArn=found["EndpointArn"], Tags=[tag])
    return expires


def list_own(workspace: Workspace) -> list[EndpointStatus]:
    """The user's endpoints, newest first, each with its cost so far."""
    client = workspace.aws.client("sagemaker")
    found = []
    for page in client.get_paginator("list_endpoints").paginate():
        for item in page["Endpoints"]:
            tags = _tags_of(workspace, item["EndpointArn"])
            if tags.get(access.OWNER_TAG) == workspace.user_id:
                described = _describe(workspace, item["EndpointName"])
                if described:
                    found.append(_status(workspace, described, tags))
    return found


def delete_expired(workspace: Workspace) -> list[str]:
    """The guard: delete the user's endpoints that have outlived their time; their names."""
    gone = []
    for item in list_own(workspace):
        if item.expired and item.status not in BUSY:
            delete(workspace, item.endpoint_name)
            gone.append(item.endpoint_name)
    return gone


@dataclass(frozen=True)
class Deleted:
    """What a deletion removed, and what was gone already."""

    endpoint_name: str
    removed: tuple[str, ...]


def delete(workspace: Workspace, endpoint_name: str) -> Deleted:
    """Delete an endpoint, its configuration, its model entry and its scaling target. What is gone already is fine."""
    found = _describe(workspace, endpoint_name)
    if found is None:
        return Deleted(endpoint_name, ())
    status(workspace, endpoint_name)  # refuses another user's
    client = workspace.aws.client("sagemaker")
    config_name = found["EndpointConfigName"]
    removed = []
    if _gone(
        workspace.aws.client("application-autoscaling").deregister_scalable_target, **_scaling_target(endpoint_name)
    ):
        removed.append("scaling target")
    if found["EndpointStatus"] != "Deleting":
        client.delete_endpoint(EndpointName=endpoint_name)
    removed.append(f"endpoint {endpoint_name}")
    if _gone(client.delete_endpoint_config, EndpointConfigName=config_name):
        removed.append(f"endpoint configuration {config_name}")
    if _gone(client.delete_model, ModelName=config_name):
        removed.append(f"model {config_name}")
    return Deleted(endpoint_name, tuple(removed))


def _gone(call: Callable[..., Any], **names: str) -> bool:
    """Delete something; False when it was not there (or the service is not)."""
    try:
        call(**names)
    except ClientError as error:
        if is_error(
            error,
            "ValidationException",
            "ObjectNotFoundException",
            "UnknownOperationException",
            "NotImplementedException",
        ):
            return False
        raise
    return True


@dataclass(frozen=True)
class CleanUp:
    """What 08_cleanup did: lines of what was removed, and what is still kept."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]


def clean_up(workspace: Workspace, settings: CleanupSettings) -> CleanUp:
    """Delete what still costs money, and what else the settings name. Twice is once."""
    run = runs.open_run(workspace, settings.run_name)
    removed: list[str] = []
    kept: list[str] = []
    job_name = ((run.section("train") or {}).get("result") or {}).get("job_name", "")
    deployed = (run.section("deploy") or {}).get("result") or {}
    if deployed:
        name = deployed["endpoint_name"]
        if settings.delete_endpoint:
            _await_settled(workspace, name)
            removed += delete(workspace, name).removed
        elif _describe(workspace, name):
            kept.append(f"endpoint {name}, which costs {costs.usd(deployed['quote']['usd_per_hour'])} an hour")
    if job_name and settings.stop_job and training.job_status(workspace, job_name) == "InProgress":
        training.stop(workspace, job_name)
        removed.append(f"training job {job_name} (stopped)")
    prefixes = {
        "checkpoints": (settings.delete_checkpoints and job_name, job_name and workspace.paths.checkpoints(job_name)),
        "model archive": (settings.delete_model and job_name, job_name and f"{workspace.paths.models}/{job_name}/"),
        "uploads": (settings.delete_uploads, _uploads_prefix(workspace, run)),
    }
    for what, (wanted, prefix) in prefixes.items():
        if not prefix:
            continue
        count, size = _delete_prefix(workspace, prefix, really=bool(wanted))
        if count:
            (removed if wanted else kept).append(f"{what}: {count} objects, {size / 1e6:,.1f} MB")
    run.save("cleanup", settings=settings.model_dump(), result={"removed": removed, "kept": kept})
    return CleanUp(tuple(removed), tuple(kept))


def _await_settled(workspace: Workspace, name: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """An endpoint that is being created cannot be deleted; AWS asks to wait."""
    while True:
        found = _describe(workspace, name)
        if found is None or found["EndpointStatus"] not in BUSY - {"Deleting"}:
            return
        sleep(1.0)


def _uploads_prefix(workspace: Workspace, run: runs.Run) -> str:
    uploaded = (run.section("upload") or {}).get("result") or {}
    return workspace.paths.uploads(uploaded["dataset"]) if uploaded.get("dataset") else ""


def _delete_prefix(workspace: Workspace, prefix: str, *, really: bool) -> tuple[int, int]:
    """(objects, bytes) under a prefix of the user; deleted when `really`."""
    client = workspace.aws.client("s3")
    count = size = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=workspace.bucket, Prefix=prefix):
        items = page.get("Contents", [])
        count += len(items)
        size += sum(item["Size"] for item in items)
        if really and items:
            keys = [{"Key": item["Key"]} for item in items]
            client.delete_objects(Bucket=workspace.bucket, Delete={"Objects": keys, "Quiet": True})
    return count, size


def receipt(workspace: Workspace, run_name: str) -> costs.Receipt:
    """What a run has cost so far against its quotes; from AWS's own seconds."""
    run = runs.open_run(workspace, run_name)
    lines: list[costs.Line] = []
    trained = (run.section("train") or {}).get("result")
    if trained:
        lines.append(_job_line(workspace, trained))
    deployed = (run.section("deploy") or {}).get("result")
    if deployed:
        lines.append(_endpoint_line(workspace, run, deployed))
    made = costs.Receipt(run.name, tuple(lines), workspace.aws.charged)
    summary = [
        {"what": line.what, "seconds": line.seconds, "usd": line.usd, "quoted": line.quoted, "verdict": line.verdict}
        for line in lines
    ]
    kept = (run.section("cleanup") or {}).get("result") or {}
    run.save("cleanup", result=kept | {"receipt": json.loads(json.dumps(summary))})
    return made


def _job_line(workspace: Workspace, trained: dict[str, Any]) -> costs.Line:
    job = training.require_own_job(workspace, trained["job_name"])
    begin, end = job.get("TrainingStartTime"), job.get("TrainingEndTime")
    running = (datetime.now(UTC) - begin).total_seconds() if begin and not end else 0.0
    seconds = float(job.get("BillableTimeInSeconds") or running)
    resources = job["ResourceConfig"]
    amount = costs.running_cost(resources["InstanceType"], workspace.aws.region, seconds, resources["InstanceCount"])
    low, high = trained["quote"]["usd"]
    quoted = costs.Money(low, high)
    what = f"training job {trained['job_name']}"
    return costs.Line(what, resources["InstanceType"], seconds, amount, str(quoted), costs.verdict(amount, quoted))


def _endpoint_line(workspace: Workspace, run: runs.Run, deployed: dict[str, Any]) -> costs.Line:
    name = deployed["endpoint_name"]
    deployed_at = datetime.fromisoformat((run.section("deploy") or {})["at"])
    found = _describe(workspace, name)
    living = found is not None and found["EndpointStatus"] != "Deleting"
    cleaned = (run.section("cleanup") or {}).get("at")
    end = datetime.now(UTC) if living or not cleaned else datetime.fromisoformat(cleaned)
    seconds = max(0.0, (end - deployed_at).total_seconds())
    amount = costs.running_cost(deployed["instance_type"], workspace.aws.region, seconds)
    quoted = costs.Money(0.0, deployed["quote"]["usd_until_expiry"])
    what = f"endpoint {name}" + (" (still running)" if living else "")
    return costs.Line(what, deployed["instance_type"], seconds, amount, str(quoted), costs.verdict(amount, quoted))
