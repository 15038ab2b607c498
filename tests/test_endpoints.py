"""What an endpoint is made of is created once, also where SageMaker needs a moment to know of it."""

from __future__ import annotations

from typing import Any

import pytest

from llmtuner_kit import endpoints
from llmtuner_kit.aws import ClientError
from llmtuner_kit.errors import SettingsError

UNKNOWN = 'Could not find endpoint configuration "arn:aws:sagemaker:us-east-1:000000000000:endpoint-config/x".'


class Service:
    """Refuses with these messages, one a request, and then creates."""

    def __init__(self, *messages: str) -> None:
        self.messages, self.waited = list(messages), 0.0

    def create(self, **request: Any) -> dict[str, Any]:
        if self.messages:
            raise ClientError({"Error": {"Code": "ValidationException", "Message": self.messages.pop(0)}}, "Create")
        return {"made": request}

    def sleep(self, seconds: float) -> None:
        self.waited += seconds


def test_what_was_made_a_moment_ago_is_asked_for_again() -> None:
    service = Service(UNKNOWN, UNKNOWN)
    assert endpoints._once(service.create, sleep=service.sleep, EndpointName="x") == {"made": {"EndpointName": "x"}}
    assert 1 <= service.waited < 5


def test_what_is_missing_for_long_is_said_in_sagemakers_words() -> None:
    service = Service(*[UNKNOWN] * 100)
    with pytest.raises(SettingsError, match="Could not find endpoint configuration"):
        endpoints._once(service.create, sleep=service.sleep)
    assert service.waited < 30


def test_what_is_there_already_is_left_and_every_other_refusal_is_raised_at_once() -> None:
    there = Service('Cannot create already existing model "arn".')
    assert endpoints._once(there.create, sleep=there.sleep) is None
    refused = Service("Could not access model data at s3://b/k.")
    with pytest.raises(SettingsError, match="SageMaker refuses: Could not access model data"):
        endpoints._once(refused.create, sleep=refused.sleep)
    assert there.waited == refused.waited == 0
