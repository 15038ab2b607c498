"""The doctor: what a run will need, found out before anything is paid for. Each finding has its fix."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from llmtuner_kit import access, base_models, catalog, costs, rehearsals
from llmtuner_kit.aws import ClientError, error_message
from llmtuner_kit.errors import KitError
from llmtuner_kit.settings import PrepareSettings
from llmtuner_kit.workspace import Workspace

# The users of SageMaker Studio, Jupyter's images, EC2's, and of containers.
_EVERYBODY = {"admin", "ec2-user", "jovyan", "me", "root", "sagemaker-user", "ubuntu", "user"}
_LARGE = 1e9  # weights

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One checked thing."""

    name: str
    level: Level
    text: str
    fix: str = ""


def check(workspace: Workspace, model: catalog.BaseModel, instance_type: str = "") -> list[Finding]:
    """Identity, user, bucket, role, quotas, price and base model, in the order a run needs them."""
    instance_type = instance_type or model.instance
    return [
        _identity(workspace),
        *_user(workspace),
        _bucket(workspace),
        _role(workspace),
        *_quotas(workspace, instance_type),
        _price(workspace, instance_type),
        _model(model),
        *_machine(workspace, model),
    ]


def _identity(workspace: Workspace) -> Finding:
    aws = workspace.aws
    where = "real AWS: jobs and endpoints are charged" if aws.charged else "the local cloud: nothing is charged"
    return Finding("identity", "ok", f"{aws.caller_arn} in {aws.region}, {where}")


def _user(workspace: Workspace) -> list[Finding]:
    """Where an account is shared, a login name that everybody has on such machines is one prefix for all of them."""
    if not workspace.aws.charged or workspace.user_id not in _EVERYBODY:
        return []
    text = f"{workspace.user_id!r} is a login name that many have: who else has it in this account shares your files and runs"
    return [Finding("user", "warning", text, "set user_id to a name of your own, here and in every later notebook")]


def _bucket(workspace: Workspace) -> Finding:
    client = workspace.aws.client("s3")
    where = f"s3://{workspace.bucket}/{workspace.paths.root}"
    try:
        client.get_bucket_encryption(Bucket=workspace.bucket)
        block = client.get_public_access_block(Bucket=workspace.bucket)["PublicAccessBlockConfiguration"]
    except (ClientError, KitError) as error:
        return Finding("bucket", "warning", f"{where}; its protection cannot be read: {error_message(error)}")
    if not all(block.values()):
        return Finding(
            "bucket", "warning", f"{where} does not block all public access", "block public access on the bucket"
        )
    return Finding("bucket", "ok", f"{where}, encrypted, closed to the public")


def _role(workspace: Workspace) -> Finding:
    try:
        return Finding("role", "ok", access.execution_role(workspace.aws, user_id=workspace.user_id))
    except KitError as error:
        return Finding("role", "problem", error.problem, error.fix)


def _quotas(workspace: Workspace, instance_type: str) -> list[Finding]:
    """Asked of Service Quotas where it answers; an account that may not ask gets a warning, not a stop.

    Without training jobs there is no run at all; endpoints and processing jobs are steps a run can do without.
    """
    if not workspace.aws.charged:
        how = "in containers on this machine" if workspace.aws.target == "local-docker" else "on this machine"
        return [Finding("quota", "ok", f"{instance_type}: rehearsed {how}")]
    processing = str(PrepareSettings.model_fields["instance_type"].default)
    wanted: dict[str, tuple[Level, str]] = {
        f"{instance_type} for training job usage": ("problem", "03_train"),
        f"{instance_type} for endpoint usage": ("warning", "06_deploy"),
        f"{processing} for processing job usage": ("warning", "02_prepare with compute processing-job"),
    }
    try:
        pages = workspace.aws.client("service-quotas").get_paginator("list_service_quotas")
        values = {
            item["QuotaName"]: item["Value"]
            for page in pages.paginate(ServiceCode="sagemaker")
            for item in page["Quotas"]
        }
    except (ClientError, KitError) as error:
        text = f"cannot be read: {error_message(error)}"
        return [Finding("quota", "warning", text, "look in Service Quotas for " + "; ".join(wanted))]
    return [_quota(name, values.get(name), *how) for name, how in wanted.items()]


def _quota(name: str, value: float | None, without: Level, step: str) -> Finding:
    if value is None:
        return Finding("quota", "warning", f"Service Quotas does not list '{name}'", f"look there before {step}")
    if value < 1:
        return Finding("quota", without, f"{name}: 0", f"ask for one '{name}' in Service Quotas before {step}")
    return Finding("quota", "ok", f"{name}: {value:.0f}")


def _price(workspace: Workspace, instance_type: str) -> Finding:
    found = costs.price(instance_type, workspace.aws.region)
    if found is None:
        text = f"{instance_type} in {workspace.aws.region}: no price in the book"
        return Finding("price", "warning", text, "run `llmtuner prices refresh`")
    return Finding("price", "ok", f"{instance_type}: {costs.priced(found)}")


def _model(model: catalog.BaseModel) -> Finding:
    if model.embedded:
        folder = catalog.base_model_folder(model.model_id)
        return Finding("base model", "ok", f"{model.title}, on this machine in {folder}")
    if model.source:
        text = f"{model.title} from {model.source}, copied to your prefix when it is first trained on"
        return Finding("base model", "ok", text)
    if model.gated:
        text = f"{model.title} is gated: licence {model.licence}"
        return Finding(
            "base model", "warning", text, "accept the licence on the Hub; set HF_TOKEN_SECRET_ARN for the job"
        )
    return Finding("base model", "ok", f"{model.title} from the Hub at {model.revision[:12]}")


def _machine(workspace: Workspace, model: catalog.BaseModel) -> list[Finding]:
    """A model for GPUs on a machine without one trains for days, if it fits: most who choose it mean another target."""
    target = workspace.aws.target
    where = rehearsals.without_gpu(target)
    if not where:
        return []
    if model.parameters < _LARGE:
        text = f"target {target} trains {where}: all methods but qlora can be rehearsed"
        return [Finding("this machine", "ok", text, "for method qlora, set target to 'aws'")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    text = (
        f"target {target} trains {model.title} {where}: its weights alone "
        f"take {2 * model.parameters / 1e9:.1f} of {memory:.1f} GB of memory, and a step takes minutes; method qlora is "
        "refused"
    )
    fix = f"to rehearse, set model_id to {base_models.DEFAULT!r}; to train this model, set target to 'aws'"
    return [Finding("this machine", "warning", text, fix)]
