"""Endpoints: deploy, watch, expire, delete.

deploy(workspace, settings)          model + endpoint configuration + endpoint
watch(workspace, name)               statuses until it serves or failed
scale(workspace, settings, endpoint) autoscaling, once it serves
delete(workspace, name)              the endpoint, its configuration, its model entry, its scaling target
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from llmtuner_kit import (
    access,
    archive_checks,
    artifacts,
    autoscaling,
    aws,
    catalog,
    costs,
    creation,
    endpoint_quotes,
    images,
    logs,
    outages,
    paths,
    runs,
    training,
    troubles,
)
from llmtuner_kit.autoscaling import scaling_target
from llmtuner_kit.aws import ClientError, error_message, is_error
from llmtuner_kit.errors import AccessError, ConflictError, JobFailedError, KitError, NotFoundError, NotReadyError
from llmtuner_kit.hosting import endpoint_config_request, model_request
from llmtuner_kit.settings import DeploySettings
from llmtuner_kit.workspace import Workspace

EXPIRES_TAG, JOB_TAG = "llmtuner:expires-at", "llmtuner:job"
LOG_GROUP = "/aws/sagemaker/Endpoints"
BUSY = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})


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

    Raises NotReadyError or NotFoundError when the job has no archive, IntegrityError when it is not the one the job
    has checked, SettingsError when it does not fit the instance, BudgetError where endpoints are charged and
    the budget does not cover the time to live, ConflictError when the name serves another model.
    """
    run = runs.open_run(workspace, settings.run_name)
    quoted = endpoint_quotes.quote(workspace, settings, run)
    settings = settings.model_copy(update={"instance_type": quoted.instance_type})
    job_name, model, until_expiry = quoted.job_name, quoted.model, quoted.usd_until_expiry
    archive = artifacts.archive_head(workspace, job_name)
    endpoint_quotes.require_fit(quoted)
    endpoint_quotes.require_budget(quoted)
    archive_checks.require_checked(workspace, training.require_own_job(workspace, job_name), archive)
    name = paths.check_name(settings.endpoint_name or paths.fit_name(job_name), "endpoint_name")
    expires = datetime.now(UTC) + timedelta(minutes=settings.time_to_live_minutes)
    own = {JOB_TAG: job_name, EXPIRES_TAG: expires.isoformat(timespec="seconds")}
    tags = access.listed_tags(access.tags(workspace.user_id, run.name) | own)
    version = f"{archive['ETag'].strip(chr(34))}-{settings.instance_type}-{settings.min_instances}"
    version += settings.subnets + settings.security_groups
    config_name = paths.fit_name(name, hashlib.sha256(version.encode()).hexdigest()[:8])
    arn, reused = _create(workspace, settings, model, job_name, name, config_name, tags)
    created = _creation_time(workspace, name)
    noted = f"{name} {created.isoformat()}"
    made = Endpoint(
        name, arn, job_name, settings.instance_type, quoted.usd_per_hour, until_expiry, expires,
        run.reload().noted("endpoints").get(noted, {}).get("autoscaling", "off"), reused, workspace.aws.charged,
    )  # fmt: skip
    result = {
        "endpoint_name": name,
        "endpoint_arn": arn,
        "endpoint_config_name": config_name,
        "model_name": config_name,
        "job_name": job_name,
        "family": model.family,
        "instance_type": settings.instance_type,
        "instances": settings.min_instances,
        "created_at": created.isoformat(),
        "expires_at": expires.isoformat(),
        "quote": {"usd_per_hour": made.usd_per_hour, "usd_until_expiry": until_expiry},
        "autoscaling": made.autoscaling,
    }
    run.note("endpoints", noted, result)  # first: it costs money from now on
    run.save("deploy", settings=settings.model_dump(), result=result)
    return made


def scale(workspace: Workspace, settings: DeploySettings, made: Endpoint) -> Endpoint:
    """Let an endpoint that serves follow its load as the settings say, or have the fewest instances and keep them."""
    if settings.max_instances > settings.min_instances:
        told = autoscaling.follow_load(workspace, settings, made.endpoint_name)
    elif made.reused:
        told = autoscaling.stay(workspace, settings, made.endpoint_name)
    else:
        return made
    run = runs.open_run(workspace, settings.run_name)
    result = run.result("deploy")
    run.save("deploy", result=result | {"autoscaling": told})
    if told != "off":  # an endpoint that was scaled once is billed by what was done then
        run.note("endpoints", f"{made.endpoint_name} {result['created_at']}", result | {"autoscaling": told})
    return replace(made, autoscaling=told)


