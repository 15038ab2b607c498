"""Deploying where AWS answers late, and endpoints whose deployment was interrupted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_account import Answers, account, endpoint, refused

from llmtuner_kit import access, deployments
from llmtuner_kit.errors import ConflictError
from llmtuner_kit.runs import Run
from llmtuner_kit.settings import DeploySettings


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
        deployments.adopt(clients.workspace, cast(Run, run), "lamp")
    deployments.adopt(clients.workspace, cast(Run, run), "none of this name")
    assert len(notes) == adopted
    for facts in notes.values():
        assert (facts["endpoint_name"], facts["instance_type"]) == ("lamp", "ml.g5.xlarge")
        assert facts["quote"]["usd_until_expiry"] == pytest.approx(facts["quote"]["usd_per_hour"], rel=0.01)


@pytest.mark.parametrize("config", ["config", "another"])
def test_an_endpoint_whose_creation_was_answered_too_late_is_taken_over_and_nobody_elses(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client repeats a request whose answer was lost, and hears that the endpoint is there."""
    known = iter([refused("ValidationException"), endpoint("lamp", "Creating")])
    there = refused("ValidationException", 'Cannot create already existing endpoint "arn".')
    clients = account(describe_endpoint=lambda **_: next(known), create_endpoint=there)
    for name in ("model_request", "endpoint_config_request"):
        monkeypatch.setattr(deployments, name, lambda *_: {})
    monkeypatch.setattr(access, "execution_role", lambda *_: "role")
    monkeypatch.setattr(deployments.images, "serving_image", lambda *_: SimpleNamespace(uri="image", ami=""))
    model = SimpleNamespace(family="causal")
    asked = (clients.workspace, DeploySettings(), cast(Any, model), "job", "lamp", config, [])
    if config == "config":
        assert deployments._create(*asked) == ("arn:lamp", True)
    else:
        with pytest.raises(ConflictError, match="'lamp' is taken"):
            deployments._create(*asked)


@pytest.mark.parametrize("status", ["Deleting", "Failed"])
def test_an_endpoint_that_is_going_is_waited_for_and_one_that_failed_deleted(status: str) -> None:
    clients = account(endpoint("lamp", status))
    with pytest.raises(ConflictError, match=f"that endpoint is {status}") as caught:
        deployments._create(clients.workspace, DeploySettings(), cast(Any, None), "job", "lamp", "config", [])
    assert ("08_cleanup" in caught.value.fix) == (status == "Failed")
