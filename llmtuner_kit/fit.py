"""Does it fit, how fast will it be: a memory and speed model of LoRA training, stated and simple.

Memory (bytes): base weights (2 a parameter; 0.56 in 4-bit) + adapter (16 a parameter: fp32 weights, gradient, two
Adam moments) + activations of one micro-batch with checkpointing (per token: one hidden state of 2 bytes a layer,
one layer in full) + logits of the micro-batch (4 bytes, twice) + a fixed overhead of CUDA and its allocator.
Full tuning: 2 + 2 + 12 bytes a parameter in place of weights and adapter.

Speed: 4 N floating point operations a token with a frozen base (forward 2 N, gradient of activations 2 N), 6 N in
full tuning, at a share of the GPU's dense bf16 peak. The share is given as a range, since it is modelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmtuner_kit.catalog import INSTANCES, BaseModel, Instance

GB = 1e9
OVERHEAD_GB = 1.6
# Share of the dense peak that LoRA training reaches: published figures for 7B models lie between these.
UTILISATION = (0.18, 0.5)
# Small models are bound by kernel launches, not by arithmetic.
MOST_TOKENS_PER_SECOND = 40_000.0
SHORTEST_MICRO_BATCH = 512


@dataclass(frozen=True)
class Fit:
    """Whether a job fits one GPU of an instance.

    Attributes:
        needed_gb, available_gb: memory of one GPU in 10^9 bytes.
        why: one sentence.
        cheaper: the smallest instance type that fits, when this one does not or is larger than needed.
    """

    fits: bool
    needed_gb: float
    available_gb: float
    why: str
    smallest: str


def adapter_parameters(model: BaseModel, rank: int) -> int:
    """Weights of a LoRA adapter on all linear layers."""
    attention = model.head_size * model.heads
    kv = model.head_size * model.kv_heads
    per_block = rank * (2 * (model.hidden + attention) + 2 * (model.hidden + kv))
    layer = per_block + rank * 3 * (model.hidden + model.intermediate)
    blocks = 2 * layer + per_block if model.family == "seq2seq" else layer
    return blocks * model.decoder_layers


def training_memory_gb(model: BaseModel, method: str, rank: int, micro_tokens: int) -> float:
    """Peak memory of one GPU in GB for a micro-batch of `micro_tokens` tokens."""
    if method == "full":
        weights = 16.0 * model.parameters
    else:
        base = 0.56 if method == "qlora" else 2.0
        weights = base * model.parameters + 16.0 * adapter_parameters(model, rank)
    layers = model.decoder_layers * (2 if model.family == "seq2seq" else 1)
    states = micro_tokens * model.hidden * 2.0 * layers
    one_layer = micro_tokens * (8 * model.hidden + 4 * model.intermediate) * 2.0
    logits = micro_tokens * model.vocabulary * 8.0
    return (weights + states + one_layer + logits) / GB + OVERHEAD_GB


def check(model: BaseModel, instance: Instance, *, method: str, rank: int, max_length: int) -> Fit:
    """Does one row of the longest length fit a GPU of this instance, with a tenth to spare?"""
    tokens = max(SHORTEST_MICRO_BATCH, max_length)
    needed = training_memory_gb(model, method, rank, tokens)
    usable = instance.gpu_memory_gb * 1.024 * 0.9  # a label of 24 GB is 24 GiB less what the driver keeps
    fits = needed <= usable and (instance.bf16_tflops > 0 or model.parameters < 500_000_000)
    smallest = smallest_instance(model, method=method, rank=rank, max_length=max_length)
    if instance.bf16_tflops == 0 and not fits:
        why = f"{instance.gpu} has no bf16; choose a g5 or newer"
    elif fits:
        why = f"about {needed:.1f} of {usable:.0f} GB on each {instance.gpu}"
    else:
        why = f"about {needed:.1f} GB needed, {usable:.0f} GB usable on each {instance.gpu}"
    return Fit(fits, needed, usable, why, smallest)


def smallest_instance(model: BaseModel, *, method: str, rank: int, max_length: int) -> str:
    """The instance type with the least hardware that fits, in the order of the catalogue; empty when none does."""
    tokens = max(SHORTEST_MICRO_BATCH, max_length)
    needed = training_memory_gb(model, method, rank, tokens)
    for item in sorted(INSTANCES, key=lambda item: (item.gpus, item.gpu_memory_gb * item.gpus, item.vcpus)):
        if item.bf16_tflops and needed <= item.gpu_memory_gb * 1.024 * 0.9:
            return item.instance_type
    return ""


def tokens_per_second(model: BaseModel, instance: Instance, *, method: str, count: int = 1) -> tuple[float, float]:
    """Modelled training speed as a range (slow, fast), all GPUs of all instances together."""
    operations = (6.0 if method == "full" else 4.0) * model.parameters
    peak = (instance.bf16_tflops or 30.0) * 1e12
    gpus = instance.gpus * count
    slow, fast = (min(peak * share / operations, MOST_TOKENS_PER_SECOND * (0.25 + share)) for share in UTILISATION)
    # Several GPUs exchange gradients of the adapter only; a fifth is a cautious loss.
    scale = gpus if gpus == 1 else gpus * 0.8
    return slow * scale, fast * scale
