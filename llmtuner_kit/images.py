"""Container images: which image trains and which serves, per region.

The tables are the SageMaker SDK's own, kept in data/images.json because importing the SDK takes seconds; a test
compares every image and region with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from llmtuner_kit.catalog import Family
from llmtuner_kit.errors import SettingsError

_CHINA = "cn-"


@dataclass(frozen=True)
class Image:
    """One image in one region.

    Attributes:
        ami: InferenceAmiVersion of a production variant whose driver runs this image's CUDA; empty for training.
    """

    uri: str
    ami: str = ""


@cache
def _tables() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(
        resources.files("llmtuner_kit.data").joinpath("images.json").read_text()
    )
    return found


def regions(kind: str) -> dict[str, str]:
    """Region -> registry account of one kind of image: training, vllm or transformers."""
    table = _tables()[kind]["regions"]
    assert isinstance(table, dict)
    return {region: account for account, names in table.items() for region in names.split()}


def _image(kind: str, region: str) -> Image:
    known = regions(kind)
    if region not in known:
        raise SettingsError(
            f"AWS has no {kind} image of the kind this kit uses in region {region!r}.",
            valid=", ".join(sorted(known)),
            fix="set region to one of these",
        )
    table = _tables()[kind]
    suffix = "amazonaws.com.cn" if region.startswith(_CHINA) else "amazonaws.com"
    uri = f"{known[region]}.dkr.ecr.{region}.{suffix}/{table['repository']}:{table['tag']}"
    return Image(uri, str(table.get("ami", "")))


def training_image(region: str) -> str:
    """The Hugging Face PyTorch training image of a region; raises SettingsError where AWS has none."""
    return _image("training", region).uri


def serving_image(family: Family, region: str) -> Image:
    """vLLM for decoder models, the Hugging Face inference image (with code/inference.py) for encoder-decoders."""
    return _image("vllm" if family == "causal" else "transformers", region)
