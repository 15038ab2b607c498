"""Everyday failures of AWS are readable."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest
from botocore import exceptions as botocore_errors
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from llmtuner_kit import aws_errors
from llmtuner_kit.errors import AccessError, KitError, NotReadyError, QuotaError


def failure(code: str, message: str = "why", operation: str = "GetObject") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("AccessDenied", AccessError),
        ("AccessDeniedException", AccessError),
        ("ExpiredToken", AccessError),
        ("InvalidAccessKeyId", AccessError),
        ("SignatureDoesNotMatch", AccessError),
        ("InvalidSignatureException", AccessError),
        ("OptInRequired", AccessError),
        ("ResourceLimitExceeded", QuotaError),
        ("ThrottlingException", NotReadyError),
        ("SlowDown", NotReadyError),
    ],
)
def test_everyday_failures_become_kit_errors_that_keep_awss_words(code: str, kind: type[KitError]) -> None:
    plain = aws_errors.translate(failure(code), "GetObject")
    assert type(plain) is kind
    assert "why" in plain.problem
    assert plain.fix


@pytest.mark.parametrize("code", ["ValidationException", "NoSuchKey", "ResourceInUse", "404"])
def test_failures_that_mean_something_to_the_caller_pass(code: str) -> None:
    assert aws_errors.translate(failure(code), "GetObject") is None


def test_denied_names_the_operation_and_quota_names_the_limit() -> None:
    denied = aws_errors.translate(failure("AccessDenied"), "CreateEndpoint")
    assert denied is not None
    assert denied.problem.startswith("CreateEndpoint was denied")
    text = "The account-level service limit 'ml.g5.xlarge for training job usage' is 0 Instances"
    quota = aws_errors.translate(failure("ResourceLimitExceeded", text), "CreateTrainingJob")
    assert quota is not None
    assert "'ml.g5.xlarge for training job usage'" in quota.fix


def test_where_a_policy_of_the_organization_denies_no_permission_is_asked_for() -> None:
    message = (
        "User: arn:aws:iam::1:user/ada is not authorized to perform: sagemaker:CreateTrainingJob on resource: "
        "arn:aws:sagemaker:eu-west-3:1:training-job/x with an explicit deny in a service control policy"
    )
    denied = aws_errors.translate(failure("AccessDeniedException", message), "CreateTrainingJob")
    assert denied is not None
    assert "another region or instance_type" in denied.fix
    assert "access show" not in denied.fix


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
        ("InvalidSignatureException", "Signature expired: 20261126T100000Z is now earlier than 20261126T101000Z"),
        ("SignatureDoesNotMatch", "Signature not yet current: 20261126T103000Z is still later than 20261126T101500Z"),
    ],
)
def test_a_clock_that_is_wrong_is_no_wrong_password(code: str, message: str) -> None:
    plain = aws_errors.translate(failure(code, message), "GetCallerIdentity")
    assert isinstance(plain, AccessError)
    assert "clock" in plain.fix


def test_a_failure_of_the_service_itself_can_be_waited_for_and_one_of_a_models_server_is_the_callers() -> None:
    answer: Any = {
        "Error": {"Code": "InternalFailure", "Message": "why"},
        "ResponseMetadata": {"HTTPStatusCode": HTTPStatus.INTERNAL_SERVER_ERROR},
    }
    plain = aws_errors.translate(ClientError(answer, "DescribeTrainingJob"), "DescribeTrainingJob")
    assert isinstance(plain, NotReadyError)
    assert "DescribeTrainingJob" in plain.problem
    assert "wait a minute" in plain.fix
    assert aws_errors.translate(ClientError(answer, "InvokeEndpoint"), "InvokeEndpoint") is None
    answer["Error"]["Message"] = "exception while calling s3.PutObject: [Errno 28] No space left on device"
    full = aws_errors.translate(ClientError(answer, "PutObject"), "PutObject")
    assert full is not None
    assert "make room" in full.fix


def test_a_bare_refusal_of_an_object_is_said_and_of_a_bucket_left_to_the_caller() -> None:
    assert isinstance(aws_errors.translate(failure("403"), "HeadObject"), AccessError)
    assert aws_errors.translate(failure("403"), "HeadBucket") is None


@pytest.mark.parametrize(
    ("code", "operation"),
    [("ExpiredToken", "GetObject"), ("ExpiredTokenException", "DescribeTrainingJob"), ("400", "HeadObject")],
)
def test_credentials_that_have_expired_say_how_to_sign_in_also_where_s3_says_no_reason(
    code: str, operation: str
) -> None:
    plain = aws_errors.translate(failure(code), operation)
    assert isinstance(plain, AccessError)
    assert "credentials have expired" in plain.problem
    assert "aws sso login" in plain.fix
    assert aws_errors.translate(failure("400"), "GetObject") is None


def test_no_credentials_says_how_to_get_some() -> None:
    plain = aws_errors.translate(NoCredentialsError(), "PutObject")
    assert isinstance(plain, AccessError)
    assert "aws configure" in plain.fix


@pytest.mark.parametrize(
    "error",
    [
        botocore_errors.UnauthorizedSSOTokenError(),
        botocore_errors.SSOTokenLoadError(error_msg="no file"),
        botocore_errors.LoginRefreshRequired(),
        botocore_errors.CredentialRetrievalError(provider="custom-process", error_msg="it ended with 1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_sign_in_that_has_ended_says_how_to_sign_in_again(error: BotoCoreError) -> None:
    plain = aws_errors.translate(error, "GetCallerIdentity")
    assert isinstance(plain, AccessError)
    assert str(error) in plain.problem
    assert "aws sso login" in plain.fix


def test_nothing_that_answers_is_looked_for_where_the_address_leads() -> None:
    far = botocore_errors.EndpointConnectionError(endpoint_url="https://sts.eu-wst-1.amazonaws.com/")
    near = botocore_errors.ConnectionClosedError(endpoint_url="http://127.0.0.1:4566/")
    (remote, local) = (aws_errors.translate(error, "GetCallerIdentity") for error in (far, near))
    assert isinstance(remote, NotReadyError)
    assert isinstance(local, NotReadyError)
    assert "region's name" in remote.fix
    assert "llmtuner local up" in local.fix


def test_a_proxy_that_opens_tls_is_told_from_a_network_that_is_down() -> None:
    closed = botocore_errors.SSLError(endpoint_url="https://sts.us-east-1.amazonaws.com/", error="unable to get issuer")
    plain = aws_errors.translate(closed, "GetCallerIdentity")
    assert isinstance(plain, NotReadyError)
    assert "AWS_CA_BUNDLE" in plain.fix


def test_codes_are_found_behind_a_translated_error() -> None:
    error = AccessError("denied")
    error.__cause__ = failure("AccessDenied")
    assert aws_errors.is_error(error, "AccessDenied")
    assert not aws_errors.is_error(ValueError("x"), "AccessDenied")
