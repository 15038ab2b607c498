"""The guard, and deleting and scaling where AWS refuses a part of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_account import Clients, account, endpoint, refused

from llmtuner_kit import access, autoscaling, endpoints, receipts
from llmtuner_kit.errors import AccessError, DataError, NotReadyError
from llmtuner_kit.settings import DeploySettings


def test_the_guard_deletes_all_it_can_and_says_what_still_costs_money() -> None:
    def delete(EndpointName: str) -> Any:  # noqa: N803
        return refused("ValidationException", "Cannot update in-progress endpoint") if EndpointName == "busy" else {}

    clients = account(endpoint("busy", "Creating"), endpoint("idle"), delete_endpoint=delete)
    with pytest.raises(NotReadyError, match=r"busy \(Creating\): Cannot update in-progress") as caught:
        endpoints.delete_expired(clients.workspace)
    assert "Deleted: idle." in caught.value.problem


def test_the_guard_leaves_what_is_not_over_and_what_is_being_deleted() -> None:
    assert endpoints.delete_expired(account(endpoint("young"), over=False).workspace) == []
    going = account(endpoint("going", "Deleting"))
    assert endpoints.delete_expired(going.workspace) == []
    assert "delete_endpoint" not in going.operations()


@pytest.mark.parametrize("error", [refused("ValidationException", "Could not find endpoint"), AccessError("denied")])
def test_two_guards_at_once_delete_all_and_neither_says_that_it_still_costs_money(error: Exception) -> None:
    looks: list[str] = []

    def describe(EndpointName: str) -> Any:  # noqa: N803
        looks.append(EndpointName)
        return endpoint("lamp") if len(looks) < 3 else refused("ValidationException")

    clients = account(endpoint("lamp"), describe_endpoint=describe, delete_endpoint=error)
    assert endpoints.delete_expired(clients.workspace) == []
    assert "delete_endpoint" in clients.operations()


@pytest.mark.parametrize(("end", "deleted"), [("never", []), ("", []), ("2026-01-01", ["lamp"])])
def test_a_tag_that_was_edited_by_hand_keeps_no_other_endpoint_alive(end: str, deleted: list[str]) -> None:
    def tags(ResourceArn: str) -> Any:  # noqa: N803
        until = {"arn:lamp": end}.get(ResourceArn, "2026-01-01T00:00:00+00:00")
        found = {access.OWNER_TAG: "ada", endpoints.EXPIRES_TAG: until}
        return {"Tags": [{"Key": key, "Value": value} for key, value in found.items()]}

    clients = account(endpoint("lamp"), endpoint("other"), list_tags=tags)
    assert endpoints.delete_expired(clients.workspace) == [*deleted, "other"]
    (lamp, _) = endpoints.list_own(clients.workspace)
    assert lamp.expired == bool(deleted)


def test_the_guard_needs_no_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTUNER_CACHE", str(tmp_path))
    (tmp_path / "prices.json").write_text("{")
    clients = account(endpoint("lamp"))
    assert endpoints.delete_expired(clients.workspace) == ["lamp"]
    with pytest.raises(DataError, match="price book"):
        endpoints.list_own(clients.workspace)


def test_a_clock_that_is_behind_costs_no_negative_money() -> None:
    early = endpoint("lamp") | {"CreationTime": datetime.now(UTC) + timedelta(minutes=4)}
    (seen,) = endpoints.list_own(account(early).workspace)
    assert seen.cost_usd == 0


def test_an_endpoint_that_failed_costs_nothing_from_then_on() -> None:
    begun = datetime.now(UTC) - timedelta(hours=10)
    failed = endpoint("lamp", "Failed", instances=0)
    failed |= {"CreationTime": begun, "LastModifiedTime": begun + timedelta(minutes=6)}
    clients = account(failed)
    (seen,) = endpoints.list_own(clients.workspace)
    assert seen.usd_per_hour is not None
    assert seen.cost_usd == pytest.approx(seen.usd_per_hour / 10)
    noted = {
        "endpoint_name": "lamp", "created_at": begun.isoformat(), "expires_at": datetime.now(UTC).isoformat(),
        "instance_type": "ml.g5.xlarge", "quote": {"usd_until_expiry": 2.0},
    }  # fmt: skip
    line = receipts._endpoint_line(clients.workspace, noted)
    assert (line.what, line.seconds) == ("endpoint lamp (failed)", 360.0)


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
