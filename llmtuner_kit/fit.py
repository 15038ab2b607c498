"""Does it fit, how fast will it be: the memory and speed of a fine-tune, from a model's sizes alone.

Memory is the arithmetic by which the training container plans its passes (train_src/memory.py; a test keeps the two
equal), so what is promised here is what the job will do: weights, gradients, optimizer, activations of one pass, one
chunk of logits, and what CUDA itself takes. Each GPU has a whole copy of the model where it fits; where it does not,
several GPUs spread one between them (FSDP2), two layers and the embeddings made whole at a time.

Speed is modelled: floating point operations of a token (2 a weight forwards, 2 for the gradient of activations, 2 for
the gradient of weights where they are trained, 2 more where activations are computed again) at a share of the GPU's
dense bf16 peak. The share is a range, because it is a model and no measurement.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from llmtuner_kit.catalog import INSTANCES, BaseModel, Instance

GB = 1e9
# Share of the dense peak that fine-tuning reaches: published figures for 1B to 13B models lie between these, and 0.55 is
# what train.py reached with 7B on an H200 (tests/benchmarks/train_gpu.py).
UTILISATION = (0.18, 0.55)
# Small models are bound by kernel launches, not by arithmetic; tokens per second of one GPU.
MOST_TOKENS_PER_SECOND = (17_000.0, 30_000.0)
# Several GPUs exchange gradients; a fifth is a cautious loss.
PARALLEL_SHARE = 0.8
# fp32 peak of a GPU without bf16 (T4), in TFLOP/s.
FP32_TFLOPS = 8.1
SAFE_SHARE = 0.9
_ALLOCATOR_WASTE = 0.05
_CUDA_CONTEXT = 0.9 * GB
_LOGIT_BYTES = 6
_HEAD_CHUNK = 2048
_MICRO_TOKENS = 16384
# Reading 4-bit weights back to bf16 for every product costs little in large passes (2 % measured) and more in small ones.
_FOUR_BIT_SHARE = 0.9
# What a serving process keeps of a GPU for weights and cache (SM_VLLM_GPU_MEMORY_UTILIZATION).
SERVING_SHARE = 0.9
SERVING_CONTEXT = 4096  # longest request an endpoint takes, in tokens (SM_VLLM_MAX_MODEL_LEN)


@dataclass(frozen=True)
class Pass:
    """How a job will run on a GPU.

    Attributes:
        micro_tokens: tokens of one pass.
        checkpointing: activations are computed again.
        needed: bytes in all.
        sharded: the GPUs spread the weights between them.
    """

    micro_tokens: int
    checkpointing: bool
    needed: float
    sharded: bool = False


@dataclass(frozen=True)
class Fit:
    """Whether a job fits one GPU of an instance.

    Attributes:
        needed_gb, available_gb: memory of one GPU in 10^9 bytes; available is what may be used, a tenth is left free.
        why: one sentence.
        smallest: the instance type with the least hardware that fits; empty when none does.
    """

    fits: bool
    needed_gb: float
    available_gb: float
    why: str
    smallest: str
    micro_tokens: int = 0
    checkpointing: bool = False
    sharded: bool = False

    @property
    def headroom(self) -> float:
        """Share of the usable memory that stays free; below zero when it does not fit."""
        return 1 - self.needed_gb / self.available_gb


def linear_weights(model: BaseModel) -> int:
    """Weights of all linear layers inside the transformer's blocks."""
    query, kv = model.heads * model.head_size, model.kv_heads * model.head_size
    attention = model.hidden * (2 * query + 2 * kv)
    feed_forward = 3 * model.hidden * model.intermediate
    encoder = attention + feed_forward
    decoder = 2 * attention + feed_forward
    return model.decoder_layers * (encoder + decoder if model.family == "seq2seq" else encoder)


