"""What training and processing jobs share on this side: checks of roles and input, starting and following a supervisor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtuner_local.emulator import supervisors
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError, validation
from llmtuner_local.emulator.shim import cloud, journal

TERMINAL = {"Completed", "Failed", "Stopped"}
_SERVICE = "sagemaker.amazonaws.com"


def check_role(context: Context, role: str) -> None:
    """The role must exist in this account and trust SageMaker."""
    name = role.rpartition("/")[2]
    missing = context.iam.exceptions.NoSuchEntityException
    try:
        found = context.iam.get_role(RoleName=name)["Role"] if f"::{context.account_id}:" in role else None
    except missing:
        found = None
    trust = (found or {}).get("AssumeRolePolicyDocument", {})
    if not any(_trusts(statement) for statement in _listed(trust.get("Statement", []))):
        raise validation(
            f"Could not assume role {role}. Please ensure that the role exists and allows principal '{_SERVICE}' to assume "
            "the role."
        )


def _trusts(statement: dict[str, Any]) -> bool:
    principal = statement.get("Principal", {})
    services = _listed(principal.get("Service", [])) if isinstance(principal, dict) else [principal]
    return statement.get("Effect") == "Allow" and (_SERVICE in services or "*" in services)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_objects(context: Context, uri: str, role: str, *, whole_names: bool = False) -> None:
    """Input must be there before a job is accepted. `whole_names`: the prefix must not end inside a name (FastFile)."""
    bucket, prefix = cloud.split_uri(uri)
    if whole_names and prefix and not prefix.endswith("/"):
        prefix += "/"
    client = context.s3
    reason = ""
    try:
        if client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("KeyCount"):
            return
    except client.exceptions.ClientError as error:
        reason = f" Error message from S3: {error.response['Error'].get('Message', '')}"
    raise validation(
        f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket exists in the '
        f"selected region ({context.region}), that objects exist under that S3 prefix, and that the role "
        f'"{role}" has "s3:ListBucket" permissions on bucket "{bucket}".{reason}'
    )


def must_not_exist(context: Context, kind: str, name: str, words: str) -> None:
    """A name may be used once; `words` as in "Training job"."""
    if context.store.get(kind, name):
        raise ServiceError(
            "ResourceInUse",
            f"{words} names must be unique within an AWS account and region, and a {words.lower()} with this name already "
            f"exists ({context.arn(kind, name)})",
        )


def required(path: str) -> ServiceError:
    """A member that botocore's model calls optional and the service does not."""
    return validation(
        f"1 validation error detected: Value null at '{path}' failed to satisfy constraint: Member must not be null"
    )


def launch(context: Context, module: str, folder: Path, spec: dict[str, Any]) -> None:
    """Start the supervisor of a job; `spec` says what is particular to it (`shim/job.py`)."""
    common = {
        "created": context.now(),
        "mode": context.mode,
        "hide": str(context.home),
        "localstack_url": context.localstack_url,
        "stop_seconds": context.limits.stop_seconds,
    }
    environment = supervisors.container_environment(context, spec["environment"])
    supervisors.launch(context, module, folder, "job.json", common | spec | {"environment": environment})


def follow(
    context: Context,
    kind: str,
    document: dict[str, Any],
    folder: Path,
    apply: Callable[[dict[str, Any], dict[str, Any]], None],
    lost: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Bring a job up to what its supervisor has written since.

    Args:
        apply: puts one line of the journal onto the document.
        lost: the line for a supervisor that is gone without having written its end.
    """
    was_alive = supervisors.alive(folder)  # asked before reading: what a dead one wrote is all there
    lines, offset = journal.read(folder / "journal.jsonl", document["_offset"])
    if not lines and was_alive:
        return document
    if not lines and not document["_offset"] and supervisors.launch_again(context, folder):
        return document  # the emulator was killed between taking the job and starting it
    if not lines:
        supervisors.clear(folder)
    document = dict(document, _offset=offset)
    if not lines:
        supervisors.clear_containers(folder)
    for line in lines or [{"time": context.now(), **lost()}]:
        apply(document, line)
    return context.store.put(kind, _name(document), document)


def _name(document: dict[str, Any]) -> str:
    return str(document.get("TrainingJobName") or document["ProcessingJobName"])


def command(entrypoint: list[str], arguments: list[str], image: list[str]) -> list[str]:
    """Docker's rule: an entrypoint replaces the image's, arguments follow; arguments alone replace its command."""
    return [*entrypoint, *arguments] if entrypoint else arguments or image
