"""Endpoints in containers: several at once, each on a port of its own, replaced when they die, gone when deleted."""

from __future__ import annotations

import time
from typing import Any

import pytest
from botocore.exceptions import ClientError
from docker_cloud import IMAGE, DockerCloud, docker
from emulator.conftest import ROLE
from emulator.hosting import SERVER, archive, ask, remove, settled, starts

# In a container a server listens everywhere on 8080, and as its first process it must handle SIGTERM itself.
_LISTEN = '"127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])'
assert _LISTEN in SERVER
CONTAINER_SERVER = "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n" + SERVER.replace(
    _LISTEN, '"0.0.0.0", 8080'
)


def create(engine: DockerCloud, mine: str, image: str = IMAGE) -> str:
    name = engine.name("ep")
    uri = engine.put(f"models/{name}.tar.gz", archive(CONTAINER_SERVER))
    container = {"Image": image, "ModelDataUrl": uri, "Environment": {"MINE": mine}}
    engine.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant: dict[str, Any] = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.g5.xlarge"}
    variant |= {"InitialInstanceCount": 1, "ContainerStartupHealthCheckTimeoutInSeconds": 180}
    engine.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    engine.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    return name


def test_two_endpoints_serve_side_by_side_and_go_within_seconds(engine: DockerCloud, image: str) -> None:
    own = "llmtuner-tests/own-image:1"
    docker("tag", image, own)
    try:
        # An image that the engine has is run as it is; AWS's have ours in their place.
        first, second = create(engine, "one"), create(engine, "two", own)
        for name in (first, second):
            found = settled(engine, name)
            assert found["EndpointStatus"] == "InService", found
        images = docker("ps", "--format", "{{.Image}}", "--filter", "label=llmtuner.project").split()
        assert sorted(images) == sorted([image, own])
        assert (ask(engine, first)["env"], ask(engine, second)["env"]) == ("one", "two")
        ports = docker("ps", "--format", "{{.Ports}}", "--filter", "label=llmtuner.project").splitlines()
        assert all(line.startswith("127.0.0.1:") for line in ports), "nothing outside of this machine may reach a model"

        answer = engine.runtime.invoke_endpoint_with_response_stream(
            EndpointName=first, Body=b'{"stream": 3}', ContentType="application/json"
        )
        parts = [event["PayloadPart"]["Bytes"] for event in answer["Body"]]
        assert b"".join(parts) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        with pytest.raises(ClientError, match="no such thing"):
            ask(engine, first, b"fail")

        with pytest.raises(ClientError):
            ask(engine, second, b"die")
        engine.until(lambda: starts(engine, second), lambda count: count == 2)
        engine.until(
            lambda: engine.sagemaker.describe_endpoint(EndpointName=second)["ProductionVariants"][0],
            lambda variant: variant["CurrentInstanceCount"] == 1,
        )
        assert ask(engine, second)["env"] == "two"

        for name in (first, second):
            began = time.monotonic()
            remove(engine, name)
            assert time.monotonic() - began < 15, "a server that handles SIGTERM is not waited for"
    finally:
        docker("rmi", own)


def test_a_server_that_never_answers_fails_the_endpoint(engine: DockerCloud) -> None:
    name = engine.name("ep")
    uri = engine.put(f"models/{name}.tar.gz", archive("raise SystemExit('no weights')\n"))
    container = {"Image": IMAGE, "ModelDataUrl": uri}
    engine.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": name,
        "InstanceType": "ml.g5.xlarge",
        "InitialInstanceCount": 1,
    }
    engine.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    engine.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    found = settled(engine, name)
    assert found["EndpointStatus"] == "Failed"
    assert "did not pass the ping health check" in found["FailureReason"]
    remove(engine, name)