def adapter_weights(model: BaseModel, rank: int) -> int:
    """Weights of a LoRA adapter on all linear layers."""
    query, kv = model.heads * model.head_size, model.kv_heads * model.head_size
    attention = rank * (4 * model.hidden + 2 * query + 2 * kv)
    feed_forward = 3 * rank * (model.hidden + model.intermediate)
    encoder, decoder = attention + feed_forward, 2 * attention + feed_forward
    return model.decoder_layers * (encoder + decoder if model.family == "seq2seq" else encoder)


def training_bytes(
    model: BaseModel,
    *,
    method: str,
    rank: int,
    micro_tokens: int,
    checkpointing: bool,
    shards: int = 1,
    bytes_per_weight: int = 2,
    accumulates: bool = True,
) -> float:
    """Peak bytes of one GPU while it trains; `shards` is the number of GPUs that spread the weights between them.

    `accumulates`: a step has several passes.
    """
    trained = model.parameters if method == "full" else adapter_weights(model, rank)
    if method == "qlora":
        linear = linear_weights(model)
        weights = 0.55 * linear + 2 * (model.parameters - linear)
    else:
        weights = (4.0 if method == "full" else bytes_per_weight) * model.parameters
    adapter = 0 if method == "full" else 4 * trained
    gathered = 0.0
    if shards > 1:
        gathered = (8 if method == "full" else bytes_per_weight) * _gathered_weights(model)
    copies = 2 * linear_weights(model) if method == "full" and bytes_per_weight == 2 and shards == 1 else 0
    if method == "qlora":
        copies = 2 * model.hidden * model.intermediate
    layers, largest = _activation_bytes(model, method, bytes_per_weight, rank)
    stream = 4 if method == "full" else bytes_per_weight
    if checkpointing:
        depth = model.decoder_layers * (1.5 if model.family == "seq2seq" else 1)
        layers = stream * model.hidden * depth + largest
    head = _HEAD_CHUNK * model.vocabulary * _LOGIT_BYTES + micro_tokens * 4 * stream * model.hidden
    if method == "full" and shards == 1:
        head += (4 + (bytes_per_weight == 2) * 2) * model.vocabulary * model.hidden
    passing = micro_tokens * bytes_per_weight * (3 * model.intermediate + 2 * model.hidden)
    activations = micro_tokens * layers + max(0, passing - head)
    gradients = 4 * trained / shards
    if not accumulates:
        gradients = max(0.0, gradients - activations - head)
    subtotal = (weights + adapter + 8 * trained) / shards + gradients + copies + activations + head + gathered
    return subtotal * (1 + _ALLOCATOR_WASTE) + _CUDA_CONTEXT


def _gathered_weights(model: BaseModel) -> int:
    """Weights that are whole at a time while the rest is spread: two layers, and all that is in no layer."""
    layers = model.decoder_layers * (2 if model.family == "seq2seq" else 1)
    linear = linear_weights(model)
    return 2 * linear // layers + model.parameters - linear


def _activation_bytes(model: BaseModel, method: str, value: int, rank: int) -> tuple[float, float]:
    """Activation bytes a token keeps for the backward pass, `value` for each number: (all layers, the largest one).

    train_src/memory.py says what they are. No dropout before the adapter is assumed; an encoder-decoder's own dropout
    is, and that half of the tokens are the decoder's.
    """
    is_half = model.family == "seq2seq"
    query, kv = model.heads * model.head_size, model.kv_heads * model.head_size
    norms = 2 * ((4 if is_half else value) + value)
    if method == "full":
        norms = (26 if is_half else 18) if value == 2 else (24 if is_half else 16)
    feed_forward = value * (2 if method in ("lora", "rslora", "qlora") and not is_half else 4)
    layer = norms * model.hidden + 2 * value * (query + kv) + feed_forward * model.intermediate
    if method != "full":
        layer += 7 * value * rank
    if method == "dora":
        layer += (value + 4) * (query + 2 * kv + 2 * model.hidden + 2 * model.intermediate)
    if not is_half:
        return model.decoder_layers * layer, layer
    layer += value * (2 * model.hidden + model.intermediate)
    if value == 2:  # T5's last product and all it is added to are fp32
        layer += 4 * model.intermediate + 2 * model.hidden
    decoder = layer + (4 + 2 * value) * model.hidden + 2 * value * query
    return model.decoder_layers * ((layer + decoder) / 2 + value * kv), max(layer, decoder) / 2


