"""Who may do what: policies per user and for the execution role, as documents that can be read and tested.

A user reaches `users/{user_id}/` of the bucket and the SageMaker resources tagged with that owner, nothing else.
"""

from __future__ import annotations

import json
from typing import Any

from llmtuner_kit.aws import Aws, ClientError, is_error
from llmtuner_kit.errors import AccessError, NotFoundError

ROLE_NAME = "llmtuner-execution"
OWNER_TAG = "llmtuner:owner"


def user_policy(bucket: str, user_id: str, account_id: str, region: str) -> dict[str, Any]:
    """The policy of one user of the kit: own prefix, own jobs and endpoints, nobody else's."""
    sagemaker = f"arn:aws:sagemaker:{region}:{account_id}"
    owned = {"StringEquals": {f"aws:ResourceTag/{OWNER_TAG}": user_id}}
    tagged = {"StringEquals": {f"aws:RequestTag/{OWNER_TAG}": user_id}}
    kinds = ("training-job", "model", "endpoint", "endpoint-config")
    arns = [f"{sagemaker}:{kind}/*" for kind in kinds]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OwnObjects",
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
                "Resource": f"arn:aws:s3:::{bucket}/users/{user_id}/*",
            },
            {
                "Sid": "OwnListing",
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": f"arn:aws:s3:::{bucket}",
                "Condition": {"StringLike": {"s3:prefix": [f"users/{user_id}/*"]}},
            },
            {
                "Sid": "CreateTaggedAsOwn",
                "Effect": "Allow",
                "Action": [
                    "sagemaker:CreateTrainingJob",
                    "sagemaker:CreateModel",
                    "sagemaker:CreateEndpointConfig",
                    "sagemaker:CreateEndpoint",
                    "sagemaker:AddTags",
                ],
                "Resource": arns,
                "Condition": tagged,
            },
            {
                "Sid": "UseOwn",
                "Effect": "Allow",
                "Action": [
                    "sagemaker:DescribeTrainingJob",
                    "sagemaker:StopTrainingJob",
                    "sagemaker:DescribeModel",
                    "sagemaker:DeleteModel",
                    "sagemaker:DescribeEndpointConfig",
                    "sagemaker:DeleteEndpointConfig",
                    "sagemaker:DescribeEndpoint",
                    "sagemaker:UpdateEndpoint",
                    "sagemaker:UpdateEndpointWeightsAndCapacities",
                    "sagemaker:DeleteEndpoint",
                    "sagemaker:InvokeEndpoint",
                    "sagemaker:InvokeEndpointWithResponseStream",
                    "sagemaker:ListTags",
                ],
                "Resource": arns,
                "Condition": owned,
            },
            {
                "Sid": "ReadLogsAndMetrics",
                "Effect": "Allow",
                "Action": ["logs:DescribeLogStreams", "logs:GetLogEvents", "logs:FilterLogEvents"],
                "Resource": f"arn:aws:logs:{region}:{account_id}:log-group:/aws/sagemaker/*",
            },
            {
                "Sid": "Autoscaling",
                "Effect": "Allow",
                "Action": [
                    "application-autoscaling:RegisterScalableTarget",
                    "application-autoscaling:DeregisterScalableTarget",
                    "application-autoscaling:DescribeScalableTargets",
                    "application-autoscaling:PutScalingPolicy",
                    "application-autoscaling:DescribeScalingPolicies",
                ],
                "Resource": f"arn:aws:application-autoscaling:{region}:{account_id}:scalable-target/*",
            },
            {
                "Sid": "PassTheRole",
                "Effect": "Allow",
                "Action": "iam:PassRole",
                "Resource": f"arn:aws:iam::{account_id}:role/{ROLE_NAME}",
                "Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
            },
            {"Sid": "FindTheRole", "Effect": "Allow", "Action": "iam:GetRole", "Resource": f"arn:aws:iam::{account_id}:role/{ROLE_NAME}"},
        ],
    }  # fmt: skip


