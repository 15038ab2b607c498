"""The guard, and deleting and scaling where AWS refuses a part of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmtuner_kit import access, autoscaling, endpoints
from llmtuner_kit.aws import Aws, ClientError
from llmtuner_kit.errors import AccessError, ConflictError, NotReadyError
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import DeploySettings
from llmtuner_kit.workspace import Workspace

Answers = dict[str, Any]


def refused(code: str, message: str = "why") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "Operation")


class Clients:
    """Every client of a workspace: answers by operation, as given, or with an empty answer; remembers what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, list[tuple[str, Answers]]()

    def __getattr__(self, operation: str) -> Any:
        def call(**request: Any) -> Any:
            self.asked.append((operation, request))
            found = self.answers.get(operation, {})
            if callable(found):
                found = found(**request)
            if isinstance(found, Exception):
                raise found
            return found

        return call

    def get_paginator(self, operation: str) -> Any:
        return SimpleNamespace(paginate=lambda **request: (ask(**request) for ask in [getattr(self, operation)]))

    @property
    def workspace(self) -> Workspace:
        aws = SimpleNamespace(client=lambda _: self, region="us-east-1", charged=True)
        return Workspace(cast(Aws, aws), "bucket", "ada")

    def operations(self) -> list[str]:
        return [name for name, _ in self.asked]


def endpoint(name: str, status: str = "InService", *, instances: int = 1) -> Answers:
    variant = {"VariantName": "AllTraffic", "CurrentInstanceCount": instances, "DesiredInstanceCount": instances}
    return {
        "EndpointName": name, "EndpointArn": f"arn:{name}", "EndpointStatus": status, "EndpointConfigName": "config",
        "CreationTime": datetime.now(UTC), "ProductionVariants": [variant],
    }  # fmt: skip


def account(*found: Answers, over: bool = True, **answers: Any) -> Clients:
    """An account with these endpoints, all of user ada."""
    expires = datetime.now(UTC) + timedelta(hours=-1 if over else 1)
    tags = {access.OWNER_TAG: "ada", endpoints.EXPIRES_TAG: expires.isoformat()}
    named = {item["EndpointName"]: item for item in found}
    known = {
        "list_endpoints": {"Endpoints": list(found)},
        "list_tags": {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]},
        "describe_endpoint": lambda EndpointName: named.get(EndpointName, refused("ValidationException")),  # noqa: N803
        "describe_endpoint_config": {"ProductionVariants": [{"InstanceType": "ml.g5.xlarge"}]},
    }
    return Clients(**known | answers)


def test_the_guard_deletes_all_it_can_and_says_what_still_costs_money() -> None:
    def delete(EndpointName: str) -> Any:  # noqa: N803
        return refused("ValidationException", "Cannot update in-progress endpoint") if EndpointName == "busy" else {}

    clients = account(endpoint("busy", "Creating"), endpoint("idle"), delete_endpoint=delete)
    with pytest.raises(NotReadyError, match=r"busy \(Creating\): Cannot update in-progress") as caught:
        endpoints.delete_expired(clients.workspace)
    assert "Deleted: idle." in caught.value.problem


@pytest.mark.parametrize(
    ("run_name", "status", "adopted"), [("mine", "Creating", 1), ("another", "InService", 0), ("mine", "Deleting", 0)]
)
def test_an_endpoint_whose_deployment_was_interrupted_belongs_to_its_run(
    run_name: str, status: str, adopted: int
) -> None:
    clients = account(endpoint("lamp", status), over=False)
    clients.answers["list_tags"]["Tags"].append({"Key": access.RUN_TAG, "Value": run_name})
    notes: dict[str, Answers] = {}
    run = SimpleNamespace(
        name="mine", noted=lambda _: notes, note=lambda _, name, facts: notes.setdefault(name, {}).update(facts)
    )
    for _ in range(2):
        endpoints.adopt(clients.workspace, cast(Run, run), "lamp")
    endpoints.adopt(clients.workspace, cast(Run, run), "none of this name")
    assert len(notes) == adopted
    for facts in notes.values():
        assert (facts["endpoint_name"], facts["instance_type"]) == ("lamp", "ml.g5.xlarge")
        assert facts["quote"]["usd_until_expiry"] == pytest.approx(facts["quote"]["usd_per_hour"], rel=0.01)


def test_the_guard_leaves_what_is_not_over_and_what_is_being_deleted() -> None:
    assert endpoints.delete_expired(account(endpoint("young"), over=False).workspace) == []
    going = account(endpoint("going", "Deleting"))
    assert endpoints.delete_expired(going.workspace) == []
    assert "delete_endpoint" not in going.operations()