def plan(
    model: BaseModel,
    instance: Instance,
    *,
    method: str,
    rank: int,
    max_length: int,
    batch_tokens: int = 4096,
    count: int = 1,
) -> Pass:
    """The fastest way that fits one GPU of the instance, else the most frugal one, whose `needed` is then too much."""
    usable = SAFE_SHARE * instance.gpu_memory_gb * GB
    smallest: Pass | None = None
    for tried in _passes(model, instance, method, rank, max_length, batch_tokens, count):
        if tried.needed <= usable:
            return tried
        if smallest is None or tried.needed < smallest.needed:
            smallest = tried
    assert smallest is not None
    return smallest


def _passes(
    model: BaseModel, instance: Instance, method: str, rank: int, max_length: int, batch_tokens: int, count: int
) -> Iterator[Pass]:
    """Ways to run, the fastest first: large passes, then computing activations again, then spreading the weights."""
    gpus = instance.gpus * count
    most = max(1, min(_MICRO_TOKENS, batch_tokens // gpus))
    sizes = list(dict.fromkeys(max(1, most // part) for part in (1, 2, 4, 8)))
    spreads = (False, True) if gpus > 1 and method != "qlora" else (False,)
    for sharded, checkpointing, size in itertools.product(spreads, (False, True), sizes):
        needed = training_bytes(
            model,
            method=method,
            rank=rank,
            micro_tokens=max(size, max_length),  # a row is never split
            checkpointing=checkpointing,
            shards=gpus if sharded else 1,
            bytes_per_weight=2 if instance.bf16_tflops else 4,
            accumulates=max(size, max_length) < batch_tokens // gpus,
        )
        yield Pass(size, checkpointing, needed, sharded)


def check(
    model: BaseModel,
    instance: Instance,
    *,
    method: str,
    rank: int,
    max_length: int,
    batch_tokens: int = 4096,
    count: int = 1,
) -> Fit:
    """Does the job fit a GPU of this instance with a tenth to spare, and how would it run?"""
    sizes = {"method": method, "rank": rank, "max_length": max_length, "batch_tokens": batch_tokens}
    found = plan(model, instance, count=count, **sizes)  # type: ignore[arg-type]
    usable = SAFE_SHARE * instance.gpu_memory_gb
    needed = found.needed / GB
    possible = instance.bf16_tflops > 0 or method != "qlora"
    fits = needed <= usable and possible
    if not possible:
        why = f"4-bit training needs bf16, which the {instance.gpu} does not have"
    elif fits:
        how = ", activations computed again" if found.checkpointing else ""
        how += f", weights spread over {instance.gpus * count} GPUs" if found.sharded else ""
        why = f"about {needed:.1f} of {usable:.1f} GB usable on each {instance.gpu}{how}"
    else:
        why = f"about {needed:.1f} GB needed, {usable:.1f} GB usable on each {instance.gpu}"
    smallest = smallest_instance(model, method=method, rank=rank, max_length=max_length, batch_tokens=batch_tokens)
    return Fit(fits, needed, usable, why, smallest, found.micro_tokens, found.checkpointing, found.sharded)


def fitting_instances(
    model: BaseModel, *, method: str, rank: int, max_length: int, batch_tokens: int = 4096
) -> list[Instance]:
    """The instance types with bf16 whose GPUs and memory a job fits, the least hardware first."""
    found = []
    for item in _by_size():
        if not item.bf16_tflops or item.memory_gb < host_memory_gb(model):
            continue
        tried = plan(model, item, method=method, rank=rank, max_length=max_length, batch_tokens=batch_tokens)
        if tried.needed <= SAFE_SHARE * item.gpu_memory_gb * GB:
            found.append(item)
    return found


def host_memory_gb(model: BaseModel) -> float:
    """Memory of the machine (not its GPUs) that loading, merging and packing want in comfort. Modelled."""
    return 1.3 * 2 * model.parameters / GB + 4


def smallest_instance(model: BaseModel, *, method: str, rank: int, max_length: int, batch_tokens: int = 4096) -> str:
    """The instance type with the least hardware that a job fits; empty when none of the catalogue does."""
    found = fitting_instances(model, method=method, rank=rank, max_length=max_length, batch_tokens=batch_tokens)
    return found[0].instance_type if found else ""


def tokens_per_second(
    model: BaseModel, instance: Instance, *, method: str, count: int = 1, checkpointing: bool = False
) -> tuple[float, float]:
    """Modelled training speed as a range (slow, fast), all GPUs of all instances together."""
    # A token of an encoder-decoder passes one of its two halves.
    weights = model.parameters / 2 if model.family == "seq2seq" else float(model.parameters)
    operations = (4.0 + (2.0 if method == "full" else 0.0) + (2.0 if checkpointing else 0.0)) * weights
    peak = (instance.bf16_tflops or FP32_TFLOPS) * 1e12 * (_FOUR_BIT_SHARE if method == "qlora" else 1.0)
    gpus = instance.gpus * count
    scale = gpus if gpus == 1 else gpus * PARALLEL_SHARE
    slow, fast = (
        min(peak * share / operations, most) * scale
        for share, most in zip(UTILISATION, MOST_TOKENS_PER_SECOND, strict=True)
    )
    return slow, fast


def tensor_parallel(model: BaseModel, instance: Instance) -> int:
    """How many GPUs of an instance can share one served model: the most that divide its attention heads evenly."""
    for gpus in range(instance.gpus, 1, -1):
        if model.heads % gpus == 0 and (model.kv_heads % gpus == 0 or gpus % model.kv_heads == 0):
            return gpus
    return 1


def serving_fit(model: BaseModel, instance: Instance) -> Fit:
    """Does the merged model in bf16 fit the instance's GPUs, with cache for one request of full length?

    Decoder models are served by vLLM over several GPUs; an encoder-decoder is on one.
    """
    gpus, needed, fits = _serving(model, instance)
    usable = SERVING_SHARE * instance.gpu_memory_gb
    smallest = next((item.instance_type for item in _by_size() if _serving(model, item)[2]), "")
    where = f"each of {gpus} x {instance.gpu}" if gpus > 1 else f"one {instance.gpu}"
    why = f"about {needed:.1f} of {usable:.1f} GB usable on {where}"
    if needed <= usable and not fits:
        why = f"the {instance.gpu} has no bf16, in which the model is served"
    return Fit(fits, needed, usable, why, smallest)


def _serving(model: BaseModel, instance: Instance) -> tuple[int, float, bool]:
    """(GPUs that share the model, GB on each, whether it fits)."""
    gpus = tensor_parallel(model, instance) if model.family == "causal" else 1
    length = min(model.context, SERVING_CONTEXT)
    cache = 4 * model.decoder_layers * model.kv_heads * model.head_size * length
    needed = ((2 * model.parameters + cache) / gpus + _CUDA_CONTEXT) / GB
    has_type = instance.bf16_tflops > 0 or model.family == "seq2seq"
    return gpus, needed, has_type and needed <= SERVING_SHARE * instance.gpu_memory_gb


def _by_size() -> list[Instance]:
    """The catalogue's instance types, the least hardware first."""
    return sorted(INSTANCES, key=lambda item: (item.gpus, item.gpu_memory_gb * item.gpus, item.vcpus))
