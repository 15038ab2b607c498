"""Does a model fit a GPU, and how fast will it train there.

Memory is planned by the very file by which the training container plans its passes (train_src/memory.py), so what is
promised here is what the job will do. Each GPU has a whole copy of the model where it fits; where it does not, several
GPUs spread one between them (FSDP2).

Speed is modelled: floating point operations of a token (2 a weight forwards, 2 for the gradient of activations, 2 for
the gradient of weights where they are trained, 2 more where activations are computed again) at a share of the GPU's
dense bf16 peak, and for weights that are spread, the time in which they reach each GPU. Shares and rates are ranges,
because they are a model and no measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack

from llmtuner_kit import job_code
from llmtuner_kit.catalog import INSTANCES, BaseModel, Instance

if TYPE_CHECKING:
    import memory as memory  # model_folders.py reads it through here
else:
    memory = job_code.module("memory")

# Share of the dense peak that fine-tuning reaches: published figures for 1B to 13B models lie between these, and 0.55 is
# what train.py reached with 7B on an H200 (tests/benchmarks/train_gpu.py).
UTILISATION = (0.18, 0.55)
# Small models are bound by kernel launches, not by arithmetic; tokens per second of one GPU.
MOST_TOKENS_PER_SECOND = (17_000.0, 30_000.0)
# Several GPUs exchange gradients; a fifth is a cautious loss.
PARALLEL_SHARE = 0.8
# Bytes a second at which spread weights reach a GPU: over PCIe, over NVLink, over the network between machines. Modelled.
_PCIE_RATE, _NVLINK_RATE, _NETWORK_RATE = (3e9, 12e9), (60e9, 200e9), (0.5e9, 3e9)
_NVLINKED = ("A100", "H100", "H200")
# fp32 peak of a GPU without bf16 (T4), in TFLOP/s.
FP32_TFLOPS = 8.1
# Reading 4-bit weights back to bf16 for every product costs little in large passes (2 % measured) and more in small ones.
_FOUR_BIT_SHARE = 0.9
# What a serving process keeps of a GPU for weights and cache (SM_VLLM_GPU_MEMORY_UTILIZATION).
SERVING_SHARE = 0.9
_TIGHT = 0.85  # a fit that takes more than this share of the memory looks as if it hardly fitted
_LARGEST_FILE_GB = 4  # of the weights in an archive
SERVING_CONTEXT = 4096  # longest request an endpoint takes, in tokens (SM_VLLM_MAX_MODEL_LEN)


@dataclass(frozen=True)
class Fit:
    """Whether a job fits one GPU of an instance.

    Attributes:
        needed_gb, available_gb: memory of one GPU in 10^9 bytes; available is what may be used, a tenth is left free.
        why: one sentence.
        smallest: the instance type with the least hardware that fits; empty when none does.
        least_gb: what the job would need where it gives up speed for memory; `needed_gb` is the fastest that fits.
    """

    fits: bool
    needed_gb: float
    available_gb: float
    why: str
    smallest: str
    micro_tokens: int = 0
    checkpointing: bool = False
    sharded: bool = False
    least_gb: float = 0.0

    @property
    def verdict(self) -> str:
        """`why`, with the answer before it."""
        return f"{'yes' if self.fits else 'NO'}: {self.why}"

    @property
    def headroom(self) -> float:
        """Share of the usable memory that the most frugal way leaves free; below zero when it does not fit."""
        return 1 - (self.least_gb or self.needed_gb) / self.available_gb


class Sizes(TypedDict):
    """What a job's memory depends on besides its model and machine; `max_length` and `batch_tokens` in tokens."""

    method: str
    rank: int
    max_length: int
    batch_tokens: NotRequired[int]  # 4096
    dropout: NotRequired[float]  # 0


