"""IAM for tests: whether policies allow a call, and a local cloud that refuses the calls that AWS would refuse.

LocalStack and the emulator take every call of everybody. `as_user(workspace)` puts AWS's question before each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from llmtuner_kit import access
from llmtuner_kit.workspace import Workspace

Keys = Mapping[str, str]
_WHERE = "us-east-1:000000000000"
# What S3 calls permit by another name than the operation's.
_S3 = {
    "HeadBucket": "ListBucket", "ListObjectsV2": "ListBucket", "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListParts": "ListMultipartUploadParts", "HeadObject": "GetObject", "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject", "CompleteMultipartUpload": "PutObject", "GetBucketEncryption": "GetEncryptionConfiguration",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
}  # fmt: skip
# What SageMaker's operations are about (the longer names first), and what its ARNs call it.
_KINDS = {
    "TrainingJob": "training-job", "ProcessingJob": "processing-job", "Model": "model",
    "EndpointConfig": "endpoint-config", "Endpoint": "endpoint",
}  # fmt: skip


_call = BaseClient._make_api_call  # without the question


def allowed(policy: Mapping[str, Any], action: str, resource: str, keys: Keys | None = None) -> bool:
    """Whether a statement allows the action on the resource; `keys` are the condition keys that AWS would send."""
    return any(_allows(statement, action, resource, keys or {}) for statement in policy["Statement"])


def _allows(statement: Mapping[str, Any], action: str, resource: str, keys: Keys) -> bool:
    return (
        statement["Effect"] == "Allow"
        and any(fnmatchcase(action, pattern) for pattern in _listed(statement["Action"]))
        and any(fnmatchcase(resource, pattern) for pattern in _listed(statement["Resource"]))
        and all(
            _holds(operator, keys.get(key), _listed(wanted))
            for operator, conditions in statement.get("Condition", {}).items()
            for key, wanted in conditions.items()
        )
    )


def _holds(operator: str, value: str | None, wanted: list[str]) -> bool:
    if value is None:
        return operator.endswith("IfExists")
    if operator.startswith("StringLike"):
        return any(fnmatchcase(value, pattern) for pattern in wanted)
    assert operator.startswith("StringEquals"), operator
    return value in wanted


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@contextmanager
def as_user(workspace: Workspace) -> Iterator[set[str]]:
    """From here on the user may do what the user's policy allows, as on AWS; gives the actions that were asked for."""
    access.create_execution_role(workspace.aws, workspace.bucket, workspace.user_id)
    policy = access.user_policy(workspace.bucket, workspace.user_id, workspace.aws.account_id, workspace.aws.region)
    with enforced(policy) as asked:
        yield asked


@contextmanager
def enforced(policy: Mapping[str, Any]) -> Iterator[set[str]]:
    """Every boto3 call of this process needs the policy's permission; gives the actions that were asked for."""
    asked: set[str] = set()
    tags: dict[str, Keys] = {}

    def guarded(client: Any, operation: str, params: dict[str, Any]) -> Any:
        for action, resource, keys in _questions(client, operation, params, tags):
            asked.add(action)
            if not allowed(policy, action, resource, keys):
                service = client.meta.service_model.service_name
                code = "403" if operation.startswith("Head") else "AccessDenied"
                code = code if service in ("s3", "iam", "sts") else "AccessDeniedException"
                error = {"Code": code, "Message": f"{action} on {resource} with {keys}"}
                answer = {"HTTPStatusCode": 403, "HTTPHeaders": {"x-amz-bucket-region": "us-east-1"}}
                raise ClientError({"Error": error, "ResponseMetadata": answer}, operation)
        return _call(client, operation, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseClient, "_make_api_call", guarded)
        yield asked


def _questions(
    client: Any, operation: str, params: dict[str, Any], tags: dict[str, Keys]
) -> list[tuple[str, str, Keys]]:
    """(action, resource, condition keys) of a call, as AWS asks them; `tags` remembers those of resources by ARN."""
    service = client.meta.service_model.service_name
    if service == "s3":
        return _of_s3(operation, params)
    if service in ("sagemaker", "sagemaker-runtime"):
        return _of_sagemaker(client, operation, params, tags)
    if service == "logs":
        stream = f":log-stream:{params['logStreamName']}" if "logStreamName" in params else ":*"
        return [(f"logs:{operation}", f"arn:aws:logs:{_WHERE}:log-group:{params['logGroupName']}{stream}", {})]
    if service == "iam":
        return [(f"iam:{operation}", f"arn:aws:iam::000000000000:role/{params['RoleName']}", {})]
    if service == "sts":
        return []  # everybody may ask who they are
    assert service == "application-autoscaling", service
    keys = {"application-autoscaling:service-namespace": params["ServiceNamespace"]}
    return [(f"application-autoscaling:{operation}", "*", keys)]


def _of_s3(operation: str, params: dict[str, Any]) -> list[tuple[str, str, Keys]]:
    bucket = f"arn:aws:s3:::{params['Bucket']}"
    if operation == "DeleteObjects":
        return [("s3:DeleteObject", f"{bucket}/{item['Key']}", {}) for item in params["Delete"]["Objects"]]
    if operation == "CopyObject":
        source = params["CopySource"]
        return [("s3:GetObject", f"arn:aws:s3:::{source['Bucket']}/{source['Key']}", {}),
                ("s3:PutObject", f"{bucket}/{params['Key']}", {})]  # fmt: skip
    action = f"s3:{_S3.get(operation, operation)}"
    if "Key" in params:
        return [(action, f"{bucket}/{params['Key']}", {})]
    return [(action, bucket, {"s3:prefix": params["Prefix"]} if operation == "ListObjectsV2" else {})]


def _of_sagemaker(
    client: Any, operation: str, params: dict[str, Any], tags: dict[str, Keys]
) -> list[tuple[str, str, Keys]]:
    action = f"sagemaker:{operation}"
    if operation == "ListEndpoints":
        return [(action, "*", {})]
    arn = params.get("ResourceArn", "")
    if not arn:
        noun = next(name for name in _KINDS if name in operation)
        arn = f"arn:aws:sagemaker:{_WHERE}:{_KINDS[noun]}/{params[f'{noun}Name'].lower()}"
    given = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in params.get("Tags", [])}
    if operation.startswith("Create"):
        questions: list[tuple[str, str, Keys]] = [(action, arn, given)]
        questions.append(("sagemaker:AddTags", arn, given | {"sagemaker:TaggingAction": operation}))
        if role := params.get("RoleArn") or params.get("ExecutionRoleArn"):
            questions.append(("iam:PassRole", role, {"iam:PassedToService": "sagemaker.amazonaws.com"}))
        return questions
    if client.meta.service_model.service_name == "sagemaker":
        tags[arn] = _tags(client, arn)
    return [(action, arn, given | tags.get(arn, {}))]


def _tags(client: Any, arn: str) -> Keys:
    """The tags that the resource has; none where there is no such resource."""
    try:
        found = _call(client, "ListTags", {"ResourceArn": arn})["Tags"]
    except ClientError:
        return {}
    return {f"aws:ResourceTag/{tag['Key']}": tag["Value"] for tag in found}
