"""Deployments: a finished job's model -> an endpoint of its run, scaled by its load.

deploy(workspace, settings)          model + endpoint configuration + endpoint
scale(workspace, settings, endpoint) autoscaling, once it serves
adopt(workspace, run, name)          an endpoint whose deployment was interrupted
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from llmtuner_kit import (
    access,
    archive_checks,
    artifacts,
    autoscaling,
    catalog,
    creation,
    endpoint_quotes,
    images,
    paths,
    runs,
    training,
)
from llmtuner_kit.endpoints import EXPIRES_TAG, JOB_TAG, described, status_of, tags_of
from llmtuner_kit.errors import ConflictError
from llmtuner_kit.hosting import endpoint_config_request, model_request
from llmtuner_kit.settings import DeploySettings
from llmtuner_kit.workspace import Workspace


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
    noted, tags = f"{name} {created.isoformat()}", tags_of(workspace, found["EndpointArn"])
    own = (tags.get(access.OWNER_TAG), tags.get(access.RUN_TAG)) == (workspace.user_id, run.name)
    if noted in run.noted("endpoints") or not own:
        return
    seen = status_of(workspace, found, tags)
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
