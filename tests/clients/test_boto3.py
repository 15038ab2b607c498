"""Plain boto3 with its own waiters, from training to the endpoint's end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError
from clients.conftest import FAST, ROLE, SERVING_IMAGE, Bench, unique


def test_boto3_journey_with_its_waiters(bench: Bench) -> None:
    sagemaker, runtime, logs = (bench.client(name) for name in ("sagemaker", "sagemaker-runtime", "logs"))
    job, model, endpoint = unique("job"), unique("model"), unique("Endpoint")

    sagemaker.create_training_job(**bench.training_request(job), Tags=[{"Key": "team", "Value": "blue"}])
    sagemaker.get_waiter("training_job_completed_or_stopped").wait(TrainingJobName=job, WaiterConfig=FAST)
    done = sagemaker.describe_training_job(TrainingJobName=job)
    assert done["TrainingJobStatus"] == "Completed"
    assert [(item["MetricName"], item["Value"]) for item in done["FinalMetricDataList"]] == [("loss", 0.5)]
    assert sagemaker.list_tags(ResourceArn=done["TrainingJobArn"])["Tags"] == [{"Key": "team", "Value": "blue"}]
    pages = logs.get_paginator("filter_log_events").paginate(
        logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix=f"{job}/"
    )
    assert [event["message"] for page in pages for event in page["events"]] == [
        "epoch=0 loss=1.000;",
        "epoch=1 loss=0.500;",
    ]

    container = {"Image": SERVING_IMAGE, "ModelDataUrl": done["ModelArtifacts"]["S3ModelArtifacts"]}
    for number in ("1", "2"):
        name = f"{model}-{number}"
        environment = {"Environment": {"NAME": number}}
        sagemaker.create_model(ModelName=name, PrimaryContainer=container | environment, ExecutionRoleArn=ROLE)
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[bench.variant(name)])
    sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName=f"{model}-1")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=FAST)
    assert _ask(runtime, endpoint, {"inputs": "hi"}) == {"echo": "hi", "name": "1"}

    answer = runtime.invoke_endpoint_with_response_stream(
        EndpointName=endpoint, Body=json.dumps({"inputs": "a b c", "stream": True}), ContentType="application/json"
    )
    assert answer["ContentType"] == "text/event-stream"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert b"".join(part["PayloadPart"]["Bytes"] for part in answer["Body"]) == b"data: a\n\ndata: b\n\ndata: c\n\n"

    with pytest.raises(runtime.exceptions.ModelError) as caught:
        _ask(runtime, endpoint, {"fail": "no such thing"})
    assert caught.value.response["OriginalStatusCode"] == 400
    assert json.loads(caught.value.response["OriginalMessage"]) == {"error": "no such thing"}

    sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=f"{model}-2")
    assert _ask(runtime, endpoint, {"inputs": "hi"})["echo"] == "hi"  # the old fleet serves meanwhile
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=endpoint, WaiterConfig=FAST)
    assert _ask(runtime, endpoint, {"inputs": "hi"})["name"] == "2"

    sagemaker.delete_endpoint(EndpointName=endpoint)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=endpoint, WaiterConfig=FAST)
    for number in ("1", "2"):
        sagemaker.delete_endpoint_config(EndpointConfigName=f"{model}-{number}")
        sagemaker.delete_model(ModelName=f"{model}-{number}")
    sagemaker.delete_training_job(TrainingJobName=job)
    with pytest.raises(ClientError, match=r"Requested resource not found\."):
        sagemaker.describe_training_job(TrainingJobName=job)


def test_waiters_end_with_an_error_when_what_they_wait_for_fails(bench: Bench) -> None:
    sagemaker = bench.client("sagemaker")
    job, model = unique("job"), unique("model")
    request = bench.training_request(job)
    del request["HyperParameters"]  # the program wants them
    sagemaker.create_training_job(**request)
    container = {"Image": "own/does-not-serve:1"}
    sagemaker.create_model(ModelName=model, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    sagemaker.create_endpoint_config(EndpointConfigName=model, ProductionVariants=[bench.variant(model)])
    sagemaker.create_endpoint(EndpointName=model, EndpointConfigName=model)
    with pytest.raises(WaiterError, match="Waiter encountered a terminal failure state"):
        sagemaker.get_waiter("training_job_completed_or_stopped").wait(TrainingJobName=job, WaiterConfig=FAST)
    with pytest.raises(WaiterError, match="Waiter encountered a terminal failure state"):
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=model, WaiterConfig=FAST)
    with pytest.raises(WaiterError, match="ValidationException"):
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="never-made", WaiterConfig=FAST)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="never-made", WaiterConfig=FAST)
    sagemaker.delete_endpoint(EndpointName=model)


def _ask(runtime: Any, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = runtime.invoke_endpoint(EndpointName=endpoint, Body=json.dumps(body), ContentType="application/json")
    found: dict[str, Any] = json.loads(answer["Body"].read())
    return found
