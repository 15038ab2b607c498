"""Buckets are created closed, and foreign or missing ones are refused."""

from __future__ import annotations

import json
import uuid
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from llmtuner_kit import buckets
from llmtuner_kit.aws import Aws, ClientError
from llmtuner_kit.errors import AccessError, KitError, NotFoundError, NotReadyError, SettingsError
from llmtuner_kit.workspace import Workspace


def test_created_bucket_is_encrypted_private_and_tls_only(workspace: Workspace) -> None:
    name = f"closed-{uuid.uuid4().hex[:8]}"
    buckets.ensure_bucket(workspace.aws, name, may_create=True)
    client = workspace.aws.client("s3")
    rule = client.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    block = client.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    assert all(block.values())
    assert len(block) == 4
    assert json.loads(client.get_bucket_policy(Bucket=name)["Policy"]) == buckets.tls_only_policy(name)


def test_ensuring_twice_changes_nothing(workspace: Workspace) -> None:
    buckets.ensure_bucket(workspace.aws, workspace.bucket, may_create=True)
    buckets.ensure_bucket(workspace.aws, workspace.bucket, may_create=False)


def test_named_bucket_that_is_missing_is_not_created(workspace: Workspace) -> None:
    name = f"missing-{uuid.uuid4().hex[:8]}"
    with pytest.raises(NotFoundError, match=name):
        buckets.ensure_bucket(workspace.aws, name, may_create=False)
    names = {item["Name"] for item in workspace.aws.client("s3").list_buckets()["Buckets"]}
    assert name not in names


def test_the_policy_of_a_bucket_in_china_names_its_own_partition() -> None:
    (statement,) = buckets.tls_only_policy("kept", "aws-cn")["Statement"]
    assert statement["Resource"] == ["arn:aws-cn:s3:::kept", "arn:aws-cn:s3:::kept/*"]


def test_a_bucket_of_another_region_is_refused_before_anything_is_sent(workspace: Workspace) -> None:
    """SageMaker refuses its objects as a job's input, after they have been uploaded."""
    name = f"elsewhere-{uuid.uuid4().hex[:8]}"
    where = {"LocationConstraint": "eu-west-1"}
    workspace.aws.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=where)
    with pytest.raises(SettingsError, match="is in eu-west-1, and jobs in us-east-1") as caught:
        buckets.ensure_bucket(workspace.aws, name, may_create=False)
    assert "set region to 'eu-west-1'" in caught.value.fix


class Refusing:
    """An S3 that has no such bucket for us, and refuses to make one."""

    def __init__(self, head: str, create: str) -> None:
        self.codes = {"HeadBucket": head, "CreateBucket": create}

    def _refuse(self, operation: str) -> NoReturn:
        code = self.codes[operation]
        raise ClientError({"Error": {"Code": code, "Message": "why"}, "ResponseMetadata": {}}, operation)

    def head_bucket(self, **_: Any) -> NoReturn:
        self._refuse("HeadBucket")

    def create_bucket(self, **_: Any) -> NoReturn:
        self._refuse("CreateBucket")


@pytest.mark.parametrize(
    ("head", "create", "kind", "fix"),
    [
        ("404", "OperationAborted", NotReadyError, "wait a minute"),
        ("403", "", AccessError, "set bucket to one of yours"),
    ],
    ids=["being made or deleted just now", "the kit's own name is somebody else's"],
)
def test_a_bucket_that_cannot_be_made_says_what_to_do(head: str, create: str, kind: type[KitError], fix: str) -> None:
    client = Refusing(head, create)
    aws = cast(Aws, SimpleNamespace(client=lambda _: client, account_id="1", region="us-east-1"))
    with pytest.raises(kind) as caught:
        buckets.ensure_bucket(aws, "llmtuner-1-us-east-1", may_create=True)
    assert fix in caught.value.fix
