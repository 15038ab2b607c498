"""Models, configurations and endpoints through boto3: replicas really serve."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from emulator.conftest import BUCKET, ROLE, Cloud

from llmtuner_kit import aws as aws_module

# A model archive whose server answers with what it got; the image's name says that the archive brings it.
SERVER = """
import http.server, json, os, sys, time
print("server starts", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200, b"")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body == b"fail":
            return self.answer(400, b'{"error": "no such thing"}')
        if body == b"die":
            os._exit(1)
        if body == b"stream":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(3):
                part = f"data: {n}\\n\\n".encode()
                self.wfile.write(f"{len(part):x}\\r\\n".encode() + part + b"\\r\\n")
                self.wfile.flush()
            return self.wfile.write(b"0\\r\\n\\r\\n")
        seen = {"body": body.decode(), "type": self.headers["Content-Type"], "pid": os.getpid(),
                "custom": self.headers.get("X-Amzn-SageMaker-Custom-Attributes"), "env": os.environ.get("MINE")}
        self.answer(200, json.dumps(seen).encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""


def archive(server: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as made:
        info = tarfile.TarInfo("code/serve.py")
        info.size = len(server.encode())
        made.addfile(info, io.BytesIO(server.encode()))
    return data.getvalue()


def create(emulator: Cloud, server: str = SERVER, *, instances: int = 1, startup: int = 60) -> str:
    """Model, configuration and endpoint of one name."""
    name = emulator.name("ep")
    uri = emulator.put(f"models/{name}.tar.gz", archive(server))
    container = {"Image": "example/vllm:1", "ModelDataUrl": uri, "Environment": {"MINE": "yes"}}
    emulator.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant: dict[str, Any] = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.g5.xlarge"}
    variant |= {"InitialInstanceCount": instances, "ContainerStartupHealthCheckTimeoutInSeconds": startup}
    emulator.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    emulator.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    return name


def settled(emulator: Cloud, name: str) -> dict[str, Any]:
    found: dict[str, Any] = emulator.until(
        lambda: emulator.sagemaker.describe_endpoint(EndpointName=name),
        lambda item: item["EndpointStatus"] not in ("Creating", "Updating", "Deleting"),
    )
    return found


def ask(emulator: Cloud, name: str, body: bytes = b"{}", **more: Any) -> dict[str, Any]:
    answer = emulator.runtime.invoke_endpoint(EndpointName=name, Body=body, ContentType="application/json", **more)
    found: dict[str, Any] = json.loads(answer["Body"].read())
    return found | {"_variant": answer["InvokedProductionVariant"]}


def remove(emulator: Cloud, name: str) -> None:
    emulator.sagemaker.delete_endpoint(EndpointName=name)
    emulator.sagemaker.get_waiter("endpoint_deleted").wait(
        EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )


def starts(emulator: Cloud, name: str) -> int:
    """How often a server of the endpoint has started, by its log."""
    group = f"/aws/sagemaker/Endpoints/{name}"
    streams = emulator.logs.describe_log_streams(logGroupName=group)["logStreams"]
    events = [
        event
        for stream in streams
        for event in emulator.logs.get_log_events(
            logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
        )["events"]
    ]
    return sum(event["message"] == "server starts" for event in events)


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
    answer = emulator.runtime.invoke_endpoint_with_response_stream(EndpointName=endpoint, Body=b"stream")
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


def test_several_instances_share_the_work(emulator: Cloud) -> None:
    name = create(emulator, instances=2)
    assert settled(emulator, name)["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    streams = emulator.logs.describe_log_streams(logGroupName=f"/aws/sagemaker/Endpoints/{name}")["logStreams"]
    assert len(streams) == 2
    assert {ask(emulator, name)["_variant"] for _ in range(4)} == {"AllTraffic"}
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


def test_body_over_the_limit_is_refused(emulator: Cloud, endpoint: str) -> None:
    with pytest.raises(ClientError, match="larger than 6291456 bytes"):
        emulator.runtime.invoke_endpoint(EndpointName=endpoint, Body=b"x" * 6_291_457)


def test_configuration_and_model_may_go_while_the_endpoint_serves(emulator: Cloud) -> None:
    name = create(emulator)
    settled(emulator, name)
    emulator.sagemaker.delete_endpoint_config(EndpointConfigName=name)
    emulator.sagemaker.delete_model(ModelName=name)
    assert ask(emulator, name)["body"] == "{}"
    remove(emulator, name)
    assert not (emulator.home / "endpoints" / name).exists()


def config(emulator: Cloud, model: str, *, instances: int = 1) -> str:
    """One more configuration of a model."""
    name = emulator.name("cfg")
    variant = {"VariantName": "AllTraffic", "ModelName": model, "InstanceType": "ml.g5.xlarge"}
    variants = [variant | {"InitialInstanceCount": instances, "ContainerStartupHealthCheckTimeoutInSeconds": 60}]
    emulator.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    return name


def model(emulator: Cloud, server: str, value: str) -> str:
    """One more model, which tells a value."""
    name = emulator.name("model")
    uri = emulator.put(f"models/{name}.tar.gz", archive(server))
    container = {"Image": "example/vllm:1", "ModelDataUrl": uri, "Environment": {"MINE": value}}
    emulator.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    return name


def test_update_serves_the_old_fleet_until_the_new_one_is_healthy(emulator: Cloud, endpoint: str) -> None:
    green = config(emulator, model(emulator, SERVER, "green"))
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
    bad = config(emulator, model(emulator, "raise SystemExit(1)", "bad"))
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
    assert {ask(emulator, endpoint)["pid"] for _ in range(4)}
    assert resize(1)["CurrentInstanceCount"] == 1
    with pytest.raises(ClientError, match='The variant name\\(s\\) "Other" is/are not present'):
        emulator.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=endpoint, DesiredWeightsAndCapacities=[{"VariantName": "Other", "DesiredWeight": 1.0}]
        )


def test_target_tracking_adds_an_instance_under_load_and_takes_it_away(emulator: Cloud, endpoint: str) -> None:
    scaling = aws_module.connect("local").client("application-autoscaling")
    resource = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**resource, MinCapacity=1, MaxCapacity=2)
    tracking = {
        "TargetValue": 5.0,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        "ScaleOutCooldown": 0,
        "ScaleInCooldown": 0,
    }
    scaling.put_scaling_policy(
        **resource,
        PolicyName="track",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=tracking,
    )
    for _ in range(12):
        ask(emulator, endpoint)
    found = emulator.until(
        lambda: emulator.sagemaker.describe_endpoint(EndpointName=endpoint)["ProductionVariants"][0],
        lambda item: item["CurrentInstanceCount"] == 2,
    )
    assert found["DesiredInstanceCount"] == 2
    (activity,) = scaling.describe_scaling_activities(ServiceNamespace="sagemaker", ResourceId=resource["ResourceId"])[
        "ScalingActivities"
    ]
    assert activity["Description"] == "Setting desired instance count to 2."
    # A target so high that one instance is enough brings the second one down again.
    scaling.put_scaling_policy(
        **resource,
        PolicyName="track",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=tracking | {"TargetValue": 5000.0},
    )
    emulator.until(
        lambda: settled(emulator, endpoint)["ProductionVariants"][0], lambda item: item["CurrentInstanceCount"] == 1
    )
    scaling.deregister_scalable_target(**resource)
    assert not scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[resource["ResourceId"]])[
        "ScalableTargets"
    ]
    with pytest.raises(ClientError, match="No scalable target found"):
        scaling.deregister_scalable_target(**resource)
