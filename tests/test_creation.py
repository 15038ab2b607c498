"""What jobs and endpoints are made of is created once, also where SageMaker or IAM needs a moment to know of it."""

from __future__ import annotations

from typing import Any

import pytest

from llmtuner_kit import creation
from llmtuner_kit.aws import ClientError
from llmtuner_kit.errors import SettingsError

UNKNOWN = 'Could not find endpoint configuration "arn:aws:sagemaker:us-east-1:000000000000:endpoint-config/x".'
ROLE = (
    "Could not assume role arn:aws:iam::000000000000:role/llmtuner-execution. Please ensure that the role exists and "
    "allows principal 'sagemaker.amazonaws.com' to assume the role."
)
NO_DATA = (
    'Could not access model data at s3://b/k. Please ensure that the role "arn" exists and that its trust relationship '
    'policy allows the action "sts:AssumeRole" for the service principal "sagemaker.amazonaws.com".'
)


class Service:
    """Refuses with these messages, one a request, and then creates."""

    def __init__(self, *messages: str, code: str = "ValidationException") -> None:
        self.messages, self.code, self.waited = list(messages), code, 0.0

    def create(self, **request: Any) -> dict[str, Any]:
        if self.messages:
            raise ClientError({"Error": {"Code": self.code, "Message": self.messages.pop(0)}}, "Create")
        return {"made": request}

    def sleep(self, seconds: float) -> None:
        self.waited += seconds


@pytest.mark.parametrize("message", [UNKNOWN, ROLE, NO_DATA])
def test_what_was_made_a_moment_ago_is_asked_for_again(message: str) -> None:
    service = Service(message, message)
    assert creation.once(service.create, sleep=service.sleep, EndpointName="x") == {"made": {"EndpointName": "x"}}
    assert 1 <= service.waited < 5


def test_what_is_missing_for_long_is_said_in_sagemakers_words() -> None:
    service = Service(*[UNKNOWN] * 100)
    with pytest.raises(SettingsError, match="Could not find endpoint configuration"):
        creation.once(service.create, sleep=service.sleep)
    assert service.waited < 30


@pytest.mark.parametrize("message", [ROLE, NO_DATA])
def test_a_role_that_cannot_be_used_for_long_is_brought_up_to_date_by_a_command(message: str) -> None:
    service = Service(*[message] * 100)
    with pytest.raises(SettingsError) as caught:
        creation.once(service.create, sleep=service.sleep)
    assert "llmtuner access role --create" in caught.value.fix


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('Cannot create already existing model "arn".', "ValidationException"),
        ("Training job names must be unique within an AWS account and region", "ResourceInUse"),
    ],
)
def test_what_is_there_already_is_left(message: str, code: str) -> None:
    there = Service(message, code=code)
    assert creation.once(there.create, sleep=there.sleep) is None
    assert there.waited == 0


def test_every_other_refusal_is_raised_at_once() -> None:
    refused = Service("The requested resource training-job/ml.g5.xlarge is not available in this region")
    with pytest.raises(SettingsError, match="SageMaker refuses: The requested resource"):
        creation.once(refused.create, sleep=refused.sleep)
    assert refused.waited == 0
