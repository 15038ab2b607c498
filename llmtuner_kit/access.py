"""Who may do what: policies per user and for execution roles, as documents that can be read and tested.

A user reaches `users/{user_id}/` of the bucket, the SageMaker resources tagged with that owner, and the logs of jobs and
endpoints whose name ends with the user's mark. Of others' endpoints can be seen that they are there and whose they are,
of anything else nothing. What a job does, it does as its execution role; so where several people share a bucket each has
a role of their own that reaches their prefix only (otherwise a job could be asked to read a neighbour's data).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import llmtuner_kit
from llmtuner_kit import paths
from llmtuner_kit.aws import Aws, ClientError, is_error
from llmtuner_kit.errors import AccessError, NotFoundError

ROLE_NAME = "llmtuner-execution"
OWNER_TAG, RUN_TAG = "llmtuner:owner", "llmtuner:run"
SECRETS = "llmtuner/"  # how the names of secrets begin that an execution role may read
_LONGEST_ROLE_NAME = 64
_CREATIONS = ("CreateTrainingJob", "CreateProcessingJob", "CreateModel", "CreateEndpointConfig", "CreateEndpoint")
# What SageMaker does as the role of a job or a model that runs in a VPC.
_IN_A_VPC = (
    "CreateNetworkInterface", "CreateNetworkInterfacePermission", "DeleteNetworkInterface",
    "DeleteNetworkInterfacePermission", "DescribeNetworkInterfaces", "DescribeVpcs", "DescribeDhcpOptions",
    "DescribeSubnets", "DescribeSecurityGroups",
)  # fmt: skip
_OBJECTS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
_SCALING = "sagemaker.application-autoscaling.amazonaws.com"

Policy = dict[str, Any]


def user_mark(user_id: str) -> str:
    """Eight hex digits that end the names of a user's jobs: what a policy on log streams can hold on to."""
    return hashlib.sha256(user_id.encode()).hexdigest()[:8]


def tags(user_id: str, run_name: str) -> dict[str, str]:
    """What every job and endpoint of a run is tagged with."""
    return {OWNER_TAG: user_id, RUN_TAG: run_name, "llmtuner:kit-version": llmtuner_kit.__version__}


def listed_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as AWS's requests take them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def role_name(user_id: str = "") -> str:
    """The name of the shared execution role, or of one user's own."""
    name = f"{ROLE_NAME}-{user_id}" if user_id else ROLE_NAME
    if len(name) <= _LONGEST_ROLE_NAME:
        return name
    return paths.fit_name(name, user_mark(user_id), limit=_LONGEST_ROLE_NAME)


