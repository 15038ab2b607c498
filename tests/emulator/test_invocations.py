"""What happens to one request: variants, shadows, pipelines, sources of model data, limits of time and size."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import closing
from typing import Any

import pytest
from botocore.exceptions import ClientError, EventStreamError
from emulator.conftest import BUCKET, ROLE, Cloud
from emulator.hosting import IMAGE, SERVER, archive, ask, config, deploy, describe, model, remove, variant
from llmtuner_local.emulator import event_stream
from llmtuner_local.emulator.faults import Fault, Faults
from llmtuner_local.emulator.limits import Limits


def chunks(quick: Cloud, name: str, order: dict[str, Any]) -> list[bytes]:
    """The parts of a streamed answer."""
    answer = quick.runtime.invoke_endpoint_with_response_stream(EndpointName=name, Body=json.dumps(order))
    with closing(answer["Body"]) as events:
        return [event["PayloadPart"]["Bytes"] for event in events]


def test_limits_come_from_the_environment_or_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Limits.from_environment().stream_seconds == 480
    monkeypatch.setenv("LLMTUNER_LIMITS", '{"stream_seconds": 5}')
    assert Limits.from_environment() == Limits(stream_seconds=5)
    monkeypatch.setenv("LLMTUNER_LIMITS", '{"strem_seconds": 5}')
    with pytest.raises(ValueError, match=r"unknown: strem_seconds.*names: alarm_seconds"):
        Limits.from_environment()


@pytest.mark.parametrize(("size", "expected"), [(0, [b"abcdefg"]), (3, [b"abc", b"def", b"g"]), (99, [b"abcdefg"])])
def test_payload_is_cut_where_it_is_asked_for(size: int, expected: list[bytes]) -> None:
    assert list(event_stream.cut(b"abcdefg", size)) == expected


def test_variants_share_by_weight_and_shadows_get_copies(quick: Cloud) -> None:
    heavy = variant(model(quick, "heavy"), "Heavy", InitialVariantWeight=3.0)
    light = variant(model(quick, "light"), "Light", InitialVariantWeight=1.0)
    name = deploy(quick, heavy, light)
    assert Counter(ask(quick, name)["_variant"] for _ in range(40)) == {"Heavy": 30, "Light": 10}
    assert ask(quick, name, TargetVariant="Light")["env"] == "light"
    quick.sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=name, DesiredWeightsAndCapacities=[{"VariantName": "Light", "DesiredWeight": 0.0}]
    )
    assert {ask(quick, name)["env"] for _ in range(8)} == {"heavy"}
    remove(quick, name)


def test_shadow_variant_gets_copies_and_nobody_hears_its_answers(quick: Cloud) -> None:
    shadow = variant(model(quick, "shadow"), "Shadow")
    name = deploy(quick, variant(model(quick, "real")), ShadowProductionVariants=[shadow])
    (found,) = describe(quick, name)["ShadowProductionVariants"]
    assert (found["VariantName"], found["CurrentInstanceCount"]) == ("Shadow", 1)
    assert {ask(quick, name)["env"] for _ in range(5)} == {"real"}

    def copies() -> float:
        found = quick.cloudwatch.get_metric_statistics(
            Namespace="AWS/SageMaker", MetricName="Invocations", StartTime=time.time() - 300,
            EndTime=time.time() + 60, Period=600, Statistics=["Sum"],
            Dimensions=[{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": "Shadow"}],
        )["Datapoints"]  # fmt: skip
        return sum(item["Sum"] for item in found)

    assert quick.until(copies, lambda count: count >= 5) == 5
    remove(quick, name)


def test_containers_work_as_a_pipeline_or_are_called_by_name(quick: Cloud) -> None:
    uri = quick.put(f"models/{quick.name()}.tar.gz", archive(SERVER))

    def containers(mode: str) -> str:
        made = [
            {"ContainerHostname": host, "Image": IMAGE, "ModelDataUrl": uri, "Environment": {"MINE": host}}
            for host in ("first", "second")
        ]
        name = quick.name("model")
        quick.sagemaker.create_model(
            ModelName=name, Containers=made, ExecutionRoleArn=ROLE, InferenceExecutionConfig={"Mode": mode}
        )
        return name

    serial = deploy(quick, variant(containers("Serial")))
    seen = ask(quick, serial, b'{"x": 1}')
    assert seen["env"] == "second"
    inner = json.loads(seen["body"])
    assert (inner["env"], inner["body"]) == ("first", '{"x": 1}')
    with pytest.raises(ClientError, match="TargetContainerHostname is not allowed"):
        ask(quick, serial, TargetContainerHostname="first")
    with pytest.raises(ClientError, match=r"Received client error \(400\) from first with message"):
        ask(quick, serial, b"fail")
    streams = quick.logs.describe_log_streams(logGroupName=f"/aws/sagemaker/Endpoints/{serial}")["logStreams"]
    assert sorted(item["logStreamName"].rpartition("/")[2] for item in streams) == ["first", "second"]
    remove(quick, serial)
    direct = deploy(quick, variant(containers("Direct")))
    for host in ("first", "second"):
        assert ask(quick, direct, TargetContainerHostname=host)["env"] == host
    with pytest.raises(ClientError, match="is not one of the containers of this endpoint: first, second"):
        ask(quick, direct)
    remove(quick, direct)


def test_model_data_comes_as_prefix_or_object(quick: Cloud) -> None:
    prefix = f"plain/{quick.name()}/"
    quick.put(f"{prefix}code/serve.py", SERVER)
    quick.put(f"{prefix}weights.bin", "w")
    extra = quick.put(f"{prefix}extra.txt", "more")

    def source(uri: str, kind: str, compression: str = "None") -> dict[str, Any]:
        return {"S3DataSource": {"S3Uri": uri, "S3DataType": kind, "CompressionType": compression}}

    bad = source(f"s3://{BUCKET}/plain", "S3Prefix")
    with pytest.raises(ClientError, match="must end with a forward slash"):
        quick.sagemaker.create_model(
            ModelName=quick.name(), PrimaryContainer={"Image": IMAGE, "ModelDataSource": bad}, ExecutionRoleArn=ROLE
        )
    several = {"Image": IMAGE, "Mode": "MultiModel", "ModelDataUrl": f"s3://{BUCKET}/{prefix}"}
    with pytest.raises(ClientError, match="Mode MultiModel exist on AWS; the local SageMaker emulator does not have"):
        quick.sagemaker.create_model(ModelName=quick.name(), PrimaryContainer=several, ExecutionRoleArn=ROLE)
    name = quick.name("model")
    container = {
        "Image": IMAGE,
        "ModelDataSource": source(f"s3://{BUCKET}/{prefix}", "S3Prefix"),
        "AdditionalModelDataSources": [{"ChannelName": "more", **source(extra, "S3Object")}],
    }
    quick.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    serverless = {"MemorySizeInMB": 2048, "MaxConcurrency": 1}
    made = {"VariantName": "AllTraffic", "ModelName": name, "ServerlessConfig": serverless}
    endpoint = deploy(quick, made)
    assert ask(quick, endpoint)["files"] == ["code", "extra.txt", "weights.bin"]
    (found,) = describe(quick, endpoint)["ProductionVariants"]
    assert found["CurrentServerlessConfig"] == serverless
    with pytest.raises(ClientError, match="larger than 4194304 bytes"):
        ask(quick, endpoint, b"x" * (4 * 1024 * 1024 + 1))
    remove(quick, endpoint)
    with pytest.raises(ClientError, match="MemorySizeInMB must be a multiple of 1024"):
        config(quick, made | {"ServerlessConfig": serverless | {"MemorySizeInMB": 1500}})


def test_slow_large_and_broken_answers_end_as_on_aws_and_a_silent_server_is_replaced(quick: Cloud) -> None:
    name = deploy(quick, variant(model(quick)))
    with pytest.raises(
        ClientError, match=r"Received server error \(0\) from primary with message .Your invocation timed"
    ):
        ask(quick, name, b'{"sleep": 3600}')
    with pytest.raises(ClientError, match=r"server error \(500\) from primary and could not load the entire response"):
        ask(quick, name, b'{"big": 6291457}')
    answer = quick.runtime.invoke_endpoint(EndpointName=name, Body=b'{"big": 6291456}')
    assert len(answer["Body"].read()) == 6_291_456

    assert b"".join(chunks(quick, name, {"stream": 3})) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    faults = Faults(quick.home)
    faults.set(Fault("split-stream", number=4, match=name))
    cut = chunks(quick, name, {"stream": 3})
    assert b"".join(cut) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert {len(item) for item in cut[:-1]} <= {4, 1, 3, 2}
    assert len(cut) >= 7
    faults.clear("split-stream")
    with pytest.raises(EventStreamError, match="did not complete sending the inference response in the allotted time"):
        chunks(quick, name, {"stream": 1000, "pause": 0.5})
    with pytest.raises(EventStreamError, match="broke off") as caught:
        chunks(quick, name, {"stream": 2, "break": True})
    assert caught.value.response["Error"]["Code"] == "ModelStreamError"

    before = ask(quick, name, b"mute")["who"]  # from now on its pings are not answered

    def successor() -> str:
        try:
            return str(ask(quick, name)["who"])
        except ClientError:
            return before

    quick.until(successor, lambda who: who != before)
    _all_is_counted(quick, name)
    remove(quick, name)


def _all_is_counted(quick: Cloud, name: str) -> None:
    """What the requests before have left in CloudWatch."""
    dimensions = [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": "AllTraffic"}]

    def names(namespace: str) -> set[str]:
        found = quick.cloudwatch.list_metrics(Namespace=namespace, Dimensions=dimensions)["Metrics"]
        return {item["MetricName"] for item in found}

    wanted = {
        "Invocations", "InvocationsPerInstance", "ModelLatency", "OverheadLatency", "Invocation4XXErrors",
        "Invocation5XXErrors", "InvocationModelErrors", "ConcurrentRequestsPerModel",
    }  # fmt: skip
    quick.until(lambda: names("AWS/SageMaker"), lambda found: wanted <= found)
    instance = {"CPUUtilization", "MemoryUtilization", "DiskUtilization"}
    quick.until(lambda: names("/aws/sagemaker/Endpoints"), lambda found: found == instance)
    latency = quick.cloudwatch.get_metric_statistics(
        Namespace="AWS/SageMaker", MetricName="ModelLatency", Dimensions=dimensions, StartTime=time.time() - 600,
        EndTime=time.time() + 60, Period=600, Statistics=["Maximum", "SampleCount"],
    )["Datapoints"]  # fmt: skip
    # Microseconds: the one that timed out after 2 s, which a timer may end a little early.
    assert max(item["Maximum"] for item in latency) >= 1.99e6
