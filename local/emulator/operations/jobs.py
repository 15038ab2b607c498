"""What training and processing jobs share on this side: checks of roles and input, starting and following a supervisor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtuner_local.emulator import instances, supervisors
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError, not_found, validation
from llmtuner_local.emulator.operations import tags
from llmtuner_local.emulator.shim import cloud, journal

TERMINAL = {"Completed", "Failed", "Stopped"}
_SERVICE = "sagemaker.amazonaws.com"


def check_role(context: Context, role: str) -> None:
    """The role must exist in this account and trust SageMaker."""
    if not can_assume(context, role):
        raise validation(
            f"Could not assume role {role}. Please ensure that the role exists and allows principal '{_SERVICE}' to assume "
            "the role."
        )


def can_assume(context: Context, role: str) -> bool:
    """Whether a role exists in this account and trusts SageMaker."""
    name = role.rpartition("/")[2]
    missing = context.iam.exceptions.NoSuchEntityException
    try:
        found = context.iam.get_role(RoleName=name)["Role"] if f"::{context.account_id}:" in role else None
    except missing:
        found = None
    trust = (found or {}).get("AssumeRolePolicyDocument", {})
    return any(_trusts(statement) for statement in _listed(trust.get("Statement", [])))


def _trusts(statement: dict[str, Any]) -> bool:
    principal = statement.get("Principal", {})
    services = _listed(principal.get("Service", [])) if isinstance(principal, dict) else [principal]
    return statement.get("Effect") == "Allow" and (_SERVICE in services or "*" in services)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_objects(context: Context, uri: str, role: str, *, whole_names: bool = False) -> None:
    """Input must be there before a job is accepted. `whole_names`: the prefix must not end inside a name (FastFile)."""
    bucket, prefix = cloud.split_uri(uri)
    if whole_names:
        prefix = cloud.as_folder(prefix)
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


def check_volume(instance_type: str, config: dict[str, Any]) -> None:
    """Disks that come with an instance are encrypted by its hardware: no key can be given for them."""
    if "VolumeKmsKeyId" in config and instances.has_own_disks(instance_type):
        raise validation("KMS key is not supported for NVMe instance storage.")


def required(path: str) -> ServiceError:
    """A member that botocore's model calls optional and the service does not."""
    return validation(
        f"1 validation error detected: Value null at '{path}' failed to satisfy constraint: Member must not be null"
    )


def launch(context: Context, module: str, folder: Path, spec: dict[str, Any]) -> None:
    """Start the supervisor of a job; `spec` says what is particular to it (`shim/job.py`)."""
    common = {
        "mode": context.mode,
        "hide": str(context.home),
        "localstack_url": context.localstack_url,
        "stop_seconds": context.limits.stop_seconds,
    }
    environment = supervisors.container_environment(context, spec["environment"])
    supervisors.launch(context, module, folder, "job.json", common | spec | {"environment": environment})


@dataclass(frozen=True)
class JobKind:
    """What tells one kind of jobs from the other in operations that are the same for both."""

    kind: str  # in ARNs and in the store
    words: str  # in messages
    member: str  # how the members of its documents begin: TrainingJob in TrainingJobName
    lost: dict[str, Any]  # the journal's line for a supervisor that is gone without having written its end
    apply: Callable[[dict[str, Any], dict[str, Any]], None]  # puts one line of the journal onto a document
    folder: Callable[[Context, str], Path]

    def must_not_exist(self, context: Context, name: str) -> None:
        """A name may be used once."""
        if context.store.get(self.kind, name):
            raise ServiceError(
                "ResourceInUse",
                f"{self.words.capitalize()} names must be unique within an AWS account and region, and a {self.words} with "
                f"this name already exists ({context.arn(self.kind, name)})",
            )

    def ended(self, document: dict[str, Any]) -> bool:
        return document[f"{self.member}Status"] in TERMINAL

    def refresh(self, context: Context, document: dict[str, Any]) -> dict[str, Any]:
        """Bring a job up to what its supervisor has written since."""
        if self.ended(document):
            return document
        name = document[f"{self.member}Name"]
        folder = self.folder(context, name)
        was_alive = supervisors.alive(folder)  # asked before reading: what a dead one wrote is all there
        lines, offset = journal.read(folder / "journal.jsonl", document["_offset"])
        if not lines and was_alive:
            return document
        if not lines and not document["_offset"] and supervisors.launch_again(context, folder):
            return document  # the emulator was killed between taking the job and starting it
        if not lines:
            supervisors.clear(folder)
            supervisors.clear_containers(folder)
        document = dict(document, _offset=offset)
        died = max(document["LastModifiedTime"], journal.last_sign(folder / "journal.jsonl"))  # not now, days later
        for line in lines or [{"time": died, **self.lost}]:
            self.apply(document, line)
        return context.store.put(self.kind, name, document)

    def describe(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        return self.refresh(context, self._stored(context, params, not_found()))

    def _stored(self, context: Context, params: dict[str, Any], missing: ServiceError) -> dict[str, Any]:
        document = context.store.get(self.kind, params[f"{self.member}Name"])
        if document is None:
            raise missing
        return document

    def stop(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        document = self.describe(context, params)
        name, status = document[f"{self.member}Name"], document[f"{self.member}Status"]
        if status in TERMINAL:
            raise validation(f"The request was rejected because the {self.words} is in status {status}.")
        context.store.put(self.kind, name, document | {f"{self.member}Status": "Stopping"})
        # A file, not a signal: a supervisor that is only just starting would be ended by one.
        (self.folder(context, name) / "stop").touch()
        return {}

    def delete(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        missing = ServiceError("ResourceNotFound", "Requested resource not found.")
        document = self.refresh(context, self._stored(context, params, missing))
        name, status = document[f"{self.member}Name"], document[f"{self.member}Status"]
        if status not in TERMINAL:
            raise ServiceError("ResourceInUse", f"{self.words.capitalize()} is in status {status}.")
        context.store.delete(self.kind, name)
        tags.drop(context, document[f"{self.member}Arn"])
        shutil.rmtree(self.folder(context, name), ignore_errors=True)
        return {}


def refreshed(
    context: Context,
    kind: str,
    settled: Callable[[dict[str, Any]], bool],
    refresh: Callable[[Context, dict[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Every job of a kind, oldest first; only those that can still change are looked at."""
    current = {name: refresh(context, document) for name, document in context.store.unsettled(kind, settled)}
    if not current:
        return context.store.all(kind)
    return [current.get(name, document) for name, document in context.store.items(kind)]


def command(entrypoint: list[str], arguments: list[str], image: list[str]) -> list[str]:
    """Docker's rule: an entrypoint replaces the image's, arguments follow; arguments alone replace its command."""
    return [*entrypoint, *arguments] if entrypoint else arguments or image