def user_policy(bucket: str, user_id: str, account_id: str, region: str, partition: str = "aws") -> Policy:
    """The policy of one user of the kit: own prefix, own jobs and endpoints, own logs, nobody else's."""
    paths.check_label(user_id, "user_id")
    place = f"{region}:{account_id}"
    objects, sagemaker = f"arn:{partition}:s3:::{bucket}", f"arn:{partition}:sagemaker:{place}"
    logs = f"arn:{partition}:logs:{place}:log-group:/aws/sagemaker"
    role = f"arn:{partition}:iam::{account_id}:role"
    mark = user_mark(user_id)
    own = {f"aws:ResourceTag/{OWNER_TAG}": user_id}
    request = {f"aws:RequestTag/{OWNER_TAG}": user_id}
    listed = {"s3:prefix": [f"users/{user_id}/*"]}
    statements = [
        _allow("OwnObjects", [*_OBJECTS, "s3:ListMultipartUploadParts"], f"{objects}/users/{user_id}/*"),
        _allow("OwnListing", ["s3:ListBucket"], objects, {"StringLike": listed}),
        # S3 does not tell which prefix is asked for: the names of others' unfinished uploads can be seen.
        _allow("UnfinishedUploads", ["s3:ListBucketMultipartUploads"], objects, {"StringLikeIfExists": listed}),
        _allow("BucketProtection", ["s3:GetEncryptionConfiguration", "s3:GetBucketPublicAccessBlock"], objects),
        _encrypted_objects(account_id, region, partition),
        _allow("CreateAsOwn", [f"sagemaker:{name}" for name in _CREATIONS], f"{sagemaker}:*", {"StringEquals": request}),
        # Tags at creation only: with a plain AddTags a user could make somebody else's endpoint their own.
        _allow("TagWhatIsCreated", ["sagemaker:AddTags"], f"{sagemaker}:*",
               {"StringEquals": {**request, "sagemaker:TaggingAction": list(_CREATIONS)}}),
        _allow("TagOwn", ["sagemaker:AddTags"], f"{sagemaker}:*",
               {"StringEquals": own, "StringEqualsIfExists": request}),
        _allow("UseOwn", [f"sagemaker:{name}" for name in (
            "DescribeTrainingJob", "StopTrainingJob", "DescribeProcessingJob", "StopProcessingJob", "DeleteModel",
            "DescribeEndpointConfig", "DeleteEndpointConfig", "DescribeEndpoint", "UpdateEndpointWeightsAndCapacities",
            "DeleteEndpoint", "InvokeEndpoint*", "ListTags",
        )], f"{sagemaker}:*", {"StringEquals": own}),
        # What does not exist has no tag, and AWS would deny even to say so: the mark in the name lets the kit ask.
        _allow("IsTheNameTaken", ["sagemaker:DescribeTrainingJob", "sagemaker:DescribeProcessingJob"],
               [f"{sagemaker}:training-job/*-{mark}", f"{sagemaker}:processing-job/*-{mark}"]),
        # Which endpoints there are, and whose. The bearer token opens the OpenAI-compatible path; what may be invoked on
        # it is still decided by InvokeEndpoint above.
        _allow("AccountWide", [
            "sagemaker:ListEndpoints", "sagemaker:CallWithBearerToken", "servicequotas:ListServiceQuotas", "pricing:GetProducts",
        ], "*"),
        _allow("WhoseEndpoints", ["sagemaker:DescribeEndpoint", "sagemaker:ListTags"], f"{sagemaker}:endpoint/*"),
        _allow("OwnLogs", ["logs:DescribeLogStreams"],
               [f"{logs}/TrainingJobs:*", f"{logs}/ProcessingJobs:*", f"{logs}/Endpoints/*-{mark}:*"]),
        _allow("OwnLogLines", ["logs:GetLogEvents"], [
            f"{logs}/TrainingJobs:log-stream:*-{mark}/*", f"{logs}/ProcessingJobs:log-stream:*-{mark}/*",
            f"{logs}/Endpoints/*-{mark}:log-stream:*",
        ]),
        _allow("Autoscaling", [f"application-autoscaling:{name}" for name in (
            "RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy", "DescribeScalingActivities",
        )], "*", {"StringEqualsIfExists": {"application-autoscaling:service-namespace": "sagemaker"}}),
        # A scaling policy makes its alarms in the name of whoever sets it; the first one also makes the service's role.
        _allow("ScalingAlarms", [f"cloudwatch:{name}" for name in ("PutMetricAlarm", "DescribeAlarms", "DeleteAlarms")],
               f"arn:{partition}:cloudwatch:{place}:alarm:TargetTracking-endpoint/*"),
        _allow("ScalingRole", ["iam:CreateServiceLinkedRole"], f"{role}/aws-service-role/{_SCALING}/*",
               {"StringEquals": {"iam:AWSServiceName": _SCALING}}),
        _allow("PassOwnRole", ["iam:PassRole"], f"{role}/{role_name(user_id)}",
               {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}),
        _allow("FindTheRole", ["iam:GetRole"], [f"{role}/{role_name(user_id)}", f"{role}/{ROLE_NAME}"]),
    ]  # fmt: skip
    return {"Version": "2012-10-17", "Statement": statements}


def _encrypted_objects(account_id: str, region: str, partition: str) -> dict[str, Any]:
    """Objects under a KMS key of the account: through S3 only, where the key's own policy leaves it to IAM."""
    suffix = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
    return _allow(
        "EncryptedObjects",
        ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"],
        f"arn:{partition}:kms:{region}:{account_id}:key/*",
        {"StringEquals": {"kms:ViaService": f"s3.{region}.{suffix}"}},
    )


