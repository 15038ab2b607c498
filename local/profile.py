"""Standard AWS configuration that points at the local cloud: two profiles, variables, the SDK's own file."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtuner_local.home import ACCESS_KEY, ACCOUNT_ID, REGION, ROLE_NAME, SECRET_KEY, write_atomic

NAME = "llmtuner-local"
ROLE_ARN = f"arn:aws:iam::{ACCOUNT_ID}:role/{ROLE_NAME}"
FILES = ("config", "credentials", "env", "sagemaker-sdk.yaml")
BUCKET = f"llmtuner-{ACCOUNT_ID}-{REGION}"


def service_urls(localstack_url: str, sagemaker_url: str) -> dict[str, str]:
    """Service name as in `AWS_ENDPOINT_URL_<NAME>` (lower case) -> address."""
    from localstack_client.config import get_service_endpoint

    # localstack-client knows LocalStack's address per service (older versions had one port each).
    os.environ["AWS_ENDPOINT_URL"] = localstack_url
    urls = {}
    for name, service in (
        ("s3", "s3"),
        ("sts", "sts"),
        ("iam", "iam"),
        ("kms", "kms"),
        ("cloudwatch", "cloudwatch"),
        ("cloudwatch_logs", "logs"),
    ):
        urls[name] = get_service_endpoint(service) or localstack_url
    for name in ("sagemaker", "sagemaker_runtime", "application_auto_scaling"):
        urls[name] = sagemaker_url
    return urls


def keep(home: Path, state: dict[str, Any]) -> None:
    """Write the files when one is missing, older than this module, or for other addresses than `state` has now.

    Every `up` asks: what is as it should be costs no import of boto3, which localstack-client brings.
    """
    addresses = [state["localstack_url"], state["sagemaker_url"]]
    try:
        oldest = min((home / "aws" / name).stat().st_mtime for name in FILES)
    except FileNotFoundError:
        oldest = 0.0
    if state.get("profile_for") != addresses or oldest < Path(__file__).stat().st_mtime:
        write(home, *addresses)
        state["profile_for"] = addresses


def write(home: Path, localstack_url: str, sagemaker_url: str) -> None:
    """Write config, credentials, env and sagemaker-sdk.yaml into `aws/` of the home folder."""
    folder = home / "aws"
    sections = []
    for profile, base in ((NAME, sagemaker_url), (f"{NAME}-docker", f"{sagemaker_url}/docker")):
        urls = service_urls(localstack_url, base)
        services = "".join(f"{name} =\n  endpoint_url = {url}\n" for name, url in urls.items())
        sections.append(
            f"[profile {profile}]\nregion = {REGION}\noutput = json\nservices = {profile}\n"
            f"s3 =\n  addressing_style = path\n\n[services {profile}]\n{services}"
        )
    write_atomic(folder / "config", "\n".join(sections))
    keys = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    write_atomic(folder / "credentials", f"[{NAME}]\n{keys}\n[{NAME}-docker]\n{keys}")
    sdk = (
        "SchemaVersion: '1.0'\nSageMaker:\n  PythonSDK:\n    Modules:\n      TelemetryOptOut: true\n"
        f"      Session: {{DefaultS3Bucket: {BUCKET}}}\n  TrainingJob: {{RoleArn: '{ROLE_ARN}'}}\n"
    )
    write_atomic(folder / "sagemaker-sdk.yaml", sdk)
    lines = [f"export {k}={shlex.quote(v)}\n" for k, v in variables(home, localstack_url, sagemaker_url)]
    write_atomic(folder / "env", "".join(lines))


def variables(home: Path, localstack_url: str, sagemaker_url: str) -> list[tuple[str, str]]:
    """The environment with which the AWS CLI, boto3 and SageMaker SDK v3 talk to the local cloud."""
    urls = service_urls(localstack_url, sagemaker_url)
    return [
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_DEFAULT_REGION", REGION),
        ("AWS_REGION", REGION),
        ("AWS_CONFIG_FILE", str(home / "aws" / "config")),
        ("AWS_SHARED_CREDENTIALS_FILE", str(home / "aws" / "credentials")),
        ("AWS_PROFILE", NAME),
        *((f"AWS_ENDPOINT_URL_{name.upper()}", url) for name, url in urls.items()),
        ("SAGEMAKER_USER_CONFIG_OVERRIDE", str(home / "aws" / "sagemaker-sdk.yaml")),
    ]


def create_role(localstack_url: str) -> None:
    """The execution role of the local account, with what a job needs: the SDK simulates its policies before each job."""
    import boto3

    client = boto3.client(
        "iam",
        endpoint_url=localstack_url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    actions = ["cloudwatch:*", "ec2:*", "ecr:*", "kms:*", "logs:*", "s3:*", "sagemaker:*"]
    try:
        client.create_role(RoleName=ROLE_NAME, AssumeRolePolicyDocument=_policy(trust))
    except client.exceptions.EntityAlreadyExistsException:
        pass
    document = _policy({"Effect": "Allow", "Action": actions, "Resource": "*"})
    client.put_role_policy(RoleName=ROLE_NAME, PolicyName="everything-a-job-needs", PolicyDocument=document)


def _policy(statement: Mapping[str, object]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
