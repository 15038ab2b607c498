"""Draining: an instance that is given up answers the requests it has before it is told to stop."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from emulator.components import delete, make, needs, settle
from emulator.conftest import ROLE, Cloud
from emulator.hosting import ask, config, deploy, describe, model, remove, settled, variant
from emulator.inside import context
from llmtuner_local.emulator import supervisors
from llmtuner_local.emulator.operations import replicas


def under_way(quick: Cloud, endpoint: str, count: int, **more: Any) -> list[Iterator[str]]:
    """Streams that have begun and go on for a second, one from each of so many replicas, which get them in turn."""
    body, streams = json.dumps({"stream": 5, "pause": 0.25}).encode(), []
    for _ in range(count):
        answer = quick.runtime.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=body, **more)
        parts = (event["PayloadPart"]["Bytes"].decode() for event in answer["Body"])
        assert next(parts).startswith("data: 0")
        streams.append(parts)
    return streams


def assert_whole(streams: list[Iterator[str]]) -> None:
    for parts in streams:
        assert "".join(parts).endswith("data: 4\n\n")


def supervised(quick: Cloud, endpoint: str) -> int:
    """How many replicas of an endpoint still have their folder."""
    return len(list(quick.home.glob(f"endpoints/{endpoint}/*/i-*")))


def test_answers_come_whole_from_an_instance_that_is_scaled_in(quick: Cloud) -> None:
    endpoint = deploy(quick, variant(model(quick), instances=2))
    fewer = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 1}]
    streams = under_way(quick, endpoint, 2)
    quick.sagemaker.update_endpoint_weights_and_capacities(EndpointName=endpoint, DesiredWeightsAndCapacities=fewer)
    (left,) = {ask(quick, endpoint)["who"] for _ in range(4)}  # the other one gets none of the new requests
    assert_whole(streams)
    quick.until(lambda: supervised(quick, endpoint), lambda count: count == 1)
    assert ask(quick, endpoint)["who"] == left
    remove(quick, endpoint)


def test_answers_come_whole_from_a_copy_of_a_component_that_is_removed(quick: Cloud) -> None:
    endpoint = deploy(quick, variant(None), ExecutionRoleArn=ROLE)
    name = make(quick, endpoint, {"ModelName": model(quick), "ComputeResourceRequirements": needs()}, copies=2)
    streams = under_way(quick, endpoint, 2, InferenceComponentName=name)
    fewer = {"InferenceComponentName": name, "DesiredRuntimeConfig": {"CopyCount": 1}}
    quick.sagemaker.update_inference_component_runtime_config(**fewer)
    assert settle(quick, name)["RuntimeConfig"]["CurrentCopyCount"] == 1
    assert_whole(streams)
    quick.until(lambda: supervised(quick, endpoint), lambda count: count == 1)
    delete(quick, name)
    remove(quick, endpoint)


def test_no_request_of_a_steady_stream_fails_during_a_blue_green_update(quick: Cloud) -> None:
    endpoint, ends = deploy(quick, variant(model(quick, "blue"), instances=2)), threading.Event()

    def send() -> list[str]:
        seen = []
        while not ends.is_set():
            seen.append(ask(quick, endpoint, b'{"sleep": 0.2}')["env"])
        return seen

    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(send) for _ in range(6)]
        try:
            green = config(quick, variant(model(quick, "green"), instances=2))
            quick.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=green)
            assert settled(quick, endpoint)["EndpointConfigName"] == green
            quick.until(lambda: supervised(quick, endpoint), lambda count: count == 2)
        finally:
            ends.set()
    for stream in streams:
        seen = stream.result()
        assert seen == sorted(seen), "blue answered after green had"
        assert set(seen) == {"blue", "green"}
    assert describe(quick, endpoint)["EndpointStatus"] == "InService"
    remove(quick, endpoint)


def test_an_instance_that_does_not_get_idle_is_stopped_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked, now = context(tmp_path), [], 1000.0
    monkeypatch.setattr(supervisors, "alive", lambda folder: True)
    monkeypatch.setattr(supervisors, "signal_stop", lambda folder: asked.append(folder.name))
    monkeypatch.setattr(type(made), "now", lambda self: now)
    busy, idle = ({"id": name, "variant": "v", "state": "InService"} for name in ("i-busy", "i-idle"))
    made.in_flight["i-busy"] = 1
    busy, idle = replicas.retired(made, "ep", [busy, idle])
    assert asked == ["i-idle"]
    now += made.limits.drain_seconds - 1
    assert not replicas.has_gone(made, "ep", busy)
    assert asked == ["i-idle"]
    now += 1
    assert not replicas.has_gone(made, "ep", busy)
    assert asked == ["i-idle", "i-busy"]
    made.store.close()
