"""Deploy requests: what the serving images are told is what they understand."""

from __future__ import annotations

import json
from pathlib import Path

import botocore.session
import pytest
from botocore.validate import ParamValidator

from llmtuner_kit import catalog, hosting
from llmtuner_kit.settings import DeploySettings

IMAGE = json.loads(Path(__file__).with_name("vllm_image.json").read_text())
CAUSAL = [model for model in catalog.BASE_MODELS if model.family == "causal"]
SEQ2SEQ = [model for model in catalog.BASE_MODELS if model.family == "seq2seq"]


def takes(kind: str | list[str], value: str) -> bool:
    """Whether an option of this kind takes the value."""
    if isinstance(kind, list):
        return value in kind
    if kind == "positive integer":
        return value.isdecimal() and int(value) > 0
    if kind == "share":
        return 0 < float(value) <= 1
    return value in ("true", "false") if kind == "flag" else bool(value)


@pytest.mark.parametrize("model", CAUSAL, ids=lambda model: model.model_id)
def test_vllm_is_told_only_what_it_understands_and_all_it_needs(model: catalog.BaseModel) -> None:
    instance = catalog.instance(model.instance)
    environment = hosting.serving_environment(model, instance)
    options = {}
    for name, value in environment.items():
        assert name.startswith(IMAGE["prefix"])
        options[name.removeprefix(IMAGE["prefix"]).lower().replace("_", "-")] = value
    assert set(options) <= set(IMAGE["options"])
    for name, value in options.items():
        assert takes(IMAGE["options"][name], value), (name, value)
    assert options["model"] == IMAGE["model_folder"]
    # The name that inference.body asks for, and the type the archive is written in.
    assert options["served-model-name"] == "tuned"
    assert options["dtype"] == "bfloat16"
    assert int(options["max-model-len"]) <= model.context
    gpus = int(options["tensor-parallel-size"])
    assert gpus <= max(1, instance.gpus)
    assert model.heads % gpus == 0


@pytest.mark.parametrize("model", SEQ2SEQ, ids=lambda model: model.model_id)
def test_the_hugging_face_image_is_told_to_run_the_archives_handler(model: catalog.BaseModel) -> None:
    environment = hosting.serving_environment(model, catalog.instance(model.instance))
    assert environment["SAGEMAKER_PROGRAM"] == "inference.py"
    # One worker: each would load a copy of the model.
    assert environment["SAGEMAKER_MODEL_SERVER_WORKERS"] == "1"


@pytest.mark.parametrize("vpc", [{}, {"subnets": "subnet-0a1b2c3d", "security_groups": "sg-0a1b2c3d,sg-0a1b2c3e"}])
def test_a_model_is_in_the_vpc_of_the_settings_or_in_none(vpc: dict[str, str]) -> None:
    asked = DeploySettings(instance_type="ml.g5.2xlarge", **vpc)
    role = "arn:aws:iam::000000000000:role/llmtuner-execution"
    model = catalog.base_model("llama-2-7b")
    request = hosting.model_request("demo", model, asked, "image", "s3://bucket/model.tar.gz", role, [])
    expected = {"SecurityGroupIds": ["sg-0a1b2c3d", "sg-0a1b2c3e"], "Subnets": ["subnet-0a1b2c3d"]} if vpc else None
    assert request.get("VpcConfig") == expected
    shape = botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateModel").input_shape
    assert not ParamValidator().validate(request, shape).has_errors()