def adopt(workspace: Workspace, run: runs.Run, name: str) -> None:
    """Note an endpoint of the run which the run does not know of: its deployment was interrupted just then."""
    found = described(workspace, name)
    if found is None or found["EndpointStatus"] == "Deleting":
        return
    created = found["CreationTime"].astimezone(UTC)
    noted, tags = f"{name} {created.isoformat()}", _tags_of(workspace, found["EndpointArn"])
    own = (tags.get(access.OWNER_TAG), tags.get(access.RUN_TAG)) == (workspace.user_id, run.name)
    if noted in run.noted("endpoints") or not own:
        return
    seen = _status(workspace, found, tags)
    expires = seen.expires_at or created
    hours = (expires - created).total_seconds() / 3600
    until_expiry = None if seen.usd_per_hour is None else seen.usd_per_hour * hours
    run.note("endpoints", noted, {
        "endpoint_name": name, "instance_type": seen.instance_type, "instances": max(1, seen.desired_instances),
        "created_at": created.isoformat(), "expires_at": expires.isoformat(), "autoscaling": "off",
        "quote": {"usd_per_hour": seen.usd_per_hour, "usd_until_expiry": until_expiry},
    })  # fmt: skip


def _creation_time(workspace: Workspace, name: str) -> datetime:
    """When AWS created the endpoint: what it is billed from, also when it is deployed a second time."""
    found = described(workspace, name)
    return found["CreationTime"].astimezone(UTC) if found else datetime.now(UTC)


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
    found = described(workspace, name)
    if found is None:
        role = access.execution_role(workspace.aws, settings.role_arn, workspace.user_id)
        image = images.serving_image(model.family, workspace.aws.region)
        data = workspace.paths.uri(workspace.paths.model_archive(job_name))
        entry = model_request(config_name, model, settings, image.uri, data, role, tags)
        creation.once(client.create_model, **entry)
        creation.once(client.create_endpoint_config, **endpoint_config_request(config_name, settings, image.ami, tags))
        made = creation.once(client.create_endpoint, EndpointName=name, EndpointConfigName=config_name, Tags=tags)
        if made:
            return str(made["EndpointArn"]), False
        found = described(workspace, name)  # by another notebook, or by this request, whose first answer was lost
    status = found["EndpointStatus"] if found else "Deleting"
    if found is None or status in ("Failed", "Deleting") or found["EndpointConfigName"] != config_name:
        raise ConflictError(
            f"The endpoint name {name!r} is taken; that endpoint is {status}.",
            fix="run 06_deploy again when it is gone, in some minutes"
            if status == "Deleting"
            else "run 08_cleanup to delete it, or set another endpoint_name",
        )
    client.add_tags(ResourceArn=found["EndpointArn"], Tags=[tag for tag in tags if tag["Key"] == EXPIRES_TAG])
    return str(found["EndpointArn"]), True


def status(workspace: Workspace, endpoint_name: str) -> EndpointStatus:
    """An endpoint now; raises NotFoundError with the endpoints there are, AccessError for another user's."""
    found = described(workspace, endpoint_name)
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
        job_name=tags.get(JOB_TAG, ""),
    )


def _instance_type(workspace: Workspace, config_name: str) -> str:
    """Empty where the configuration was deleted under a living endpoint, which AWS allows."""
    describe = workspace.aws.client("sagemaker").describe_endpoint_config
    try:
        config = aws.described(describe, EndpointConfigName=config_name)
    except AccessError:
        config = None  # where a policy goes by tags, AWS says this of what is gone
    return str(config["ProductionVariants"][0].get("InstanceType", "")) if config else ""


def described(workspace: Workspace, name: str) -> dict[str, Any] | None:
    """An endpoint as SageMaker describes it, or None."""
    return aws.described(workspace.aws.client("sagemaker").describe_endpoint, EndpointName=name)


