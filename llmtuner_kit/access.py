"""Who may do what: policies per user and for execution roles, as documents that can be read and tested.

A user reaches `users/{user_id}/` of the bucket, the SageMaker resources tagged with that owner, the logs of jobs and
endpoints whose name ends with the user's mark, and nothing of anybody else. What a job does, it does as its execution
role; so where several people share a bucket each has a role of their own that reaches their prefix only (otherwise a
job could be asked to read a neighbour's data).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from llmtuner_kit import paths
from llmtuner_kit.aws import Aws, ClientError, is_error
from llmtuner_kit.errors import AccessError, NotFoundError

ROLE_NAME = "llmtuner-execution"
OWNER_TAG = "llmtuner:owner"
_LONGEST_ROLE_NAME = 64
_CREATIONS = ("CreateTrainingJob", "CreateProcessingJob", "CreateModel", "CreateEndpointConfig", "CreateEndpoint")
_KINDS = ("training-job", "processing-job", "model", "endpoint", "endpoint-config")

Policy = dict[str, Any]


def user_mark(user_id: str) -> str:
    """Eight hex digits that end the names of a user's jobs: what a policy on log streams can hold on to."""
    return hashlib.sha256(user_id.encode()).hexdigest()[:8]


def role_name(user_id: str = "") -> str:
    """The name of the shared execution role, or of one user's own."""
    name = f"{ROLE_NAME}-{user_id}" if user_id else ROLE_NAME
    if len(name) <= _LONGEST_ROLE_NAME:
        return name
    return paths.fit_name(name, user_mark(user_id), limit=_LONGEST_ROLE_NAME)


