"""Inference components: copies on instances that have room, LoRA adapters, no capacity, scale to zero and back."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from emulator.components import component, delete, make, needs, settle
from emulator.conftest import ROLE, Cloud
from emulator.hosting import IMAGE, SERVER, archive, ask, deploy, describe, model, remove, settled, variant
from llmtuner_local.emulator.instances import Resources, resources_of
from llmtuner_local.emulator.operations.placement import choose

NO_CAPACITY = "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress"


def test_instance_types_hold_what_aws_says() -> None:
    assert resources_of("ml.g5.xlarge") == Resources(4, 16 * 1024, 1)
    assert resources_of("ml.g5.48xlarge") == Resources(192, 768 * 1024, 8)
    assert resources_of("ml.m5.large") == Resources(2, 8 * 1024, 0)
    assert resources_of("ml.c5.2xlarge") == Resources(8, 16 * 1024, 0)
    assert resources_of("ml.p4d.24xlarge") == Resources(96, 1152 * 1024, 8)


def test_placement_spreads_or_packs_and_refuses_what_does_not_fit() -> None:
    left = {"a": Resources(4, 8000, 1), "b": Resources(4, 4000, 1), "full": Resources(0, 100, 0)}
    wanted = Resources(1, 1000, 1)
    assert choose(left, wanted, ["a"], "SPREAD") == "b"
    assert choose(left, wanted, [], "BINPACK") == "b"
    assert choose(left, Resources(1, 9000, 0), [], "SPREAD") is None


def test_component_serves_with_its_copies_and_its_adapters(quick: Cloud) -> None:
    endpoint = deploy(quick, variant(None), ExecutionRoleArn=ROLE)
    base = make(quick, endpoint, {"ModelName": model(quick, "base"), "ComputeResourceRequirements": needs()}, copies=2)
    found = component(quick, base)
    assert found["InferenceComponentStatus"] == "InService"
    assert found["RuntimeConfig"] == {"DesiredCopyCount": 2, "CurrentCopyCount": 2}
    answers = [ask(quick, endpoint, InferenceComponentName=base) for _ in range(4)]
    assert {item["env"] for item in answers} == {"base"}
    assert {item["_variant"] for item in answers} == {"AllTraffic"}
    assert len({item["who"] for item in answers}) == 2

    uri = quick.put(f"adapters/{endpoint}.tar.gz", archive("a pirate", "adapter.txt"))
    adapter = make(
        quick, endpoint, {"BaseInferenceComponentName": base, "Container": {"ArtifactUrl": uri}}, copies=None
    )
    assert component(quick, adapter)["InferenceComponentStatus"] == "InService"
    assert ask(quick, endpoint, InferenceComponentName=adapter)["adapter"] == "a pirate"
    assert ask(quick, endpoint, InferenceComponentName=base)["adapter"] is None

    with pytest.raises(ClientError, match="Received client error \\(400\\) from i-"):
        quick.runtime.invoke_endpoint(EndpointName=endpoint, InferenceComponentName=base, Body=b"fail")
    with pytest.raises(ClientError, match="adapter inference component cannot be updated"):
        quick.sagemaker.update_inference_component(InferenceComponentName=adapter, RuntimeConfig={"CopyCount": 2})
    with pytest.raises(ClientError, match="delete those first"):
        quick.sagemaker.delete_inference_component(InferenceComponentName=base)
    with pytest.raises(ClientError, match="while it has inference components"):
        quick.sagemaker.delete_endpoint(EndpointName=endpoint)
    listed = quick.sagemaker.list_inference_components(EndpointNameEquals=endpoint, StatusEquals="InService")
    assert {item["InferenceComponentName"] for item in listed["InferenceComponents"]} == {base, adapter}
    delete(quick, adapter)
    delete(quick, base)
    remove(quick, endpoint)


def test_header_is_asked_for_and_refused_in_awss_words(quick: Cloud) -> None:
    endpoint, plain = deploy(quick, variant(None), ExecutionRoleArn=ROLE), deploy(quick, variant(model(quick)))

    def refused(call: Callable[[], Any]) -> dict[str, Any]:
        with pytest.raises(ClientError) as caught:
            call()
        response: dict[str, Any] = caught.value.response
        assert response["Error"]["Code"] == "ValidationError"
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 400
        return response

    missing = refused(lambda: ask(quick, endpoint))
    assert missing["Error"]["Message"] == (
        "Inference Component Name header is required for endpoints to which you plan to deploy inference components. "
        "Please include Inference Component Name header or consider using SageMaker models."
    )
    superfluous = refused(lambda: ask(quick, plain, InferenceComponentName="any"))
    assert "not allowed for endpoints to which you dont plan to deploy" in superfluous["Error"]["Message"]
    with pytest.raises(ClientError, match="must be an integer larger than 0"):
        make(quick, endpoint, {"ModelName": model(quick), "ComputeResourceRequirements": needs()}, copies=0)
    scaling = {"Status": "ENABLED", "MinInstanceCount": 1, "MaxInstanceCount": 2}
    with pytest.raises(ClientError, match="ManagedInstanceScaling is only supported for inference component endpoints"):
        deploy(quick, variant(model(quick), ManagedInstanceScaling=scaling))
    with pytest.raises(ClientError, match="ExecutionRoleArn is required"):
        deploy(quick, variant(None))
    with pytest.raises(ClientError, match="has variants with a ModelName"):
        make(quick, plain, {"ModelName": model(quick), "ComputeResourceRequirements": needs()})
    remove(quick, plain)
    remove(quick, endpoint)


def test_what_does_not_fit_fails_and_managed_scaling_adds_instances_down_to_none(quick: Cloud) -> None:
    scaling = {"Status": "ENABLED", "MinInstanceCount": 0, "MaxInstanceCount": 2}
    endpoint = deploy(quick, variant(None, ManagedInstanceScaling=scaling), ExecutionRoleArn=ROLE)
    uri = quick.put(f"models/{endpoint}.tar.gz", archive(SERVER))
    container = {"Image": IMAGE, "ArtifactUrl": uri, "Environment": {"MINE": "own"}}
    large = make(
        quick, endpoint, {"Container": container, "ComputeResourceRequirements": needs(memory=99_000)}, copies=1
    )
    failed = component(quick, large)
    assert failed["InferenceComponentStatus"] == "Failed"
    assert "do not have the compute resources for 1 more copies" in failed["FailureReason"]
    delete(quick, large)

    wanted = {"Container": container, "ComputeResourceRequirements": needs(NumberOfAcceleratorDevicesRequired=1)}
    name = make(quick, endpoint, wanted, copies=2)  # one accelerator an instance: each copy needs its own
    assert component(quick, name)["RuntimeConfig"]["CurrentCopyCount"] == 2
    assert settled(quick, endpoint)["ProductionVariants"][0]["CurrentInstanceCount"] == 2

    resize = {"InferenceComponentName": name, "DesiredRuntimeConfig": {"CopyCount": 0}}
    quick.sagemaker.update_inference_component_runtime_config(**resize)
    assert settle(quick, name)["RuntimeConfig"] == {"DesiredCopyCount": 0, "CurrentCopyCount": 0}
    quick.until(
        lambda: describe(quick, endpoint)["ProductionVariants"][0]["CurrentInstanceCount"], lambda count: count == 0
    )
    with pytest.raises(ClientError, match=NO_CAPACITY) as caught:
        ask(quick, endpoint, InferenceComponentName=name)
    assert caught.value.response["Error"]["Code"] == "ValidationError"

    # The refused call is a metric; an alarm on it wakes the component through a step policy.
    resource = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"inference-component/{name}",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
    }
    quick.scaling.register_scalable_target(**resource, MinCapacity=0, MaxCapacity=1)
    steps = {
        "AdjustmentType": "ChangeInCapacity",
        "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
        "Cooldown": 30,
    }
    policy = quick.scaling.put_scaling_policy(
        **resource, PolicyName="wake", PolicyType="StepScaling", StepScalingPolicyConfiguration=steps
    )
    dimensions = [{"Name": "InferenceComponentName", "Value": name}]
    quick.cloudwatch.put_metric_alarm(
        AlarmName=name, Namespace="AWS/SageMaker", MetricName="NoCapacityInvocationFailures", Dimensions=dimensions,
        Statistic="Maximum", Period=60, EvaluationPeriods=1, Threshold=1, TreatMissingData="missing",
        ComparisonOperator="GreaterThanOrEqualToThreshold", AlarmActions=[policy["PolicyARN"]],
    )  # fmt: skip
    quick.until(
        lambda: quick.cloudwatch.list_metrics(MetricName="NoCapacityInvocationFailures", Dimensions=dimensions)[
            "Metrics"
        ],
        bool,
    )
    quick.cloudwatch.set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="the minute is over")
    quick.until(lambda: component(quick, name)["RuntimeConfig"]["CurrentCopyCount"], lambda count: count == 1)
    assert ask(quick, endpoint, InferenceComponentName=name)["env"] == "own"
    quick.cloudwatch.delete_alarms(AlarmNames=[name])
    quick.scaling.deregister_scalable_target(**resource)
    delete(quick, name)
    remove(quick, endpoint)


def test_update_of_a_component_keeps_the_old_version_when_the_new_one_does_not_start(quick: Cloud) -> None:
    endpoint = deploy(quick, variant(None), ExecutionRoleArn=ROLE)
    name = make(quick, endpoint, {"ModelName": model(quick, "one"), "ComputeResourceRequirements": needs()})
    for server, expected in ((SERVER, "two"), ("raise SystemExit(1)", "two")):
        new = {"ModelName": model(quick, expected, server), "ComputeResourceRequirements": needs()}
        quick.sagemaker.update_inference_component(InferenceComponentName=name, Specification=new)
        found = settle(quick, name)
        assert ask(quick, endpoint, InferenceComponentName=name)["env"] == "two"
    assert "did not pass the ping health check" in found["FailureReason"]
    delete(quick, name)
    remove(quick, endpoint)


def token(seconds: int = 3600) -> str:
    """A bearer token as SageMaker's SDK makes it, without a signature."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    url = f"sagemaker.amazonaws.com/?Action=CallWithBearerToken&X-Amz-Date={now}&X-Amz-Expires={seconds}&Version=1"
    return "sagemaker-api-key-" + base64.b64encode(url.encode()).decode()