def job(model: BaseModel, instance: Instance, *, method: str, rank: int, dropout: float = 0.0) -> memory.Job:
    """The fine-tune as the memory plan sees it: an adapter on all linear layers, with dropout before it."""
    is_half = model.family == "seq2seq"
    shape = memory.Shape(
        hidden=model.hidden,
        feed_forward=model.intermediate,
        query=model.heads * model.head_size,
        key_value=model.kv_heads * model.head_size,
        heads=model.heads,
        layers=model.decoder_layers,
        cross_layers=model.decoder_layers if is_half else 0,
        vocabulary=model.vocabulary,
        gated=True,
        tied=model.tied,
        dropout=is_half,
        attention=model.attention,
    )
    value = 2 if instance.bf16_tflops else 4
    return memory.Job(shape, method=method, lora_r=rank, lora_dropout=dropout, bytes_per_weight=value)


def plan(model: BaseModel, instance: Instance, *, count: int = 1, **sizes: Unpack[Sizes]) -> memory.Plan:
    """The fastest way that fits one GPU of the instance, else the most frugal one, whose estimate is then too much."""
    return _fastest(_ways(model, instance, count=count, **sizes), instance)


def _ways(model: BaseModel, instance: Instance, *, count: int, **sizes: Unpack[Sizes]) -> list[memory.Plan]:
    gpus = instance.gpus * count
    planned = job(model, instance, method=sizes["method"], rank=sizes["rank"], dropout=sizes.get("dropout", 0.0))
    batch_tokens = max(1, sizes.get("batch_tokens", 4096) // gpus)
    return list(planned.plans(longest_row=sizes["max_length"], batch_tokens=batch_tokens, processes=gpus))


def _fastest(ways: list[memory.Plan], instance: Instance) -> memory.Plan:
    return memory.fitting(ways, instance.gpu_memory_gb * memory.GB) or _most_frugal(ways)


def _most_frugal(ways: list[memory.Plan]) -> memory.Plan:
    return min(ways, key=lambda way: way.estimate.total)


def check(model: BaseModel, instance: Instance, *, count: int = 1, **sizes: Unpack[Sizes]) -> Fit:
    """Does the job fit a GPU of this instance with a tenth to spare, and the machine's own memory, and how would it run?"""
    ways = _ways(model, instance, count=count, **sizes)
    found, least = _fastest(ways, instance), _most_frugal(ways).estimate.total / memory.GB
    usable = memory.SAFE_SHARE * instance.gpu_memory_gb
    needed = found.estimate.total / memory.GB
    possible = instance.bf16_tflops > 0 or sizes["method"] != "qlora"
    host = least_host_memory_gb(model, instance, sizes["method"])
    fits = needed <= usable and possible and host <= instance.memory_gb
    if not possible:
        why = f"4-bit training needs bf16, which the {instance.gpu} does not have"
    elif needed <= usable and not fits:
        why = f"about {host:.1f} GB of the machine's own memory needed to load and write the model, it has {instance.memory_gb}"
    elif fits:
        how = ", activations computed again" if found.gradient_checkpointing else ""
        how += f", weights spread over {instance.gpus * count} GPUs" if found.sharded else ""
        why = f"about {needed:.1f} of {usable:.1f} GB usable on each {instance.gpu}{how}"
        if needed > _TIGHT * usable and least < _TIGHT * needed:
            why += f", for speed; {least:.1f} GB would do"
    else:
        why = f"about {needed:.1f} GB needed, {usable:.1f} GB usable on each {instance.gpu}"
    smallest = smallest_instance(model, **sizes)
    planned = found.micro_batch_tokens, found.gradient_checkpointing, found.sharded
    return Fit(fits, needed, usable, why, smallest, *planned, least_gb=least)


def fitting_instances(model: BaseModel, **sizes: Unpack[Sizes]) -> list[Instance]:
    """The instance types with bf16 whose GPUs and memory a job fits, the least hardware first."""
    found = []
    for item in _by_size():
        if not item.bf16_tflops or item.memory_gb < host_memory_gb(model, item, sizes["method"]):
            continue
        if plan(model, item, **sizes).estimate.total <= memory.SAFE_SHARE * item.gpu_memory_gb * memory.GB:
            found.append(item)
    return found


def least_host_memory_gb(model: BaseModel, instance: Instance, method: str) -> float:
    """Memory of the machine (not its GPUs) without which a job is killed. Modelled.

    One copy of the weights, where they are converted as they are loaded, or put together from 4 bits on a GPU without
    room for them; a file of the archive as it is written; Python and CUDA.
    """
    weights = 2 * model.parameters / memory.GB
    if method == "full" or not instance.bf16_tflops:
        weights *= 2
    elif method == "qlora" and 1.3 * weights + 2 <= memory.SAFE_SHARE * instance.gpu_memory_gb:
        weights = 0.0
    return max(weights, _LARGEST_FILE_GB) + 3


def host_memory_gb(model: BaseModel, instance: Instance, method: str) -> float:
    """The same in comfort, with room for the files that are read."""
    return 1.3 * least_host_memory_gb(model, instance, method)


def smallest_instance(model: BaseModel, **sizes: Unpack[Sizes]) -> str:
    """The instance type with the least hardware that a job fits; empty when none of the catalogue does."""
    found = fitting_instances(model, **sizes)
    return found[0].instance_type if found else ""


def tokens_per_second(
    model: BaseModel,
    instance: Instance,
    *,
    method: str,
    count: int = 1,
    checkpointing: bool = False,
    spread_pass_tokens: int = 0,
) -> tuple[float, float]:
    """Modelled training speed as a range (slow, fast), all GPUs of all instances together.

    `spread_pass_tokens`: tokens of one pass of a GPU where the weights are spread over all of them; each pass then waits
    for all weights, forwards and backwards, and sends its gradients where they are trained.
    """
    # A token of an encoder-decoder passes one of its two halves.
    weights = model.parameters / 2 if model.family == "seq2seq" else float(model.parameters)
    operations = (4.0 + (2.0 if method == "full" else 0.0) + (2.0 if checkpointing else 0.0)) * weights
    peak = (instance.bf16_tflops or FP32_TFLOPS) * 1e12 * (_FOUR_BIT_SHARE if method == "qlora" else 1.0)
    gpus = instance.gpus * count
    scale = gpus if gpus == 1 else gpus * PARALLEL_SHARE
    sent = model.parameters * (8 if method == "full" else 4) / spread_pass_tokens if spread_pass_tokens else 0.0
    slow, fast = (
        scale / (1 / min(peak * share / operations, most) + sent / rate)
        for share, most, rate in zip(UTILISATION, MOST_TOKENS_PER_SECOND, _gather_rate(instance, count), strict=True)
    )
    return slow, fast


def reading_seconds(
    model: BaseModel, instance: Instance, *, count: int = 1, spread: bool = False
) -> tuple[float, float]:
    """Seconds (fast, slow) for all weights to be read once in bf16, as for every token of an answer.

    From a GPU's own memory, or, where they are `spread` over GPUs, from all of these.
    """
    weights = 2.0 * model.parameters
    if spread:
        slow, fast = _gather_rate(instance, count)
        return weights / fast, weights / slow
    return weights / (instance.bandwidth_gbs * 1e9), 2 * weights / (instance.bandwidth_gbs * 1e9)


def _gather_rate(instance: Instance, count: int) -> tuple[float, float]:
    if count > 1:
        return _NETWORK_RATE
    return _NVLINK_RATE if instance.gpu in _NVLINKED else _PCIE_RATE


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
    needed = ((2 * model.parameters + cache) / gpus + memory.CUDA_CONTEXT) / memory.GB
    has_type = instance.bf16_tflops > 0 or model.family == "seq2seq"
    return gpus, needed, has_type and needed <= SERVING_SHARE * instance.gpu_memory_gb


def _by_size() -> list[Instance]:
    """The catalogue's instance types, the least hardware first."""
    return sorted(INSTANCES, key=lambda item: (item.gpus, item.gpu_memory_gb * item.gpus, item.vcpus))