def user_policy(bucket: str, user_id: str, account_id: str, region: str) -> Policy:
    """The policy of one user of the kit: own prefix, own jobs and endpoints, own logs, nobody else's."""
    paths.check_label(user_id, "user_id")
    sagemaker = f"arn:aws:sagemaker:{region}:{account_id}"
    logs = f"arn:aws:logs:{region}:{account_id}:log-group:/aws/sagemaker"
    role = f"arn:aws:iam::{account_id}:role"
    mark = user_mark(user_id)
    own = {f"aws:ResourceTag/{OWNER_TAG}": user_id}
    request = {f"aws:RequestTag/{OWNER_TAG}": user_id}
    arns = [f"{sagemaker}:{kind}/*" for kind in _KINDS]
    statements = [
        _allow("OwnObjects", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
               f"arn:aws:s3:::{bucket}/users/{user_id}/*"),
        _allow("OwnListing", ["s3:ListBucket"], f"arn:aws:s3:::{bucket}",
               {"StringLike": {"s3:prefix": [f"users/{user_id}/*"]}}),
        _allow("HowTheBucketIsProtected",
               ["s3:GetEncryptionConfiguration", "s3:GetBucketPublicAccessBlock", "s3:GetBucketLocation"],
               f"arn:aws:s3:::{bucket}"),
        _allow("CreateAsOwn", [f"sagemaker:{name}" for name in _CREATIONS], arns, {"StringEquals": request}),
        # Tags at creation only: with a plain AddTags a user could make somebody else's endpoint their own.
        _allow("TagWhatIsCreated", ["sagemaker:AddTags"], arns,
               {"StringEquals": {**request, "sagemaker:TaggingAction": list(_CREATIONS)}}),
        _allow("TagOwn", ["sagemaker:AddTags"], arns,
               {"StringEquals": own, "StringEqualsIfExists": request}),
        _allow("UseOwn", [
            "sagemaker:DescribeTrainingJob", "sagemaker:StopTrainingJob",
            "sagemaker:DescribeProcessingJob", "sagemaker:StopProcessingJob", "sagemaker:DescribeModel", "sagemaker:DeleteModel", "sagemaker:DescribeEndpointConfig", "sagemaker:DeleteEndpointConfig",
            "sagemaker:DescribeEndpoint", "sagemaker:UpdateEndpoint", "sagemaker:UpdateEndpointWeightsAndCapacities",
            "sagemaker:DeleteEndpoint", "sagemaker:InvokeEndpoint", "sagemaker:InvokeEndpointWithResponseStream",
            "sagemaker:ListTags",
        ], arns, {"StringEquals": own}),
        # Opens the OpenAI-compatible path; what it may invoke is still decided by InvokeEndpoint above.
        _allow("BearerToken", ["sagemaker:CallWithBearerToken"], "*"),
        _allow("OwnLogs", ["logs:DescribeLogStreams"], [f"{logs}/TrainingJobs:*", f"{logs}/ProcessingJobs:*", f"{logs}/Endpoints/*-{mark}:*"]),
        _allow("OwnLogLines", ["logs:GetLogEvents"], [
            f"{logs}/TrainingJobs:log-stream:*-{mark}/*", f"{logs}/ProcessingJobs:log-stream:*-{mark}/*",
            f"{logs}/Endpoints/*-{mark}:log-stream:*",
        ]),
        _allow("Autoscaling", [
            f"application-autoscaling:{name}" for name in (
                "RegisterScalableTarget", "DeregisterScalableTarget", "DescribeScalableTargets", "PutScalingPolicy",
                "DescribeScalingPolicies",
                "DescribeScalingActivities",
            )
        ], "*", {"StringEqualsIfExists": {"application-autoscaling:service-namespace": "sagemaker"}}),
        _allow("NumbersOnly", ["cloudwatch:GetMetricStatistics", "servicequotas:ListServiceQuotas", "pricing:GetProducts"], "*"),
        _allow("PassOwnRole", ["iam:PassRole"], f"{role}/{role_name(user_id)}",
               {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}),
        _allow("FindTheRole", ["iam:GetRole"], [f"{role}/{role_name(user_id)}", f"{role}/{ROLE_NAME}"]),
    ]  # fmt: skip
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(
    sid: str, actions: list[str], resources: str | list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    statement: dict[str, Any] = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | {"Condition": condition} if condition else statement


def execution_role_policy(bucket: str, account_id: str, region: str, user_id: str = "") -> Policy:
    """What a job or an endpoint may do: the kit's prefixes (or one user's), own logs and metrics, pulling images."""
    prefix = f"users/{user_id}/" if user_id else "users/"
    logs = f"arn:aws:logs:{region}:{account_id}:log-group:/aws/sagemaker/*"
    secret = f"arn:aws:secretsmanager:{region}:{account_id}:secret:llmtuner/{user_id + '/' if user_id else ''}*"
    spaces = [
        "/aws/sagemaker/TrainingJobs",
        "/aws/sagemaker/ProcessingJobs",
        "/aws/sagemaker/Endpoints",
        "AWS/SageMaker",
    ]
    statements = [
        _allow("Objects", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
               f"arn:aws:s3:::{bucket}/{prefix}*"),
        _allow("Listing", ["s3:ListBucket"], f"arn:aws:s3:::{bucket}", {"StringLike": {"s3:prefix": [f"{prefix}*"]}}),
        _allow("Location", ["s3:GetBucketLocation"], f"arn:aws:s3:::{bucket}"),
        _allow("Logs", [f"logs:{name}" for name in (
            "CreateLogGroup", "CreateLogStream", "PutLogEvents", "DescribeLogStreams",
        )], logs),
        _allow("Metrics", ["cloudwatch:PutMetricData"], "*", {"StringEquals": {"cloudwatch:namespace": spaces}}),
        _allow("Images", [f"ecr:{name}" for name in (
            "GetAuthorizationToken", "BatchGetImage", "GetDownloadUrlForLayer", "BatchCheckLayerAvailability",
        )], "*"),
        _allow("ModelToken", ["secretsmanager:GetSecretValue"], secret),
    ]  # fmt: skip
    return {"Version": "2012-10-17", "Statement": statements}


def trust_policy(account_id: str = "") -> Policy:
    """Only SageMaker may take an execution role, and only for this account when it is given."""
    principal = {"Service": "sagemaker.amazonaws.com"}
    statement: dict[str, Any] = {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}
    if account_id:
        statement["Condition"] = {"StringEquals": {"aws:SourceAccount": account_id}}
    return {"Version": "2012-10-17", "Statement": [statement]}


def execution_role(aws: Aws, role_arn: str = "", user_id: str = "") -> str:
    """The ARN given, else the user's own role, else the shared one; raises NotFoundError with the command for it."""
    if role_arn:
        return role_arn
    for name in dict.fromkeys((role_name(user_id), ROLE_NAME)):
        found = _role_arn(aws, name)
        if found:
            return found
    raise NotFoundError(
        f"Account {aws.account_id} has no role {ROLE_NAME!r} for SageMaker.",
        fix="run `llmtuner access role --create`, or set role_arn to a role that trusts sagemaker.amazonaws.com",
    )


def _role_arn(aws: Aws, name: str) -> str:
    try:
        return str(aws.client("iam").get_role(RoleName=name)["Role"]["Arn"])
    except ClientError as error:
        if is_error(error, "NoSuchEntity"):
            return ""
        raise


def create_execution_role(aws: Aws, bucket: str, user_id: str = "") -> str:
    """Make (or bring up to date) the shared execution role, or one user's own; its ARN."""
    client = aws.client("iam")
    name = role_name(user_id)
    arn = _role_arn(aws, name)
    if not arn:
        whose = f"of user {user_id}" if user_id else "of llmtuner_kit"
        arn = client.create_role(
            RoleName=name,
            AssumeRolePolicyDocument=json.dumps(trust_policy(aws.account_id)),
            Description=f"What jobs and endpoints {whose} may do",
        )["Role"]["Arn"]
    client.put_role_policy(
        RoleName=name,
        PolicyName="llmtuner",
        PolicyDocument=json.dumps(execution_role_policy(bucket, aws.account_id, aws.region, user_id)),
    )
    return str(arn)


def sentences(policy: Policy) -> list[str]:
    """A policy in words, one line a statement."""
    return [_sentence(statement) for statement in policy["Statement"]]


def _sentence(statement: dict[str, Any]) -> str:
    actions, where = _listed(statement["Action"]), _listed(statement["Resource"])
    verb = {"Allow": "May", "Deny": "May not"}[statement["Effect"]]
    conditions = [
        f"{key} {_OPERATORS.get(operator, operator)} {' or '.join(_listed(value))}"
        for operator, keys in statement.get("Condition", {}).items()
        for key, value in keys.items()
    ]
    when = f", when {' and '.join(conditions)}" if conditions else ""
    everywhere = "anything" if where == ["*"] else ", ".join(where)
    return f"{verb} {', '.join(actions)} on {everywhere}{when}."


_OPERATORS = {
    "StringEquals": "is",
    "StringEqualsIfExists": "is, where it is given,",
    "StringLike": "is like",
    "Bool": "is",
}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def require_same_owner(owner: str, user_id: str, what: str) -> None:
    """Raises AccessError when a tagged resource belongs to another user, or to nobody the kit knows."""
    if owner != user_id:
        whose = f"belongs to user {owner!r}" if owner else "was not made by this kit"
        raise AccessError(f"{what} {whose}; you are {user_id!r}.", fix="name one of your own")
