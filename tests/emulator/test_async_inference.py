"""InvokeEndpointAsync: a queue, answers in S3, failures where they are asked for, metrics, no synchronous calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from botocore.exceptions import ClientError
from emulator.conftest import BUCKET, Cloud, clients_of, start_emulator
from emulator.hosting import ask, deploy, describe, model, remove, variant
from emulator.inside import context
from llmtuner_local.emulator.async_inference import KIND, AsyncInvocations
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.refusals import RefusalError
from llmtuner_local.emulator.runtime import PREFIX, Runtime
from llmtuner_local.emulator.runtime_doors import RuntimeDoors
from llmtuner_local.emulator.store import StoreError
from llmtuner_local.processes import free_port


def asynchronous(quick: Cloud) -> str:
    """An asynchronous endpoint that takes one request at a time."""
    output = {"S3OutputPath": f"s3://{BUCKET}/async/out", "S3FailurePath": f"s3://{BUCKET}/async/failed"}
    client = {"MaxConcurrentInvocationsPerInstance": 1}
    return deploy(quick, variant(model(quick)), AsyncInferenceConfig={"OutputConfig": output, "ClientConfig": client})


def stored(quick: Cloud, uri: str) -> bytes:
    """The object at a URI, when it has come."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")

    def look() -> bytes | None:
        try:
            return bytes(quick.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        except quick.s3.exceptions.NoSuchKey:
            return None

    found: bytes = quick.until(look, lambda item: item is not None)
    return found


def test_answers_and_failures_come_to_s3_and_the_queue_is_counted(quick: Cloud) -> None:
    name = asynchronous(quick)
    config = describe(quick, name)["AsyncInferenceConfig"]
    assert config["ClientConfig"]["MaxConcurrentInvocationsPerInstance"] == 1

    inline = quick.runtime.invoke_endpoint_async(
        EndpointName=name, Body=b'{"x": 1}', ContentType="application/json", InferenceId="mine"
    )
    assert inline["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert inline["InferenceId"] == "mine"
    seen = json.loads(stored(quick, inline["OutputLocation"]))
    assert (seen["body"], seen["type"]) == ('{"x": 1}', "application/json")

    uri = quick.put(f"async/in/{name}.json", '{"from": "s3"}')
    located = quick.runtime.invoke_endpoint_async(
        EndpointName=name, InputLocation=uri, S3OutputPathExtension="sub", Filename="answer.json"
    )
    assert located["OutputLocation"] == f"s3://{BUCKET}/async/out/sub/answer.json"
    assert json.loads(stored(quick, located["OutputLocation"]))["body"] == '{"from": "s3"}'

    failed = quick.runtime.invoke_endpoint_async(EndpointName=name, Body=b"fail")
    assert stored(quick, failed["FailureLocation"]) == b'{"error": "no such thing"}'
    lost = quick.runtime.invoke_endpoint_async(EndpointName=name, InputLocation=f"s3://{BUCKET}/nothing")
    assert b"could not be read" in stored(quick, lost["FailureLocation"])

    begun = time.monotonic()
    slow = [
        quick.runtime.invoke_endpoint_async(EndpointName=name, Body=b'{"sleep": 0.5}')["OutputLocation"]
        for _ in range(3)
    ]
    for location in slow:
        stored(quick, location)
    assert time.monotonic() - begun >= 1.5  # one at a time
    dimensions = [{"Name": "EndpointName", "Value": name}]

    def backlog() -> list[dict[str, Any]]:
        now = time.time()
        found: list[dict[str, Any]] = quick.cloudwatch.get_metric_statistics(
            Namespace="AWS/SageMaker", MetricName="ApproximateBacklogSize", Dimensions=dimensions,
            StartTime=now - 300, EndTime=now + 60, Period=60, Statistics=["Maximum"],
        )["Datapoints"]  # fmt: skip
        return found

    assert quick.until(backlog, lambda points: any(item["Maximum"] >= 2 for item in points))

    with pytest.raises(ClientError, match="takes InvokeEndpointAsync only") as caught:
        ask(quick, name)
    assert caught.value.response["Error"]["Code"] == "ValidationError"
    with pytest.raises(ClientError, match="Exactly one of Body and InputLocation"):
        quick.runtime.invoke_endpoint_async(EndpointName=name)
    with pytest.raises(ClientError, match="at most 128000"):
        quick.runtime.invoke_endpoint_async(EndpointName=name, Body=b"x" * 128_001)
    remove(quick, name)


def test_queue_waits_while_there_are_no_instances(quick: Cloud) -> None:
    name = asynchronous(quick)

    def resize(count: int) -> None:
        wanted = [{"VariantName": "AllTraffic", "DesiredInstanceCount": count}]
        quick.sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=wanted)
        quick.until(
            lambda: describe(quick, name),
            lambda item: (
                item["EndpointStatus"] == "InService" and item["ProductionVariants"][0]["CurrentInstanceCount"] == count
            ),
        )

    resize(0)
    waiting = quick.runtime.invoke_endpoint_async(EndpointName=name, Body=b'{"x": 1}')["OutputLocation"]
    dimensions = [{"Name": "EndpointName", "Value": name}]
    quick.until(
        lambda: quick.cloudwatch.list_metrics(MetricName="HasBacklogWithoutCapacity", Dimensions=dimensions)["Metrics"],
        bool,
    )
    resize(1)
    assert json.loads(stored(quick, waiting))["body"] == '{"x": 1}'
    remove(quick, name)
    plain = deploy(quick, variant(model(quick)))
    with pytest.raises(ClientError, match="must be at least 1"):
        quick.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=plain, DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredInstanceCount": 0}]
        )
    with pytest.raises(ClientError, match="is not asynchronous"):
        quick.runtime.invoke_endpoint_async(EndpointName=plain, Body=b"{}")
    remove(quick, plain)


