"""Settings: one source of fields and limits, all problems at once."""

from __future__ import annotations

import re

import pytest

from llmtuner_kit import settings
from llmtuner_kit.errors import SettingsError


def test_every_field_has_a_default_and_a_help_text() -> None:
    for step, model in settings.STEPS.items():
        model()
        for name, field in model.model_fields.items():
            assert field.description, f"{step}.{name} has no help"
            assert not field.is_required(), f"{step}.{name} has no default"


def test_defaults_are_json_so_that_papermill_can_write_them() -> None:
    for model in settings.STEPS.values():
        for value in model().model_dump().values():
            assert isinstance(value, str | int | float | bool)


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load("train", {"epochs": -1, "model_id": "llama-9", "no_such": 1, "run_name": "Not Good"})
    text = caught.value.problem
    assert text.startswith("4 settings")
    assert "epochs: must be at least 0.001 (it is -1)" in text
    assert "model_id: 'llama-9' is no base model the kit knows; set model_id to" in text
    assert "no_such: there is no such setting" in text
    assert len(text.splitlines()) == 5
    assert "run_name" in text


def test_a_misspelt_setting_is_answered_with_the_one_that_is_meant() -> None:
    with pytest.raises(SettingsError, match=r"epochz: there is no such setting; did you mean epochs\?"):
        settings.load("train", {"epochz": 2})


def test_unknown_step_names_the_steps() -> None:
    with pytest.raises(SettingsError, match="cleanup"):
        settings.load("trian", {})


@pytest.mark.parametrize(
    ("step", "values", "field"),
    [
        ("deploy", {"min_instances": 3, "max_instances": 2}, "max_instances"),
        ("train", {"method": "full", "lora_dropout": 0.1}, "lora_dropout"),
        ("train", {"instance_type": "ml.g5.huge"}, "ml.g5.xlarge"),
        ("upload", {"dataset": "../other"}, "dataset"),
        ("start", {"user_id": "me/you"}, "user_id"),
        ("start", {"bucket": "Has.Dots"}, "bucket"),
        ("start", {"target": "moon"}, "target"),
        ("start", {"model_id": ""}, "No base model is named"),
    ],
)
def test_what_does_not_hold_is_named(step: str, values: dict[str, object], field: str) -> None:
    with pytest.raises(SettingsError, match=field):
        settings.load(step, values)


def test_model_can_be_named_as_on_the_hub() -> None:
    assert settings.load("train", {"model_id": "google/flan-t5-xl"}).model_id == "flan-t5-xl"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("step", "name"), [("train", "model_id"), ("train", "instance_type"), ("deploy", "instance_type")]
)
def test_what_can_be_chosen_is_accepted_by_the_settings(step: str, name: str) -> None:
    offered = settings.values_of(settings.STEPS[step].model_fields[name])
    assert offered
    for value in offered:
        settings.load(step, {name: value})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"subnets": "subnet-0a1b2c3d"}, "subnets and security_groups belong together"),
        ({"subnets": "subnet-0a1b2c3d,eu-west-1a", "security_groups": "sg-0a1b2c3d"}, "'eu-west-1a' is no id of EC2"),
        ({"subnets": "subnet-0a1b2c3d", "security_groups": "default"}, "'default' is no id of EC2; valid: such as sg-"),
    ],
)
@pytest.mark.parametrize("step", ["prepare", "train", "deploy"])
def test_a_vpc_is_named_by_ids_of_both_kinds(step: str, given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        settings.load(step, given)
