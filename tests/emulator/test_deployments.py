"""UpdateEndpoint's ways of moving traffic: canary, linear, rolling; alarms that take it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from emulator.conftest import Cloud
from emulator.hosting import ask, config, deploy, describe, model, remove, settled, variant
from llmtuner_local.emulator.errors import ServiceError
from llmtuner_local.emulator.operations.deployments import check, shares


def blue_green(kind: str, wait: int, **more: Any) -> dict[str, Any]:
    routing = {"Type": kind, "WaitIntervalInSeconds": wait} | more
    return {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}


def percent(value: int) -> dict[str, Any]:
    return {"Type": "CAPACITY_PERCENT", "Value": value}


@pytest.mark.parametrize(
    ("policy", "instances", "steps"),
    [
        (blue_green("ALL_AT_ONCE", 0), 4, [1.0]),
        (blue_green("CANARY", 0, CanarySize=percent(30)), 4, [0.3, 1.0]),
        (blue_green("CANARY", 0, CanarySize={"Type": "INSTANCE_COUNT", "Value": 1}), 4, [0.25, 1.0]),
        (blue_green("LINEAR", 0, LinearStepSize=percent(40)), 4, [0.4, 0.8, 1.0]),
        (blue_green("LINEAR", 0, LinearStepSize=percent(10)), 4, pytest.approx([n / 10 for n in range(1, 11)])),
    ],
)
def test_traffic_moves_in_the_steps_of_the_policy(policy: dict[str, Any], instances: int, steps: Any) -> None:
    assert shares(policy, instances) == steps


def rolling(size: dict[str, Any]) -> dict[str, Any]:
    return {"RollingUpdatePolicy": {"MaximumBatchSize": size, "WaitIntervalInSeconds": 0}}


@pytest.mark.parametrize(
    ("policy", "lowest", "highest"),
    [
        (rolling, 5, 50),
        (lambda size: blue_green("CANARY", 0, CanarySize=size), 1, 50),
        (lambda size: blue_green("LINEAR", 0, LinearStepSize=size), 10, 50),
    ],
)
def test_sizes_have_bounds_in_percent_and_none_in_instances(
    policy: Callable[[dict[str, Any]], dict[str, Any]], lowest: int, highest: int
) -> None:
    for value in (lowest, highest):
        check(policy(percent(value)))
    for value in (lowest - 1, highest + 1):
        with pytest.raises(
            ServiceError, match=f"between {lowest} and {highest} percent of the capacity; it is {value}"
        ):
            check(policy(percent(value)))
    check(policy({"Type": "INSTANCE_COUNT", "Value": 100}))


def test_policies_that_cannot_be_are_refused(quick: Cloud) -> None:
    name = deploy(quick, variant(model(quick)))
    for policy, words in (
        (blue_green("CANARY", 0), "CanarySize must be specified if"),
        (blue_green("LINEAR", 0, LinearStepSize=percent(60)), "LinearStepSize must be between 10 and 50 percent"),
        (
            blue_green("ALL_AT_ONCE", 0) | rolling(percent(50)),
            "Only one of BlueGreenUpdatePolicy and RollingUpdatePolicy",
        ),
    ):
        with pytest.raises(ClientError, match=words):
            quick.sagemaker.update_endpoint(
                EndpointName=name,
                EndpointConfigName=describe(quick, name)["EndpointConfigName"],
                DeploymentConfig=policy,
            )
    remove(quick, name)


def test_canary_takes_its_share_and_goes_back_when_an_alarm_fires(quick: Cloud) -> None:
    name, alarm = deploy(quick, variant(model(quick, "blue"))), quick.name("alarm")
    quick.cloudwatch.put_metric_alarm(
        AlarmName=alarm, Namespace="test", MetricName=alarm, Statistic="Sum", Period=60, EvaluationPeriods=1,
        Threshold=1, ComparisonOperator="GreaterThanThreshold", TreatMissingData="ignore",
    )  # fmt: skip
    green = config(quick, variant(model(quick, "green")))
    policy = blue_green("CANARY", 3600, CanarySize=percent(25))
    policy |= {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": alarm}]}}
    quick.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=green, DeploymentConfig=policy)
    found = describe(quick, name)
    assert found["PendingDeploymentSummary"]["EndpointConfigName"] == green
    assert found["PendingDeploymentSummary"]["ProductionVariants"][0]["VariantStatus"][0]["Status"] == "Creating"
    quick.until(
        lambda: describe(quick, name)["ProductionVariants"][0]["VariantStatus"][0]["Status"],
        lambda status: status == "Baking",
    )
    assert Counter(ask(quick, name)["env"] for _ in range(40)) == {"blue": 30, "green": 10}
    quick.cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="test")
    found = quick.until(lambda: describe(quick, name), lambda item: item["EndpointStatus"] == "InService")
    assert alarm in found["FailureReason"]
    assert found["EndpointConfigName"] != green
    assert found["LastDeploymentConfig"] == policy
    assert "PendingDeploymentSummary" not in found
    assert {ask(quick, name)["env"] for _ in range(8)} == {"blue"}
    # The same policy again, retained; the alarm is quiet, so green stays, with the weight that the endpoint had.
    quick.cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="OK", StateReason="test")
    linear = blue_green("LINEAR", 0, LinearStepSize=percent(50))
    quick.sagemaker.update_endpoint(
        EndpointName=name, EndpointConfigName=green, DeploymentConfig=linear, RetainAllVariantProperties=True
    )
    found = settled(quick, name)
    assert (found["EndpointStatus"], found["EndpointConfigName"]) == ("InService", green)
    assert "FailureReason" not in found
    assert {ask(quick, name)["env"] for _ in range(4)} == {"green"}
    remove(quick, name)


def test_rolling_update_replaces_instances_in_batches_and_retains_what_is_asked(quick: Cloud) -> None:
    name = deploy(quick, variant(model(quick, "blue"), instances=1))
    quick.sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=name, DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic", "DesiredInstanceCount": 2}]
    )
    settled(quick, name)
    green = config(quick, variant(model(quick, "green"), instances=1))
    policy = {"RollingUpdatePolicy": {"MaximumBatchSize": percent(50), "WaitIntervalInSeconds": 1}}
    quick.sagemaker.update_endpoint(
        EndpointName=name, EndpointConfigName=green, DeploymentConfig=policy, RetainAllVariantProperties=True,
        ExcludeRetainedVariantProperties=[{"VariantPropertyType": "DesiredWeight"}],
    )  # fmt: skip
    seen = set()
    while describe(quick, name)["EndpointStatus"] == "Updating":
        seen.add(frozenset(ask(quick, name)["env"] for _ in range(4)))
    assert frozenset({"blue", "green"}) in seen
    (found,) = settled(quick, name)["ProductionVariants"]
    assert found["CurrentInstanceCount"] == found["DesiredInstanceCount"] == 2
    assert {ask(quick, name)["env"] for _ in range(4)} == {"green"}
    remove(quick, name)