def test_openai_door_reaches_components_by_address_and_refuses_the_header(quick: Cloud) -> None:
    endpoint = deploy(quick, variant(None), ExecutionRoleArn=ROLE)
    name = make(quick, endpoint, {"ModelName": model(quick), "ComputeResourceRequirements": needs()})
    base = f"{quick.url}/endpoints/{endpoint}/inference-components/{name}/openai/v1"

    def chat(url: str, key: str, **headers: str) -> tuple[int, dict[str, Any]]:
        answer = httpx.post(
            f"{url}/chat/completions", headers={"Authorization": key} | headers, json={"model": "", "messages": []}
        )
        return answer.status_code, answer.json()

    status, seen = chat(base, f"Bearer {token()}")
    assert (status, seen["path"]) == (200, "/v1/chat/completions")
    status, refused = chat(base, "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sagemaker/aws4_request")
    assert (status, refused["error"]["type"]) == (403, "invalid_request_error")
    header = {"X-Amzn-SageMaker-Inference-Component": name}
    status, refused = chat(f"{quick.url}/endpoints/{endpoint}/openai/v1", f"Bearer {token()}", **header)
    assert (status, refused["error"]["code"]) == (400, "validation_error")
    status, refused = chat(f"{quick.url}/endpoints/nobody/openai/v1", f"Bearer {token()}")
    assert (status, refused) == (400, {"error": {
        "message": "Endpoint nobody of account 000000000000 not found.", "type": "invalid_request_error",
        "code": "validation_error",
    }})  # fmt: skip
    resize = {"InferenceComponentName": name, "DesiredRuntimeConfig": {"CopyCount": 0}}
    quick.sagemaker.update_inference_component_runtime_config(**resize)
    settle(quick, name)
    status, refused = chat(base, f"Bearer {token()}")
    assert (status, refused["error"]["code"]) == (400, "validation_error")
    assert refused["error"]["message"].startswith(NO_CAPACITY)
    delete(quick, name)
    remove(quick, endpoint)
