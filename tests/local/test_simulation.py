"""SimulatePrincipalPolicy: IAM's matching, and what the SDK asks before each job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llmtuner_local.localstack.simulation import decision, statements

from llmtuner_kit import aws as aws_module

ROLE = "arn:aws:iam::000000000000:role/llmtuner-execution"


def decide(action: str, resource: str, *found: dict[str, Any]) -> str:
    return decision(statements([json.dumps({"Statement": list(found)})]), action, resource)


def allow(**members: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": "*", "Resource": "*"} | members


@pytest.mark.parametrize(
    ("statement", "action", "resource", "verdict"),
    [
        (allow(Action="s3:Get*"), "s3:GetObject", "arn:aws:s3:::b/k", "allowed"),
        (allow(Action="S3:getobject"), "s3:GetObject", "*", "allowed"),
        (allow(Action=["ecr:*", "logs:PutLogEvents"]), "logs:PutLogEvents", "*", "allowed"),
        (allow(Action="s3:Get*"), "s3:PutObject", "*", "implicitDeny"),
        (allow(Resource="arn:aws:s3:::b/users/?/*"), "s3:GetObject", "arn:aws:s3:::b/users/a/x", "allowed"),
        (allow(Resource="arn:aws:s3:::b/users/?/*"), "s3:GetObject", "arn:aws:s3:::b/users/ab/x", "implicitDeny"),
        (allow(Resource="arn:aws:s3:::B/*"), "s3:GetObject", "arn:aws:s3:::b/x", "implicitDeny"),
        (allow(Resource="arn:aws:s3:::[b]/*"), "s3:GetObject", "arn:aws:s3:::b/x", "implicitDeny"),
        (allow(Resource="arn:aws:s3:::b/*"), "s3:GetObject", "*", "implicitDeny"),
        ({"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}, "s3:GetObject", "*", "allowed"),
        ({"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}, "iam:PassRole", "*", "implicitDeny"),
        ({"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:s3:::b/*"}, "s3:Get", "arn:aws:s3:::b/x", "implicitDeny"),
        (allow(Condition={"Bool": {"aws:SecureTransport": "true"}}), "s3:GetObject", "*", "implicitDeny"),
    ],
)  # fmt: skip
def test_statement_decides_as_iam_does(statement: dict[str, Any], action: str, resource: str, verdict: str) -> None:
    assert decide(action, resource, statement) == verdict


def test_a_deny_wins() -> None:
    assert (
        decide("s3:PutObject", "*", allow(), {"Effect": "Deny", "Action": "s3:Put*", "Resource": "*"}) == "explicitDeny"
    )


def test_local_role_may_do_what_a_job_needs_and_no_more(cloud: Path) -> None:
    iam = aws_module.connect("local").client("iam")
    asked = ["ecr:GetAuthorizationToken", "s3:PutObject", "cloudwatch:PutMetricData", "iam:CreateUser"]
    found = iam.simulate_principal_policy(PolicySourceArn=ROLE, ActionNames=asked)["EvaluationResults"]
    verdicts = {item["EvalActionName"]: item["EvalDecision"] for item in found}
    assert verdicts == dict.fromkeys(asked[:3], "allowed") | {"iam:CreateUser": "implicitDeny"}