def test_an_endpoint_that_ends_while_the_account_is_listed_is_no_error() -> None:
    gone = refused("ValidationException", "Could not find resource arn:gone.")
    assert endpoints.list_own(account(endpoint("gone"), list_tags=gone).workspace) == []


def test_two_parts_that_may_not_be_deleted_or_are_gone_keep_no_endpoint_alive() -> None:
    clients = account(
        endpoint("lamp"),
        deregister_scalable_target=refused("ObjectNotFoundException"),
        delete_endpoint_config=AccessError("denied"),
        delete_model=AccessError("denied"),
    )
    assert endpoints.delete(clients.workspace, "lamp").removed == ("endpoint lamp",)
    assert clients.operations()[-3:] == ["delete_endpoint", "delete_endpoint_config", "delete_model"]


@pytest.mark.parametrize("config", ["config", "another"])
def test_an_endpoint_whose_creation_was_answered_too_late_is_taken_over_and_nobody_elses(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client repeats a request whose answer was lost, and hears that the endpoint is there."""
    known = iter([refused("ValidationException"), endpoint("lamp", "Creating")])
    there = refused("ValidationException", 'Cannot create already existing endpoint "arn".')
    clients = account(describe_endpoint=lambda **_: next(known), create_endpoint=there)
    for name in ("model_request", "endpoint_config_request"):
        monkeypatch.setattr(endpoints, name, lambda *_: {})
    monkeypatch.setattr(access, "execution_role", lambda *_: "role")
    monkeypatch.setattr(endpoints.images, "serving_image", lambda *_: SimpleNamespace(uri="image", ami=""))
    model = SimpleNamespace(family="causal")
    asked = (clients.workspace, DeploySettings(), cast(Any, model), "job", "lamp", config, [])
    if config == "config":
        assert endpoints._create(*asked) == ("arn:lamp", True)
    else:
        with pytest.raises(ConflictError, match="'lamp' is taken"):
            endpoints._create(*asked)


@pytest.mark.parametrize("status", ["Deleting", "Failed"])
def test_an_endpoint_that_is_going_is_waited_for_and_one_that_failed_deleted(status: str) -> None:
    clients = account(endpoint("lamp", status))
    with pytest.raises(ConflictError, match=f"that endpoint is {status}") as caught:
        endpoints._create(clients.workspace, DeploySettings(), cast(Any, None), "job", "lamp", "config", [])
    assert ("08_cleanup" in caught.value.fix) == (status == "Failed")


@pytest.mark.parametrize("error", [refused("ValidationException", "not in service"), AccessError("denied")])
def test_autoscaling_that_cannot_be_set_says_why_and_what_to_run(error: Exception) -> None:
    told = autoscaling.follow_load(Clients(put_scaling_policy=error).workspace, DeploySettings(max_instances=3), "lamp")
    assert told.startswith("not set; run 06_deploy again once the endpoint is in service. ")
    assert "not in service" in told or "AccessError: denied" in told


def test_an_endpoint_that_was_scaled_up_comes_back_before_scaling_is_switched_off() -> None:
    clients = account(endpoint("lamp", instances=3))
    assert autoscaling.stay(clients.workspace, DeploySettings(), "lamp") == "off"
    (_, (update, request), (deregister, _)) = clients.asked
    assert (update, deregister) == ("update_endpoint_weights_and_capacities", "deregister_scalable_target")
    assert request["DesiredWeightsAndCapacities"] == [{"VariantName": "AllTraffic", "DesiredInstanceCount": 1}]


def test_an_endpoint_that_never_was_scaled_is_left_as_it_is() -> None:
    clients = account(endpoint("lamp"), deregister_scalable_target=refused("ObjectNotFoundException"))
    assert autoscaling.stay(clients.workspace, DeploySettings(), "lamp") == "off"
    assert "update_endpoint_weights_and_capacities" not in clients.operations()


def test_scaling_that_cannot_be_switched_off_is_not_called_off() -> None:
    clients = account(endpoint("lamp"), deregister_scalable_target=AccessError("denied"))
    assert autoscaling.stay(clients.workspace, DeploySettings(), "lamp").startswith("not switched off")


def test_looks_at_an_endpoint_are_seconds_apart_where_an_account_has_request_rates() -> None:
    states = iter(["Creating", "Creating", "InService"])
    clients = account(endpoint("lamp"), describe_endpoint=lambda **_: endpoint("lamp", next(states)))
    waits: list[float] = []
    *_, last = endpoints.watch(clients.workspace, "lamp", sleep=waits.append)
    assert last.ready
    assert waits == [5.0, 5.0]