def _allow(
    sid: str, actions: list[str], resources: str | list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    statement: dict[str, Any] = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | {"Condition": condition} if condition else statement


def execution_role_policy(
    bucket: str, account_id: str, region: str, user_id: str = "", partition: str = "aws", *, vpc: bool = False
) -> Policy:
    """What a job or an endpoint may do: the kit's prefixes (or one user's), own logs and metrics, pulling images.

    With `vpc` also to join a VPC of the account, for which SageMaker makes network interfaces as this role.
    """
    prefix = f"users/{user_id}/" if user_id else "users/"
    objects, place = f"arn:{partition}:s3:::{bucket}", f"{region}:{account_id}"
    logs = f"arn:{partition}:logs:{place}:log-group:/aws/sagemaker/*"
    secret = f"arn:{partition}:secretsmanager:{place}:secret:{SECRETS}{user_id + '/' if user_id else ''}*"
    spaces = [
        "/aws/sagemaker/TrainingJobs",
        "/aws/sagemaker/ProcessingJobs",
        "/aws/sagemaker/Endpoints",
        "AWS/SageMaker",
    ]
    statements = [
        _allow("Objects", list(_OBJECTS), f"{objects}/{prefix}*"),
        _allow("Listing", ["s3:ListBucket"], objects, {"StringLike": {"s3:prefix": [f"{prefix}*"]}}),
        _allow("Location", ["s3:GetBucketLocation"], objects),
        _encrypted_objects(account_id, region, partition),
        _allow("Logs", [f"logs:{name}" for name in (
            "CreateLogGroup", "CreateLogStream", "PutLogEvents", "DescribeLogStreams",
        )], logs),
        _allow("Metrics", ["cloudwatch:PutMetricData"], "*", {"StringEquals": {"cloudwatch:namespace": spaces}}),
        _allow("Images", [f"ecr:{name}" for name in (
            "GetAuthorizationToken", "BatchGetImage", "GetDownloadUrlForLayer", "BatchCheckLayerAvailability",
        )], "*"),
        _allow("ModelToken", ["secretsmanager:GetSecretValue"], secret),
    ]  # fmt: skip
    if vpc:
        statements.append(_allow("Network", [f"ec2:{name}" for name in _IN_A_VPC], "*"))
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
        _require_role(aws, role_arn)
        return role_arn
    for name in dict.fromkeys((role_name(user_id), ROLE_NAME)):
        found = _role_arn(aws, name)
        if found:
            return found
    raise NotFoundError(
        f"Account {aws.account_id} has no role {ROLE_NAME!r} for SageMaker.",
        fix="run `llmtuner access role --create`, or set role_arn to a role that trusts sagemaker.amazonaws.com",
    )


def _require_role(aws: Aws, role_arn: str) -> None:
    """Raises NotFoundError for a role that IAM does not know; where it may not be asked, SageMaker will tell.

    SageMaker says the same of one that is not there and of one made a moment ago, which is worth to be waited for.
    """
    try:
        known = _role_arn(aws, role_arn.rsplit("/", 1)[-1])
    except ClientError:
        return
    if not known and f":{aws.account_id}:" in role_arn:
        raise NotFoundError(
            f"Account {aws.account_id} has no role {role_arn}.",
            fix="leave role_arn empty for the kit's own (`llmtuner access role --create`), or name one that exists",
        )


def _role_arn(aws: Aws, name: str) -> str:
    try:
        return str(aws.client("iam").get_role(RoleName=name)["Role"]["Arn"])
    except ClientError as error:
        if is_error(error, "NoSuchEntity"):
            return ""
        raise


def create_execution_role(aws: Aws, bucket: str, user_id: str = "", *, vpc: bool = False) -> str:
    """Make (or bring up to date) the shared execution role, or one user's own; its ARN. `vpc`: it may join one."""
    client = aws.client("iam")
    name, trust = role_name(user_id), json.dumps(trust_policy(aws.account_id))
    arn = _role_arn(aws, name)
    if arn:
        client.update_assume_role_policy(RoleName=name, PolicyDocument=trust)
    else:
        whose = f"of user {user_id}" if user_id else "of llmtuner_kit"
        arn = client.create_role(
            RoleName=name,
            AssumeRolePolicyDocument=trust,
            Description=f"What jobs and endpoints {whose} may do",
        )["Role"]["Arn"]
        client.get_waiter("role_exists").wait(RoleName=name)
    client.put_role_policy(
        RoleName=name,
        PolicyName="llmtuner",
        PolicyDocument=json.dumps(
            execution_role_policy(bucket, aws.account_id, aws.region, user_id, aws.partition, vpc=vpc)
        ),
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
    "StringLikeIfExists": "is, where it is given, like",
    "Bool": "is",
}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def require_same_owner(owner: str, user_id: str, what: str) -> None:
    """Raises AccessError when a tagged resource belongs to another user, or to nobody the kit knows."""
    if owner != user_id:
        whose = f"belongs to user {owner!r}" if owner else "was not made by this kit"
        raise AccessError(f"{what} {whose}; you are {user_id!r}.", fix="name one of your own")