def execution_role_policy(bucket: str, account_id: str, region: str) -> dict[str, Any]:
    """What a job or an endpoint of the kit may do: the kit's prefixes, its own logs and metrics, pulling images."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "Objects",
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
                "Resource": f"arn:aws:s3:::{bucket}/users/*",
            },
            {
                "Sid": "Listing",
                "Effect": "Allow",
                "Action": ["s3:ListBucket", "s3:GetBucketLocation"],
                "Resource": f"arn:aws:s3:::{bucket}",
            },
            {
                "Sid": "Logs",
                "Effect": "Allow",
                "Action": ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
                "Resource": f"arn:aws:logs:{region}:{account_id}:log-group:/aws/sagemaker/*",
            },
            {
                "Sid": "Metrics",
                "Effect": "Allow",
                "Action": "cloudwatch:PutMetricData",
                "Resource": "*",
                "Condition": {
                    "StringEquals": {"cloudwatch:namespace": ["/aws/sagemaker/TrainingJobs", "/aws/sagemaker/Endpoints", "AWS/SageMaker"]}
                },
            },
            {
                "Sid": "Images",
                "Effect": "Allow",
                "Action": ["ecr:GetAuthorizationToken", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"],
                "Resource": "*",
            },
            {
                "Sid": "ModelToken",
                "Effect": "Allow",
                "Action": "secretsmanager:GetSecretValue",
                "Resource": f"arn:aws:secretsmanager:{region}:{account_id}:secret:llmtuner/*",
            },
        ],
    }  # fmt: skip


def trust_policy() -> dict[str, Any]:
    """Only SageMaker may take the execution role."""
    principal = {"Service": "sagemaker.amazonaws.com"}
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}],
    }


def execution_role(aws: Aws, role_arn: str = "") -> str:
    """The ARN given, else the account's role llmtuner-execution; raises NotFoundError with the command that makes it."""
    if role_arn:
        return role_arn
    client = aws.client("iam")
    try:
        return str(client.get_role(RoleName=ROLE_NAME)["Role"]["Arn"])
    except ClientError as error:
        if is_error(error, "NoSuchEntity"):
            raise NotFoundError(
                f"Account {aws.account_id} has no role {ROLE_NAME!r} for SageMaker.",
                fix="run `llmtuner access role --create`, or set role_arn to a role that trusts sagemaker.amazonaws.com",
            ) from None
        raise


def create_execution_role(aws: Aws, bucket: str) -> str:
    """Make (or bring up to date) the account's execution role; its ARN."""
    client = aws.client("iam")
    try:
        arn = client.create_role(
            RoleName=ROLE_NAME,
            AssumeRolePolicyDocument=json.dumps(trust_policy()),
            Description="What jobs and endpoints of llmtuner_kit may do",
        )["Role"]["Arn"]
    except ClientError as error:
        if not is_error(error, "EntityAlreadyExists"):
            raise
        arn = client.get_role(RoleName=ROLE_NAME)["Role"]["Arn"]
    client.put_role_policy(
        RoleName=ROLE_NAME,
        PolicyName="llmtuner",
        PolicyDocument=json.dumps(execution_role_policy(bucket, aws.account_id, aws.region)),
    )
    return str(arn)


def sentences(policy: dict[str, Any]) -> list[str]:
    """A policy in words, one line a statement."""
    lines = []
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        where = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        condition = f" when {json.dumps(statement['Condition'])}" if "Condition" in statement else ""
        lines.append(f"{statement['Effect']} {', '.join(actions)} on {', '.join(where)}{condition}")
    return lines


def require_same_owner(owner: str, user_id: str, what: str) -> None:
    """Raises AccessError when a tagged resource belongs to another user."""
    if owner and owner != user_id:
        raise AccessError(f"{what} belongs to user {owner!r}; you are {user_id!r}.", fix="name one of your own")
