"""What a user's policy allows is what the kit asks for, and nothing of anybody else."""

from __future__ import annotations

import json

import pytest
from iam import allowed

from llmtuner_kit import access

WHERE = ("kept", "ada", "123456789012", "eu-west-1")
POLICY = access.user_policy(*WHERE)
SAGEMAKER = "arn:aws:sagemaker:eu-west-1:123456789012"
MARK = access.user_mark("ada")
ADAS, BOBS = ({"aws:ResourceTag/llmtuner:owner": name} for name in ("ada", "bob"))


@pytest.mark.parametrize("action", ["GetObject", "PutObject", "DeleteObject", "ListMultipartUploadParts"])
def test_objects_are_reached_below_the_own_prefix_only(action: str) -> None:
    assert allowed(POLICY, f"s3:{action}", "arn:aws:s3:::kept/users/ada/uploads/x/rows.jsonl")
    for key in ("users/bob/uploads/x/rows.jsonl", "users/adam/x", "other"):
        assert not allowed(POLICY, f"s3:{action}", f"arn:aws:s3:::kept/{key}")


def test_listing_is_of_the_own_prefix_and_an_interrupted_upload_can_be_found() -> None:
    assert allowed(POLICY, "s3:ListBucket", "arn:aws:s3:::kept", {"s3:prefix": "users/ada/runs/"})
    assert not allowed(POLICY, "s3:ListBucket", "arn:aws:s3:::kept", {"s3:prefix": "users/bob/"})
    assert not allowed(POLICY, "s3:ListBucket", "arn:aws:s3:::kept")
    assert allowed(POLICY, "s3:ListBucketMultipartUploads", "arn:aws:s3:::kept")


@pytest.mark.parametrize(
    "action", ["DescribeTrainingJob", "StopTrainingJob", "DeleteEndpoint", "InvokeEndpoint", "DeleteModel"]
)
def test_what_runs_is_used_by_its_owner_only(action: str) -> None:
    assert allowed(POLICY, f"sagemaker:{action}", f"{SAGEMAKER}:endpoint/tickets", ADAS)
    assert not allowed(POLICY, f"sagemaker:{action}", f"{SAGEMAKER}:endpoint/tickets", BOBS)
    assert not allowed(POLICY, f"sagemaker:{action}", f"{SAGEMAKER}:endpoint/tickets")


def test_a_name_that_is_free_can_be_asked_for_although_nothing_has_a_tag_yet() -> None:
    for operation, kind in (("DescribeTrainingJob", "training-job"), ("DescribeProcessingJob", "processing-job")):
        assert allowed(POLICY, f"sagemaker:{operation}", f"{SAGEMAKER}:{kind}/demo-1234-{MARK}")
        assert not allowed(POLICY, f"sagemaker:{operation}", f"{SAGEMAKER}:{kind}/demo-1234-{access.user_mark('bob')}")
    assert allowed(POLICY, "sagemaker:DescribeEndpoint", f"{SAGEMAKER}:endpoint/named-by-hand")


def test_the_guard_can_find_the_own_endpoints_among_all() -> None:
    assert allowed(POLICY, "sagemaker:ListEndpoints", "*")
    assert allowed(POLICY, "sagemaker:ListTags", f"{SAGEMAKER}:endpoint/tickets", BOBS)
    assert not allowed(POLICY, "sagemaker:ListTags", f"{SAGEMAKER}:training-job/tickets", BOBS)


def test_nobody_makes_anothers_endpoint_their_own_by_a_tag() -> None:
    endpoint = f"{SAGEMAKER}:endpoint/tickets"
    mine = {"aws:RequestTag/llmtuner:owner": "ada"}
    assert not allowed(POLICY, "sagemaker:AddTags", endpoint, mine | BOBS)
    assert not allowed(POLICY, "sagemaker:AddTags", endpoint, {"aws:RequestTag/llmtuner:owner": "bob"} | ADAS)
    assert allowed(POLICY, "sagemaker:AddTags", endpoint, {"aws:RequestTag/llmtuner:expires-at": "now"} | ADAS)


def test_a_role_is_passed_to_sagemaker_alone_and_only_the_own_one() -> None:
    to_sagemaker = {"iam:PassedToService": "sagemaker.amazonaws.com"}
    role = "arn:aws:iam::123456789012:role/llmtuner-execution"
    assert allowed(POLICY, "iam:PassRole", f"{role}-ada", to_sagemaker)
    assert not allowed(POLICY, "iam:PassRole", f"{role}-ada", {"iam:PassedToService": "ec2.amazonaws.com"})
    assert not allowed(POLICY, "iam:PassRole", role, to_sagemaker)


