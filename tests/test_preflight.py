"""The doctor asks for every quota a run may need, and only a missing training quota stops it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmtuner_kit import catalog, preflight, rehearsals
from llmtuner_kit.aws import ClientError
from llmtuner_kit.errors import AccessError, SettingsError
from llmtuner_kit.workspace import Workspace

TRAINING, ENDPOINT = "ml.g5.xlarge for training job usage", "ml.g5.xlarge for endpoint usage"
PROCESSING = "ml.m5.2xlarge for processing job usage"


def account(quotas: dict[str, float] | Exception) -> Workspace:
    """A workspace on AWS whose Service Quotas list these quotas, or refuse."""

    def pages(**request: str) -> list[dict[str, Any]]:
        assert request == {"ServiceCode": "sagemaker"}
        if isinstance(quotas, Exception):
            raise quotas
        return [{"Quotas": [{"QuotaName": name, "Value": value}]} for name, value in quotas.items()]

    client = SimpleNamespace(get_paginator=lambda _: SimpleNamespace(paginate=pages))
    return cast(Workspace, SimpleNamespace(aws=SimpleNamespace(charged=True, client=lambda _: client)))


@pytest.mark.parametrize(("missing", "level"), [(TRAINING, "problem"), (ENDPOINT, "warning"), (PROCESSING, "warning")])
def test_a_quota_of_zero_is_named_with_what_to_ask_for(missing: str, level: str) -> None:
    values = {TRAINING: 2.0, ENDPOINT: 1.0, PROCESSING: 4.0} | {missing: 0.0}
    found = preflight._quotas(account(values), "ml.g5.xlarge")
    assert {item.text.split(":")[0]: item.level for item in found} == {
        name: level if name == missing else "ok" for name in values
    }
    (bad,) = [item for item in found if item.level != "ok"]
    assert f"ask for one '{missing}' in Service Quotas" in bad.fix


def test_a_quota_that_aws_does_not_list_is_a_warning() -> None:
    found = preflight._quotas(account({TRAINING: 1.0}), "ml.g5.xlarge")
    assert [item.level for item in found] == ["ok", "warning", "warning"]
    assert PROCESSING in found[-1].text


def test_an_account_that_may_not_ask_is_told_what_to_look_for() -> None:
    (found,) = preflight._quotas(account(AccessError("not allowed")), "ml.g5.xlarge")
    assert found.level == "warning"
    assert all(name in found.fix for name in (TRAINING, ENDPOINT, PROCESSING))


@pytest.mark.parametrize(
    ("user", "charged", "warned"), [("sagemaker-user", True, 1), ("ada", True, 0), ("root", False, 0)]
)
def test_a_login_name_that_everybody_has_is_no_name_in_a_shared_account(user: str, charged: bool, warned: int) -> None:
    found = preflight._user(cast(Workspace, SimpleNamespace(aws=SimpleNamespace(charged=charged), user_id=user)))
    assert [item.level for item in found] == ["warning"] * warned
    assert all("set user_id" in item.fix for item in found)


def test_the_users_own_role_is_as_good_as_the_shared_one() -> None:
    def get_role(RoleName: str) -> dict[str, Any]:  # noqa: N803
        if RoleName != "llmtuner-execution-ada":
            raise ClientError({"Error": {"Code": "NoSuchEntity"}}, "GetRole")
        return {"Role": {"Arn": f"arn:aws:iam::123456789012:role/{RoleName}"}}

    aws = SimpleNamespace(account_id="123456789012", client=lambda _: SimpleNamespace(get_role=get_role))
    found = preflight._role(cast(Workspace, SimpleNamespace(aws=aws, user_id="ada")))
    assert (found.level, found.text) == ("ok", "arn:aws:iam::123456789012:role/llmtuner-execution-ada")
    assert preflight._role(cast(Workspace, SimpleNamespace(aws=aws, user_id="bob"))).level == "problem"


@pytest.mark.parametrize(
    ("model_id", "target", "gpu", "levels"),
    [
        ("llama-2-7b", "local", False, ["warning"]),
        ("llama-2-7b", "local-docker", True, ["warning"]),
        ("llama-2-7b", "aws", False, []),
        ("llama-2-7b", "local", True, []),
        ("smollm2-135m-instruct", "local", False, ["ok"]),
    ],
)
def test_what_needs_a_gpu_is_not_rehearsed_without_one_unawares(
    model_id: str, target: str, gpu: bool, levels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsals, "_GPUS", (str(tmp_path if gpu else tmp_path / "none"),))
    where = SimpleNamespace(aws=SimpleNamespace(target=target))
    found = preflight._machine(cast(Workspace, where), catalog.base_model(model_id))
    assert [item.level for item in found] == levels
    assert all("qlora" in item.text for item in found)
    for item in found if levels == ["warning"] else ():
        assert "weights alone take 13.5 of" in item.text
        assert "smollm2-135m-instruct" in item.fix
    if levels:
        with pytest.raises(SettingsError, match="'qlora' needs an NVIDIA GPU") as caught:
            rehearsals.require_possible(target, "qlora")
        assert "set method to 'lora'" in caught.value.fix
    else:
        rehearsals.require_possible(target, "qlora")
    rehearsals.require_possible(target, "lora")
