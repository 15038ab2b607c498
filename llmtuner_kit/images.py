"""Container images, from the SageMaker SDK's own tables.

The SDK takes seconds to import, so it is imported here and only when an image is asked for.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

from llmtuner_kit.catalog import Family

TRAINING = {
    "framework": "huggingface",
    "version": "5.3.0",
    "base_framework_version": "pytorch2.9.0",
    "py_version": "py312",
}
VLLM = {"framework": "vllm", "version": "0.30.0"}
TRANSFORMERS = {
    "framework": "huggingface",
    "version": "5.5.3",
    "base_framework_version": "pytorch2.6.0",
    "py_version": "py312",
}


@lru_cache(maxsize=64)
def _retrieve(region: str, instance_type: str, scope: str, names: tuple[tuple[str, str], ...]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the SDK's own imports warn about themselves
        from sagemaker.core import image_uris

        return str(image_uris.retrieve(region=region, instance_type=instance_type, image_scope=scope, **dict(names)))


def training_image(region: str, instance_type: str) -> str:
    """The Hugging Face PyTorch training image of a region."""
    return _retrieve(region, instance_type, "training", tuple(TRAINING.items()))


def serving_image(family: Family, region: str, instance_type: str) -> str:
    """vLLM for decoder models, the Hugging Face inference image (with code/inference.py) for encoder-decoders."""
    names = VLLM if family == "causal" else TRANSFORMERS
    return _retrieve(region, instance_type, "inference", tuple(names.items()))
