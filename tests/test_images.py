"""Image URIs are those of the SageMaker SDK, in every region, without importing it."""

from __future__ import annotations

import json
import warnings
from importlib import resources

import pytest

from llmtuner_kit import images
from llmtuner_kit.errors import SettingsError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK's imports warn about each other
    from sagemaker.core import image_uris

_SDK = {
    "training": ("huggingface", "5.3.0", "pytorch2.9.0", "training"),
    "vllm": ("vllm", "0.30.0", None, "inference"),
    "transformers": ("huggingface", "5.5.3", "pytorch2.6.0", "inference"),
}


@pytest.mark.parametrize("kind", list(_SDK))
def test_every_region_has_the_uri_of_the_sdk(kind: str) -> None:
    framework, version, base, scope = _SDK[kind]
    names = {"framework": framework, "version": version, "image_scope": scope, "instance_type": "ml.g5.xlarge"}
    if base:
        names |= {"base_framework_version": base, "py_version": "py312"}
    known = images.regions(kind)
    assert len(known) > 25
    for region in known:
        uri = images.training_image(region) if kind == "training" else images._image(kind, region).uri
        assert uri == image_uris.retrieve(region=region, **names), region


def test_serving_images_name_a_host_image_aws_knows() -> None:
    data = resources.files("botocore.data").joinpath("sagemaker/2017-07-24/service-2.json")
    try:
        model = json.loads(data.read_text())
    except FileNotFoundError:
        import gzip

        packed = resources.files("botocore.data").joinpath("sagemaker/2017-07-24/service-2.json.gz")
        model = json.loads(gzip.decompress(packed.read_bytes()))
    known = set(model["shapes"]["ProductionVariantInferenceAmiVersion"]["enum"])
    assert {images.serving_image(family, "eu-west-1").ami for family in ("causal", "seq2seq")} <= known


def test_region_without_an_image_is_named_with_those_that_have_one() -> None:
    with pytest.raises(SettingsError, match="moon-north-1") as caught:
        images.training_image("moon-north-1")
    assert "us-east-1" in caught.value.valid
