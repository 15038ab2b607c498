"""Driven by service models: AWS's texts for what does not hold, any operation's shape, and never a 500."""

from __future__ import annotations

import base64
import http.client
import json
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from botocore.model import ListShape, MapShape, Shape, StructureShape
from emulator.conftest import ROLE, Cloud
from emulator.inside import served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llmtuner_local.emulator import wire
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError
from llmtuner_local.emulator.operations import AUTOSCALING, SAGEMAKER

FILTER = "Member must satisfy regular expression pattern"


def refused(operation: str, request: dict[str, Any]) -> str:
    with pytest.raises(ServiceError) as caught:
        wire.parse("sagemaker", operation, json.dumps(request).encode())
    assert caught.value.code == "ValidationException"
    return caught.value.message


@pytest.mark.parametrize(
    ("operation", "request_", "text"),
    [
        ("DescribeModel", {}, "1 validation error detected: Value null at 'modelName' failed to satisfy constraint: Member must not be null"),
        ("ListModels", {"MaxResults": 0}, "Value '0' at 'maxResults' failed to satisfy constraint: Member must have value greater than or equal to 1"),
        ("ListModels", {"MaxResults": 101}, "Member must have value less than or equal to 100"),
        ("ListTags", {"ResourceArn": "arn:aws:sagemaker:us-east-1:000000000000:model/m", "MaxResults": 49}, "Member must have value greater than or equal to 50"),
        ("ListModels", {"SortOrder": "Up"}, "Value 'Up' at 'sortOrder' failed to satisfy constraint: Member must satisfy enum value set: [Ascending, Descending]"),
        ("DescribeModel", {"ModelName": "a_b"}, "Value 'a_b' at 'modelName' failed to satisfy constraint: " + FILTER),
        ("DeleteTags", {"ResourceArn": "arn:aws:sagemaker:us-east-1:000000000000:model/m", "TagKeys": []}, "Value '[]' at 'tagKeys' failed to satisfy constraint: Member must have length greater than or equal to 1"),
        ("CreateEndpointConfig", {"EndpointConfigName": "c", "ProductionVariants": [{}]}, "Value null at 'productionVariants.1.member.variantName'"),
        ("CreateModel", {"ModelName": "m", "PrimaryContainer": {"Environment": {"1": "v"}}}, "Value '{1=v}' at 'primaryContainer.environment' failed to satisfy constraint: Map keys must satisfy constraint: [Member must have length less than or equal to 1024, Member must have length greater than or equal to 0, Member must satisfy regular expression pattern: [a-zA-Z_][a-zA-Z0-9_]*]"),
    ],
)  # fmt: skip
def test_constraint_that_does_not_hold_is_told_in_awss_words(
    operation: str, request_: dict[str, Any], text: str
) -> None:
    assert text in refused(operation, request_)


@pytest.mark.parametrize(
    ("operation", "request_"),
    [
        ("ListModels", {"MaxResults": 1}),
        ("ListModels", {"MaxResults": 100}),
        ("DescribeModel", {"ModelName": "m" * 63}),
        ("DeleteTags", {"ResourceArn": "arn:aws:sagemaker:us-east-1:000000000000:model/m", "TagKeys": ["k"] * 50}),
    ],
)
def test_what_is_just_at_a_limit_is_taken(operation: str, request_: dict[str, Any]) -> None:
    assert wire.parse("sagemaker", operation, json.dumps(request_).encode()) == request_


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1e300, True, "many", 1.5])
def test_what_is_no_integer_of_the_wire_is_told_as_such(value: object) -> None:
    with pytest.raises(ServiceError, match="can not be converted to an Integer") as caught:
        wire.parse("sagemaker", "ListModels", json.dumps({"MaxResults": value}).encode())
    assert caught.value.code == "SerializationException"


def test_several_errors_are_counted_and_told_together() -> None:
    text = refused("CreateEndpoint", {"EndpointName": "-", "Tags": [{"Key": "", "Value": "v"}]})
    assert text.startswith("3 validation errors detected: ")
    assert len(text.split("; ")) == 3
    assert "Value null at 'endpointConfigName' failed to satisfy constraint: Member must not be null" in text
    assert "Value '' at 'tags.1.member.key'" in text


def test_ten_errors_are_the_most_that_are_told() -> None:
    variants = [{"VariantName": "-"}] * 10
    assert refused("CreateEndpointConfig", {"EndpointConfigName": "-", "ProductionVariants": variants}).startswith(
        "10 "
    )


def test_answers_leave_out_empty_structures_and_what_no_client_knows() -> None:
    answer = {"ModelName": "m", "VpcConfig": {}, "_secret": 1, "CreationTime": 1.5, "PrimaryContainer": {"Image": None}}
    told = json.loads(wire.serialise("sagemaker", "DescribeModel", answer))
    assert told == {"ModelName": "m", "CreationTime": 1.5, "PrimaryContainer": {}}


