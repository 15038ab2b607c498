"""Models, configurations and endpoints through boto3: replicas really serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from emulator.conftest import BUCKET, ROLE, Cloud
from emulator.hosting import ask, config, create, deploy, describe, model, remove, settled, starts, variant
from llmtuner_local.emulator.faults import Fault, Faults

from llmtuner_kit import aws as aws_module


@pytest.fixture
def endpoint(emulator: Cloud) -> Iterator[str]:
    """One serving endpoint."""
    name = create(emulator)
    assert settled(emulator, name)["EndpointStatus"] == "InService"
    yield name
    remove(emulator, name)


def test_endpoint_serves_what_the_archive_brings(emulator: Cloud, endpoint: str) -> None:
    answer = ask(emulator, endpoint, b'{"x": 1}', CustomAttributes="trace=1")
    assert answer["body"] == '{"x": 1}'
    assert answer["type"] == "application/json"
    assert answer["custom"] == "trace=1"
    assert answer["env"] == "yes"
    assert answer["_variant"] == "AllTraffic"
    found = settled(emulator, endpoint)
    (variant,) = found["ProductionVariants"]
    assert (variant["CurrentInstanceCount"], variant["DesiredInstanceCount"], variant["CurrentWeight"]) == (1, 1, 1.0)
    assert variant["DeployedImages"][0]["SpecifiedImage"] == "example/vllm:1"
    groups = emulator.logs.describe_log_streams(logGroupName=f"/aws/sagemaker/Endpoints/{endpoint}")["logStreams"]
    assert groups[0]["logStreamName"].startswith("AllTraffic/i-")


def test_stream_arrives_as_an_event_stream(emulator: Cloud, endpoint: str) -> None:
    answer = emulator.runtime.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=b'{"stream": 3}')
    text = b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"]).decode()
    assert text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert answer["ContentType"] == "text/event-stream"


def test_error_of_the_container_comes_with_its_own_words(emulator: Cloud, endpoint: str) -> None:
    for call in (emulator.runtime.invoke_endpoint, emulator.runtime.invoke_endpoint_with_response_stream):
        with pytest.raises(ClientError, match=r"Received client error \(400\) from primary with message") as caught:
            call(EndpointName=endpoint, Body=b"fail")
        response = caught.value.response
        assert response["Error"]["Code"] == "ModelError"
        assert response["OriginalStatusCode"] == 400
        assert response["OriginalMessage"] == '{"error": "no such thing"}'
        assert response["LogStreamArn"].endswith(f"/aws/sagemaker/Endpoints/{endpoint}")
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 424


def test_replica_that_dies_is_replaced(emulator: Cloud, endpoint: str) -> None:
    log_before = starts(emulator, endpoint)
    once = aws_module.connect("local").session.client("sagemaker-runtime", config=Config(retries={"max_attempts": 0}))
    with pytest.raises(ClientError, match="ServiceUnavailable"):
        once.invoke_endpoint(EndpointName=endpoint, Body=b"die")
    emulator.until(lambda: starts(emulator, endpoint), lambda count: count > log_before)

    def answers() -> bool:
        try:
            return ask(emulator, endpoint)["body"] == "{}"
        except ClientError:
            return False

    assert emulator.until(answers, bool)


def test_instance_whose_pings_fail_on_command_is_taken_out_until_the_fault_is_cleared(quick: Cloud) -> None:
    name = deploy(quick, variant(model(quick)))

    def serving() -> int:
        return int(describe(quick, name)["ProductionVariants"][0]["CurrentInstanceCount"])

    faults = Faults(quick.home)
    faults.set(Fault("failed-ping", match=name))
    quick.until(serving, lambda count: count == 0)
    with pytest.raises(ClientError, match="ServiceUnavailable"):
        ask(quick, name)
    faults.clear("failed-ping")
    quick.until(serving, lambda count: count == 1)
    assert ask(quick, name)["body"] == "{}"
    remove(quick, name)


def test_several_instances_share_the_work(emulator: Cloud) -> None:
    name = create(emulator, instances=2)
    assert settled(emulator, name)["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    streams = emulator.logs.describe_log_streams(logGroupName=f"/aws/sagemaker/Endpoints/{name}")["logStreams"]
    assert len(streams) == 2
    assert len({ask(emulator, name)["who"] for _ in range(4)}) == 2
    remove(emulator, name)


def test_container_that_ends_fails_the_endpoint_with_awss_words(emulator: Cloud) -> None:
    name = create(emulator, "print('no weights here'); raise SystemExit(1)")
    found = settled(emulator, name)
    assert found["EndpointStatus"] == "Failed"
    assert found["FailureReason"] == (
        "The primary container for production variant AllTraffic did not pass the ping health check. "
        "Please check CloudWatch logs for this endpoint."
    )
    streams = emulator.logs.describe_log_streams(logGroupName=f"/aws/sagemaker/Endpoints/{name}")["logStreams"]
    events = emulator.logs.get_log_events(
        logGroupName=f"/aws/sagemaker/Endpoints/{name}", logStreamName=streams[0]["logStreamName"], startFromHead=True
    )["events"]
    assert "no weights here" in [item["message"] for item in events]
    remove(emulator, name)


def test_endpoint_that_is_missing_or_not_ready_is_not_found_by_the_runtime(emulator: Cloud) -> None:
    with pytest.raises(ClientError, match="Endpoint nobody of account 000000000000 not found") as caught:
        emulator.runtime.invoke_endpoint(EndpointName="nobody", Body=b"{}")
    assert caught.value.response["Error"]["Code"] == "ValidationError"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    name = create(emulator, "import time; time.sleep(3600)")
    with pytest.raises(ClientError, match="not found"):
        emulator.runtime.invoke_endpoint(EndpointName=name, Body=b"{}")
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        emulator.sagemaker.delete_endpoint(EndpointName=name)


def test_unknown_variant_is_refused(emulator: Cloud, endpoint: str) -> None:
    assert ask(emulator, endpoint, TargetVariant="AllTraffic")["_variant"] == "AllTraffic"
    with pytest.raises(ClientError, match="Variant Other"):
        ask(emulator, endpoint, TargetVariant="Other")


def test_duplicates_and_missing_parts_are_named_by_their_arn(emulator: Cloud, endpoint: str) -> None:
    arn = "arn:aws:sagemaker:us-east-1:000000000000"
    calls = [
        (lambda: emulator.sagemaker.describe_model(ModelName="gone"), f'Could not find model "{arn}:model/gone".'),
        (
            lambda: emulator.sagemaker.describe_endpoint_config(EndpointConfigName="gone"),
            f'Could not find endpoint configuration "{arn}:endpoint-config/gone".',
        ),
        (
            lambda: emulator.sagemaker.describe_endpoint(EndpointName="gone"),
            f'Could not find endpoint "{arn}:endpoint/gone".',
        ),
        (
            lambda: emulator.sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName=endpoint),
            f'Cannot create already existing endpoint "{arn}:endpoint/{endpoint}".',
        ),
    ]
    for call, text in calls:
        with pytest.raises(ClientError) as caught:
            call()
        assert caught.value.response["Error"] == {"Code": "ValidationException", "Message": text}


def test_model_data_that_is_not_there_is_refused(emulator: Cloud) -> None:
    container = {"Image": "example/vllm:1", "ModelDataUrl": f"s3://{BUCKET}/nothing.tar.gz"}
    with pytest.raises(ClientError, match=r"Could not access model data at s3://emulator-tests/nothing"):
        emulator.sagemaker.create_model(ModelName=emulator.name(), PrimaryContainer=container, ExecutionRoleArn=ROLE)
    there = container | {"ModelDataUrl": emulator.put("models/there.tar.gz", "weights")}
    role = ROLE.replace(ROLE.rpartition("/")[2], "nobody-has-this")
    with pytest.raises(ClientError, match=f'Please ensure that the role "{role}" exists'):
        emulator.sagemaker.create_model(ModelName=emulator.name(), PrimaryContainer=there, ExecutionRoleArn=role)


def test_body_over_the_limit_is_refused(emulator: Cloud, endpoint: str) -> None:
    with pytest.raises(ClientError, match="HTTP content length exceeded 6291456 bytes"):
        emulator.runtime.invoke_endpoint(EndpointName=endpoint, Body=b"x" * 6_291_457)


def test_configuration_and_model_may_go_while_the_endpoint_serves(emulator: Cloud) -> None:
    name = create(emulator)
    settled(emulator, name)
    emulator.sagemaker.delete_endpoint_config(EndpointConfigName=name)
    emulator.sagemaker.delete_model(ModelName=name)
    assert ask(emulator, name)["body"] == "{}"
    remove(emulator, name)
    assert not (emulator.home / "endpoints" / name).exists()


def test_update_serves_the_old_fleet_until_the_new_one_is_healthy(emulator: Cloud, endpoint: str) -> None:
    green = config(emulator, variant(model(emulator, "green")))
    emulator.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=green)
    assert emulator.sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"] == "Updating"
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        emulator.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=green)
    seen = []
    while emulator.sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"] == "Updating":
        seen.append(ask(emulator, endpoint)["env"])
    assert ask(emulator, endpoint)["env"] == "green"
    assert seen[0] == "yes"
    assert seen == sorted(seen, key=["yes", "green"].index)
    assert settled(emulator, endpoint)["EndpointConfigName"] == green


def test_update_with_a_model_that_does_not_start_rolls_back(emulator: Cloud, endpoint: str) -> None:
    bad = config(emulator, variant(model(emulator, "bad", "raise SystemExit(1)")))
    emulator.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=bad)
    found = emulator.until(
        lambda: emulator.sagemaker.describe_endpoint(EndpointName=endpoint),
        lambda item: item["EndpointStatus"] == "InService",
    )
    assert "did not pass the ping health check" in found["FailureReason"]
    assert found["EndpointConfigName"] == endpoint
    assert ask(emulator, endpoint)["env"] == "yes"


def test_capacity_changes_while_it_serves(emulator: Cloud, endpoint: str) -> None:
    def resize(count: int) -> dict[str, Any]:
        change = [{"VariantName": "AllTraffic", "DesiredInstanceCount": count}]
        emulator.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=endpoint, DesiredWeightsAndCapacities=change
        )
        return settled(emulator, endpoint)["ProductionVariants"][0]  # type: ignore[no-any-return]

    assert resize(2)["CurrentInstanceCount"] == 2
    assert len({ask(emulator, endpoint)["who"] for _ in range(4)}) == 2
    assert resize(1)["CurrentInstanceCount"] == 1
    with pytest.raises(ClientError, match='The variant name\\(s\\) "Other" is/are not present'):
        emulator.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=endpoint, DesiredWeightsAndCapacities=[{"VariantName": "Other", "DesiredWeight": 1.0}]
        )
