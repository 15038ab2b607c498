"""The OpenAI client on an endpoint, with bearer tokens of the SageMaker SDK's own generator."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import boto3
import openai
import pytest
from clients.conftest import FAST, ROLE, SERVING_IMAGE, Bench, unique
from llmtuner_local.emulator.openai_door import PREFIX, token_problem
from sagemaker.core.token_generator import generate_token

from llmtuner_kit import inference
from llmtuner_kit.inference import Deployed
from llmtuner_kit.settings import StartSettings
from llmtuner_kit.workspace import open_workspace


@pytest.fixture
def endpoint(bench: Bench) -> Iterator[str]:
    sagemaker, name = bench.client("sagemaker"), unique("chat")
    container = {"Image": SERVING_IMAGE, "ModelDataUrl": bench.archive()}
    sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[bench.variant(name)])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=FAST)
    yield name
    sagemaker.delete_endpoint(EndpointName=name)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig=FAST)


def client(endpoint: str, token: str) -> openai.OpenAI:
    base = os.environ["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"]
    return openai.OpenAI(base_url=f"{base}/endpoints/{endpoint}/openai/v1", api_key=token, max_retries=0)


def test_openai_journey(bench: Bench, endpoint: str) -> None:
    messages = [{"role": "user", "content": "one two three"}]
    with client(endpoint, generate_token(region="us-east-1")) as asking:
        answer = asking.chat.completions.create(model="", messages=messages)
        assert answer.choices[0].message.content == "one two three"
        assert answer.usage
        assert answer.usage.total_tokens == 6
        parts = asking.chat.completions.create(model="", messages=messages, stream=True)
        assert [part.choices[0].delta.content for part in parts] == ["one", "two", "three", None]

    with client("not-there", generate_token(region="us-east-1")) as lost:
        with pytest.raises(
            openai.BadRequestError, match="Endpoint not-there of account 000000000000 not found"
        ) as caught:
            lost.chat.completions.create(model="", messages=messages)
        assert caught.value.code == "validation_error"
        assert caught.value.type == "invalid_request_error"

    for token in ("sk-of-somebody-else", "sagemaker-api-key-%%%", _aged(generate_token(expiry=timedelta(seconds=60)))):
        with client(endpoint, token) as stranger, pytest.raises(openai.PermissionDeniedError) as refused:
            stranger.chat.completions.create(model="", messages=messages)
        assert refused.value.code == "access_denied"


def test_the_examples_of_07_invoke_run_as_they_are(
    bench: Bench, endpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever pastes an example has a new Python; here another test may have left a session of its own cloud.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    workspace = open_workspace(StartSettings())
    chat = inference.client_examples(workspace, Deployed(endpoint, "causal"), "one two")
    exec(chat["OpenAI client"], {})
    assert "content='one two'" in capsys.readouterr().out
    texts = inference.client_examples(workspace, Deployed(endpoint, "seq2seq"), "one two")
    exec(texts["boto3"], {})
    assert "{'echo': 'one two', " in capsys.readouterr().out


def _aged(token: str) -> str:
    """The same token, made an hour ago."""
    text = base64.b64decode(token.removeprefix(PREFIX)).decode()
    made = parse_qs(text)["X-Amz-Date"][0]
    before = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y%m%dT%H%M%SZ")
    return PREFIX + base64.b64encode(text.replace(made, before).encode()).decode()


@pytest.mark.parametrize("seconds", [1, 60, 43_200])
def test_token_of_the_sdk_is_good_until_it_expires(bench: Bench, seconds: int) -> None:
    authorization = "Bearer " + generate_token(region="eu-west-1", expiry=timedelta(seconds=seconds))
    now = datetime.now(UTC)
    assert token_problem(authorization, now) == ""
    assert token_problem(authorization, now + timedelta(seconds=seconds + 2)) == "the bearer token has expired"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("CallWithBearerToken", "DeleteEverything"), "the bearer token is for another action"),
        (("X-Amz-Expires=60", "X-Amz-Expires=43201"), "the bearer token lives longer than 12 hours"),
        (("X-Amz-Expires=60", "X-Amz-Expires=soon"), "the bearer token cannot be read"),
        (("X-Amz-Date", "X-Date"), "the bearer token cannot be read"),
    ],
)
def test_token_that_was_changed_is_refused(bench: Bench, change: tuple[str, str], problem: str) -> None:
    text = base64.b64decode(generate_token(expiry=timedelta(seconds=60)).removeprefix(PREFIX)).decode()
    assert change[0] in text
    changed = base64.b64encode(text.replace(*change).encode()).decode()
    assert token_problem(f"Bearer {PREFIX}{changed}") == problem