def test_autoscaling_may_make_its_alarms_and_its_role() -> None:
    alarm = "arn:aws:cloudwatch:eu-west-1:123456789012:alarm:TargetTracking-endpoint/x/variant/AllTraffic-AlarmHigh-1"
    assert allowed(POLICY, "cloudwatch:PutMetricAlarm", alarm)
    assert not allowed(POLICY, "cloudwatch:PutMetricAlarm", alarm.replace("TargetTracking", "Mine"))
    service = "sagemaker.application-autoscaling.amazonaws.com"
    linked = f"arn:aws:iam::123456789012:role/aws-service-role/{service}/AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
    assert allowed(POLICY, "iam:CreateServiceLinkedRole", linked, {"iam:AWSServiceName": service})
    assert not allowed(POLICY, "iam:CreateServiceLinkedRole", linked, {"iam:AWSServiceName": "ecs.amazonaws.com"})


@pytest.mark.parametrize("policy", [POLICY, access.execution_role_policy("kept", "123456789012", "eu-west-1")])
def test_objects_under_a_key_of_the_account_are_reached_through_s3_only(policy: access.Policy) -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/1234"
    for action in ("kms:Decrypt", "kms:GenerateDataKey"):
        assert allowed(policy, action, key, {"kms:ViaService": "s3.eu-west-1.amazonaws.com"})
        assert not allowed(policy, action, key)


def test_an_own_role_reads_its_users_objects_and_secrets_and_the_shared_one_all_of_the_kits() -> None:
    own = access.execution_role_policy("kept", "123456789012", "eu-west-1", "ada")
    shared = access.execution_role_policy("kept", "123456789012", "eu-west-1")
    secrets = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:"
    for resource, action in (
        ("arn:aws:s3:::kept/users/{}/datasets/x", "s3:GetObject"),
        (secrets + "llmtuner/{}/hf-token-AbCdEf", "secretsmanager:GetSecretValue"),
    ):
        assert allowed(own, action, resource.format("ada"))
        assert not allowed(own, action, resource.format("bob"))
        assert allowed(shared, action, resource.format("bob"))
    assert not allowed(shared, "secretsmanager:GetSecretValue", secrets + "database-AbCdEf")


@pytest.mark.parametrize("partition", ["aws-cn", "aws-us-gov"])
def test_arns_are_of_the_partition_they_are_for(partition: str) -> None:
    policies = (
        access.user_policy(*WHERE, partition),
        access.execution_role_policy("kept", "123456789012", "cn-north-1", "ada", partition),
    )
    for policy in policies:
        for statement in policy["Statement"]:
            for resource in (
                [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
            ):
                assert resource == "*" or resource.startswith(f"arn:{partition}:")


def test_a_policy_is_small_enough_for_iam() -> None:
    """A managed policy has at most 6,144 characters besides white space, a role's inline policies 10,240."""
    bucket, user, place = "b" * 63, "u" * 63, ("123456789012", "ap-northeast-1")
    mine = access.user_policy(bucket, user, *place, "aws-us-gov")
    its = access.execution_role_policy(bucket, *place, user, "aws-us-gov")
    assert len(json.dumps(mine, separators=(",", ":"))) <= 6144
    assert len(json.dumps(its, separators=(",", ":"))) <= 10240


def test_a_role_joins_a_vpc_only_where_it_was_made_for_that() -> None:
    plain, inside = (
        access.execution_role_policy("kept", "123456789012", "eu-west-1", vpc=vpc) for vpc in (False, True)
    )
    for action in ("CreateNetworkInterface", "DeleteNetworkInterfacePermission", "DescribeSubnets"):
        assert allowed(inside, f"ec2:{action}", "*")
        assert not allowed(plain, f"ec2:{action}", "*")
    assert not allowed(inside, "ec2:RunInstances", "*")


def test_every_statement_can_be_said_in_words() -> None:
    for policy in (POLICY, access.execution_role_policy("kept", "123456789012", "eu-west-1")):
        for sentence in access.sentences(policy):
            assert sentence.startswith("May ")
            assert "IfExists" not in sentence