def _tags_of(workspace: Workspace, arn: str) -> dict[str, str]:
    """None of an endpoint that is gone: it may have ended since it was listed."""
    pages = workspace.aws.client("sagemaker").get_paginator("list_tags").paginate(ResourceArn=arn)
    try:
        return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}
    except ClientError as error:
        if is_error(error, "ValidationException", "ResourceNotFound"):
            return {}
        raise


def watch(
    workspace: Workspace, endpoint_name: str, *, poll_seconds: float = 0.0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[EndpointStatus]:
    """Statuses until the endpoint serves or has failed. Raises JobFailedError with the server's own last lines.

    Args:
        poll_seconds: between two looks; 0: one second, five where they count against an account's request rates.
    """
    pause = poll_seconds or (5.0 if workspace.aws.charged else 1.0)
    while True:
        current = outages.wait_out(
            lambda: status(workspace, endpoint_name), workspace, f"endpoint {endpoint_name}", sleep=sleep
        )
        yield current
        if current.done:
            break
        sleep(pause)
    if current.status == "Failed":
        lines = _last_lines(workspace, endpoint_name)
        trouble = troubles.recognise(current.failure_reason, lines)
        tail = "\n".join(f"  | {line}" for line in lines)
        raise JobFailedError(
            f"Endpoint {endpoint_name} failed: {current.failure_reason}"
            + (f"\nLast log lines:\n{tail}" if tail else ""),
            fix=(trouble.fix if trouble else "read the log above") + "; run 08_cleanup, then deploy again",
        )


def _last_lines(workspace: Workspace, endpoint_name: str) -> list[str]:
    """What the containers said last; nothing where the user's policy does not reach an endpoint that was named by hand."""
    try:
        return logs.last_lines(workspace, f"{LOG_GROUP}/{endpoint_name}", 12)
    except AccessError:
        return []


def list_own(workspace: Workspace) -> list[EndpointStatus]:
    """The user's endpoints, newest first, each with its cost so far."""
    client = workspace.aws.client("sagemaker")
    found = []
    for page in client.get_paginator("list_endpoints").paginate():
        for item in page["Endpoints"]:
            tags = _tags_of(workspace, item["EndpointArn"])
            if tags.get(access.OWNER_TAG) == workspace.user_id:
                seen = described(workspace, item["EndpointName"])
                if seen:
                    found.append(_status(workspace, seen, tags))
    return found


def delete_expired(workspace: Workspace) -> list[str]:
    """The guard: delete the user's endpoints that have outlived their time; their names.

    One that cannot be deleted keeps no other alive. Raises NotReadyError then, when all have been tried.
    """
    gone, kept = [], []
    for item in list_own(workspace):
        if not item.expired or item.status == "Deleting":
            continue
        try:
            delete(workspace, item.endpoint_name)
            gone.append(item.endpoint_name)
        except (ClientError, KitError) as error:
            kept.append(f"{item.endpoint_name} ({item.status}): {error_message(error)}")
    if kept:
        raise NotReadyError(
            "These endpoints are over and could not be deleted, so they still cost money:\n"
            + "\n".join(kept)
            + (f"\nDeleted: {', '.join(gone)}." if gone else ""),
            fix="put right what is named and run `llmtuner guard --delete` again; "
            "AWS deletes none that it is creating or updating",
        )
    return gone


@dataclass(frozen=True)
class Deleted:
    """What a deletion removed, and what was gone already."""

    endpoint_name: str
    removed: tuple[str, ...]


def delete(workspace: Workspace, endpoint_name: str) -> Deleted:
    """Delete an endpoint, its configuration, its model entry and its scaling target. What is gone already is fine."""
    found = described(workspace, endpoint_name)
    if found is None:
        return Deleted(endpoint_name, ())
    status(workspace, endpoint_name)  # refuses another user's
    client = workspace.aws.client("sagemaker")
    config_name = found["EndpointConfigName"]
    removed = []
    if _gone(
        workspace.aws.client("application-autoscaling").deregister_scalable_target, **scaling_target(endpoint_name)
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
        if is_error(error, "ValidationException", "ObjectNotFoundException", "UnknownOperationException"):
            return False
        raise
    except AccessError:
        return False  # where a policy goes by tags, AWS says this of what is gone
    return True
