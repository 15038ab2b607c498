"""Endpoints: what stands, waiting until one serves, expiry and deletion.

watch(workspace, name)       statuses until it serves or failed
delete(workspace, name)      the endpoint, its configuration, its model entry, its scaling target
delete_expired(workspace)    the guard
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmtuner_kit import access, aws, costs, logs, outages, troubles
from llmtuner_kit.autoscaling import scaling_target
from llmtuner_kit.aws import ClientError, error_message, is_error
from llmtuner_kit.errors import AccessError, JobFailedError, KitError, NotFoundError, NotReadyError
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


def status(workspace: Workspace, endpoint_name: str) -> EndpointStatus:
    """An endpoint now; raises NotFoundError with the endpoints there are, AccessError for another user's."""
    found = described(workspace, endpoint_name)
    if found is None:
        names = [item.endpoint_name for item in list_own(workspace)]
        raise NotFoundError(
            f"There is no endpoint {endpoint_name!r}.", valid=", ".join(names), fix="run 06_deploy to create it"
        )
    tags = tags_of(workspace, found["EndpointArn"])
    access.require_same_owner(tags.get(access.OWNER_TAG, ""), workspace.user_id, f"Endpoint {endpoint_name}")
    return status_of(workspace, found, tags)


def status_of(workspace: Workspace, found: dict[str, Any], tags: dict[str, str]) -> EndpointStatus:
    """The status of an endpoint that SageMaker has described, with its tags."""
    variants = found.get("ProductionVariants", [])
    instance_type = _instance_type(workspace, found["EndpointConfigName"])
    count = sum(item.get("CurrentInstanceCount", 0) for item in variants)
    seconds = costs.elapsed_seconds(found["CreationTime"], until(found))
    region = workspace.aws.region
    return EndpointStatus(
        endpoint_name=found["EndpointName"],
        status=found["EndpointStatus"],
        failure_reason=found.get("FailureReason", ""),
        instance_type=instance_type,
        instances=count,
        desired_instances=sum(item.get("DesiredInstanceCount", 0) for item in variants),
        created_at=found["CreationTime"].astimezone(UTC),
        expires_at=_expiry(tags),
        usd_per_hour=costs.hourly(instance_type, region, max(1, count)),
        cost_usd=costs.running_cost(instance_type, region, seconds, max(1, count)),
        charged=workspace.aws.charged,
        owner=tags.get(access.OWNER_TAG, ""),
        job_name=tags.get(JOB_TAG, ""),
    )


def until(found: dict[str, Any]) -> datetime:
    """Until when a described endpoint has cost money: one that has failed has no instances any more."""
    failed_at: datetime | None = found.get("LastModifiedTime") if found["EndpointStatus"] == "Failed" else None
    return (failed_at or datetime.now(UTC)).astimezone(UTC)


def _expiry(tags: dict[str, str]) -> datetime | None:
    """When its time is over; None where nobody has said so, or with a tag that was edited into something else."""
    try:
        found = datetime.fromisoformat(tags.get(EXPIRES_TAG, ""))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


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


def tags_of(workspace: Workspace, arn: str) -> dict[str, str]:
    """The tags by this ARN; none of an endpoint that is gone, as it may have ended since it was listed."""
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
    return [status_of(workspace, found, tags) for found, tags in _own(workspace)]


def _own(workspace: Workspace) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """The user's endpoints as SageMaker describes them, newest first, with their tags."""
    for page in workspace.aws.client("sagemaker").get_paginator("list_endpoints").paginate():
        for item in page["Endpoints"]:
            tags = tags_of(workspace, item["EndpointArn"])
            if tags.get(access.OWNER_TAG) == workspace.user_id and (seen := described(workspace, item["EndpointName"])):
                yield seen, tags


def delete_expired(workspace: Workspace) -> list[str]:
    """The guard: delete the user's endpoints that have outlived their time; their names.

    One that cannot be deleted keeps no other alive, nor does a damaged price book. Raises NotReadyError for those that
    could not be deleted, when all have been tried.
    """
    gone, kept = [], []
    for found, tags in list(_own(workspace)):
        name, expires_at = found["EndpointName"], _expiry(tags)
        if expires_at is None or expires_at > datetime.now(UTC) or found["EndpointStatus"] == "Deleting":
            continue
        try:
            if f"endpoint {name}" in delete(workspace, name).removed:
                gone.append(name)
        except (ClientError, KitError) as error:
            kept.append(f"{name} ({found['EndpointStatus']}): {error_message(error)}")
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
    tags = tags_of(workspace, found["EndpointArn"]) if found else {}
    if found is None or (not tags and described(workspace, endpoint_name) is None):
        return Deleted(endpoint_name, ())
    access.require_same_owner(tags.get(access.OWNER_TAG, ""), workspace.user_id, f"Endpoint {endpoint_name}")
    client = workspace.aws.client("sagemaker")
    config_name = found["EndpointConfigName"]
    removed = []
    if _gone(
        workspace.aws.client("application-autoscaling").deregister_scalable_target, **scaling_target(endpoint_name)
    ):
        removed.append("scaling target")
    if found["EndpointStatus"] != "Deleting" and not _end(workspace, endpoint_name):
        return Deleted(endpoint_name, tuple(removed))
    removed.append(f"endpoint {endpoint_name}")
    if _gone(client.delete_endpoint_config, EndpointConfigName=config_name):
        removed.append(f"endpoint configuration {config_name}")
    if _gone(client.delete_model, ModelName=config_name):
        removed.append(f"model {config_name}")
    return Deleted(endpoint_name, tuple(removed))


def _end(workspace: Workspace, endpoint_name: str) -> bool:
    """DeleteEndpoint; False when somebody else, such as a second guard, was faster."""
    try:
        workspace.aws.client("sagemaker").delete_endpoint(EndpointName=endpoint_name)
    except (ClientError, AccessError):  # AWS says either of what is gone, by the user's policy
        found = described(workspace, endpoint_name)
        if found is None or found["EndpointStatus"] == "Deleting":
            return False
        raise
    return True


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
