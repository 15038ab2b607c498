"""The account commands print what a person can act on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmtuner_kit import access
from llmtuner_kit.errors import NotFoundError
from llmtuner_kit.faces.cli import main
from llmtuner_kit.workspace import Workspace


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_access_show_is_the_users_own_prefix_in_words_and_as_a_document(cloud: Path) -> None:
    words = run("access", "show", "--target", "local", "--user-id", "ada")
    assert "s3:GetObject" in words
    assert "users/ada/*" in words
    document = json.loads(run("access", "show", "--json", "--target", "local", "--user-id", "ada"))
    assert {item["Effect"] for item in document["Statement"]} == {"Allow"}


def test_access_role_is_created_once_and_found_again(cloud: Path) -> None:
    made = run("access", "role", "--create", "--target", "local").strip()
    assert made == "arn:aws:iam::000000000000:role/llmtuner-execution"
    assert run("access", "role", "--target", "local").strip() == made


def test_a_role_that_is_not_there_is_told_before_a_job_is_asked_for(workspace: Workspace) -> None:
    place = f"arn:aws:iam::{workspace.aws.account_id}:role/"
    with pytest.raises(NotFoundError, match="has no role arn:aws:iam::000000000000:role/nobody"):
        access.execution_role(workspace.aws, f"{place}nobody")
    made = access.create_execution_role(workspace.aws, workspace.bucket, workspace.user_id)
    assert access.execution_role(workspace.aws, made) == made
    elsewhere = "arn:aws:iam::123456789012:role/theirs"
    assert access.execution_role(workspace.aws, elsewhere) == elsewhere


def test_a_role_that_sagemaker_cannot_take_is_brought_up_to_date(workspace: Workspace) -> None:
    iam, name = workspace.aws.client("iam"), access.role_name(workspace.user_id)
    access.create_execution_role(workspace.aws, workspace.bucket, workspace.user_id)
    other = json.dumps(access.trust_policy()).replace("sagemaker", "ec2")
    iam.update_assume_role_policy(RoleName=name, PolicyDocument=other)
    run("access", "role", "--create", "--own", "--target", "local", "--user-id", workspace.user_id)
    trust = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]
    assert trust == access.trust_policy(workspace.aws.account_id)


def test_guard_says_when_nothing_runs(cloud: Path) -> None:
    out = run("guard", "--delete", "--target", "local", "--user-id", "nobody-here")
    assert "No endpoint of user 'nobody-here' is running in us-east-1." in out
    assert "Nothing has outlived its time." in out


def test_prices_show_names_source_and_unknown() -> None:
    shown = run("prices", "show")
    assert shown.startswith("Prices in us-east-1")
    assert "ml.g5.xlarge       $1.41 an hour  (" in shown
    assert "llmtuner prices refresh --region eu-central-9" in run("prices", "show", "--region", "eu-central-9")


def test_missing_configuration_is_one_plain_message(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(main, ["access", "show"])
    assert done.exit_code == 2
    assert "No AWS region is set." in done.output
    assert "Traceback" not in done.output