def test_requests_in_the_queue_and_under_way_are_answered_after_the_emulator_was_killed(
    emulator: Cloud, cloud: Path, tmp_path: Path
) -> None:
    port = free_port()
    process = start_emulator(tmp_path, port, cloud)
    try:
        made = clients_of(emulator, tmp_path, f"http://127.0.0.1:{port}")
        name = asynchronous(made)
        orders = [b'{"sleep": 1, "n": %d}' % n for n in range(3)]
        outputs = [
            made.runtime.invoke_endpoint_async(EndpointName=name, Body=body)["OutputLocation"] for body in orders
        ]
        process.kill()
        process.wait()
        process = start_emulator(tmp_path, port, cloud)
        assert [json.loads(stored(made, uri))["body"].encode() for uri in outputs] == orders
        remove(made, name)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Context]:
    """An emulator without LocalStack, with the asynchronous endpoint `ep` that has no instance."""
    made = context(tmp_path)
    output = {"S3OutputPath": "s3://b/out", "S3FailurePath": "s3://b/failed"}
    made.store.put("endpoint", "ep", {
        "EndpointName": "ep", "EndpointStatus": "InService", "_settings": {"AsyncInferenceConfig": {"OutputConfig": output}},
        "_variants": [{"VariantName": "AllTraffic"}], "_replicas": [],
    })  # fmt: skip
    yield made
    made.store.close()


def test_request_that_waits_for_longer_than_its_time_expires(inside: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    made, now = inside, 1000.0
    monkeypatch.setattr(type(made), "now", lambda self: now)
    queues = AsyncInvocations(made, Runtime(made))
    with pytest.raises(RefusalError, match="invocationtimeoutseconds must be between 1 and 3600; it is ²"):
        queues.accept("ep", {f"{PREFIX}invocationtimeoutseconds": "²"}, b"x")
    with pytest.raises(RefusalError, match="requestttlseconds must be between 60 and 21600; it is 59"):
        queues.accept("ep", {f"{PREFIX}requestttlseconds": "59"}, b"x")
    expiring, staying = queues.accept("ep", {f"{PREFIX}requestttlseconds": "60"}, b"x"), queues.accept("ep", {}, b"x")

    async def failures(after: float) -> list[tuple[str, bytes]]:
        """What the queue's rounds store in S3 so many seconds later."""
        nonlocal now
        now, found = now + after, []
        monkeypatch.setattr(queues, "_put", lambda uri, content, kind: found.append((uri, content)))
        queues._hand_out("ep")
        await asyncio.gather(*queues._running["ep"])
        return found

    assert asyncio.run(failures(60)) == []
    reason = b"The request was in the queue for longer than RequestTTLSeconds."
    assert asyncio.run(failures(1)) == [(expiring["failure"], reason)]
    assert [item["output"] for item in made.store.all(KIND)] == [staying["output"]]
    assert "ExpiredRequests" in str(made.metrics.take())


def test_request_whose_failure_cannot_be_stored_is_over_all_the_same(inside: Context) -> None:
    queues = AsyncInvocations(inside, Runtime(inside))
    request = queues.accept("ep", {}, b"x")["id"]
    inside.s3 = Mock(put_object=Mock(side_effect=OSError("no such bucket")))
    asyncio.run(queues._fail("ep", request, "the container's words"))
    assert inside.s3.put_object.called
    assert inside.store.all(KIND) == []  # it would be sent again when the emulator starts again
    assert "ResponseUploadFailures" in str(inside.metrics.take())


@pytest.mark.parametrize("kind", ["async-invocations", "invocations-response-stream"])
def test_failure_of_the_emulator_itself_is_told_as_one(
    inside: Context, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    runtime = Runtime(inside)
    queues, sent = AsyncInvocations(inside, runtime), []
    full = StoreError(
        "sagemaker.db cannot be written: database or disk is full. Make room on its disk, then try again."
    )
    monkeypatch.setattr(inside.store, "put", Mock(side_effect=full))
    monkeypatch.setattr(runtime, "target", Mock(side_effect=full))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        sent.append(message)

    assert asyncio.run(RuntimeDoors(runtime, queues).answer(f"/endpoints/ep/{kind}", {}, receive, send))
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]) == {"Message": str(full), "ErrorCode": "INTERNAL_FAILURE"}