def test_a_new_operation_is_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation nobody wrote yet, with nested structures and a paginator of boto3's own."""

    def create_hub(context: Context, params: dict[str, Any]) -> dict[str, Any]:
        arn = context.arn("hub", params["HubName"])
        context.store.put("hub", params["HubName"], params | {"HubArn": arn})
        return {"HubArn": arn}

    monkeypatch.setitem(SAGEMAKER, "CreateHub", create_hub)
    with served(tmp_path) as (context, client):
        made = client.create_hub(HubName="Mine", HubDescription="d", S3StorageConfig={"S3OutputPath": "s3://b/p"})
        assert made["HubArn"] == "arn:aws:sagemaker:us-east-1:000000000000:hub/mine"
        stored = context.store.get("hub", "Mine")
        assert stored
        assert stored["S3StorageConfig"] == {"S3OutputPath": "s3://b/p"}
        with pytest.raises(ClientError, match="at 'hubName' failed to satisfy constraint"):
            client.create_hub(HubName="no_good", HubDescription="d")
        tagged = [{"Key": "a", "Value": "b"}]
        assert client.add_tags(ResourceArn=made["HubArn"], Tags=tagged)["Tags"] == tagged
        with pytest.raises(ClientError) as caught:
            client.describe_hub(HubName="Mine")
        assert caught.value.response["Error"]["Code"] == "UnknownOperationException"


NAMES = (
    "known",
    "unknown",
    "Known-2",
    "endpoint/known/variant/AllTraffic",
    ROLE,
    "s3://emulator-tests/rows/",
    "2026-01-01",
)
ARN = "arn:aws:sagemaker:us-east-1:000000000000:model/known"
TOKEN = base64.b64encode(b'["known", 7]').decode()


_made: dict[tuple[str, int], st.SearchStrategy[Any]] = {}


def values(shape: Shape, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of a shape, mostly good ones: names of things that are there, numbers at the edges, all enums."""
    if (shape.name, depth) not in _made:
        _made[shape.name, depth] = _values(shape, depth)
    return _made[shape.name, depth]


def _values(shape: Shape, depth: int) -> st.SearchStrategy[Any]:
    limits = shape.metadata
    if isinstance(shape, StructureShape):
        required = {name: values(shape.members[name], depth + 1) for name in shape.required_members}
        others = [name for name in shape.members if name not in required]
        chosen = (
            st.lists(st.sampled_from(others), unique=True, max_size=4 if depth < 3 else 1) if others else st.just([])
        )
        return st.builds(
            lambda always, extra: always | extra,
            st.fixed_dictionaries(required),
            chosen.flatmap(
                lambda names: st.fixed_dictionaries({n: values(shape.members[n], depth + 1) for n in names})
            ),
        )
    if isinstance(shape, ListShape):
        low = min(limits.get("min", 0), 2)
        return st.lists(values(shape.member, depth + 1), min_size=low, max_size=2 if depth < 4 else low)
    if isinstance(shape, MapShape):
        return st.dictionaries(values(shape.key, depth + 1), values(shape.value, depth + 1), max_size=2)
    kind = shape.type_name
    if kind in ("integer", "long"):
        low, high = limits.get("min", -1), limits.get("max", 100_000)
        return st.sampled_from([low, high, low + 1, 0, 1, 2**31 - 1])
    if kind in ("double", "float"):
        return st.floats(allow_nan=False, allow_infinity=False)
    if kind == "boolean":
        return st.booleans()
    if kind == "timestamp":
        return st.sampled_from([0, 1.5, 2e9, -1, 253402300799, "2026-01-01T00:00:00Z", "never"])
    if "enum" in limits:
        return st.sampled_from(limits["enum"])
    return st.one_of(st.sampled_from([*NAMES, ARN, TOKEN]), st.text(max_size=12))


OPERATIONS = [("SageMaker", "sagemaker", name) for name in SAGEMAKER]
OPERATIONS += [("AnyScaleFrontendService", "application-autoscaling", name) for name in AUTOSCALING]


@pytest.mark.parametrize(("prefix", "service", "operation"), OPERATIONS, ids=[item[2] for item in OPERATIONS])
def test_no_request_of_the_right_shape_is_a_500(emulator: Cloud, prefix: str, service: str, operation: str) -> None:
    place = urlsplit(emulator.sagemaker.meta.endpoint_url)
    scope = f"test/20260101/us-east-1/{service}/aws4_request"
    headers = {
        "X-Amz-Target": f"{prefix}.{operation}",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0a",
    }
    shape = wire.service_model(service).operation_model(operation).input_shape
    assert shape is not None

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(values(shape))
    def ask(request: Any) -> None:
        with closing(http.client.HTTPConnection(place.netloc, timeout=120)) as connection:
            connection.request("POST", "/", json.dumps(request), headers)
            answer = connection.getresponse()
            body = answer.read()
        assert answer.status in (200, 400), (request, body)

    ask()
