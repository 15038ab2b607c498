"""The memory plan is right about what is kept, and picks the fastest way that fits."""

import dataclasses
import gc
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from test_train_parts import load, rows_of
from torch.profiler import ProfilerActivity, profile

import memory
from base import Base
from hyperparameters import Hyperparameters
from loading import load_model
from sampler import passes_of

LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}


SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip


def test_weights_are_counted_exactly_from_the_configuration(models: dict[str, Path]) -> None:
    assert memory.Shape.from_config(LLAMA_7B).weights == 6_738_415_616
    model = load(models["causal"])
    base = sum(p.numel() for n, p in model.network.named_parameters() if "lora" not in n)
    shape = memory.Shape.from_config(model.network.config.to_dict())
    assert shape.weights == base
    assert shape.adapter_weights(16) == sum(p.numel() for p in model.parameters())


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that PyTorch's allocator gave out at a time, over what it had given out before."""
    gc.collect()  # of earlier tests, which would count as given back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    result = recorded.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((each.start_ns(), each.nbytes()) for each in result.events() if each.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))


@pytest.fixture(scope="module")
def middle_sized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models wide enough for their activations to outweigh everything else."""
    llama = transformers.LlamaConfig(
        vocab_size=384, hidden_size=256, intermediate_size=704, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    t5 = transformers.T5Config(
        vocab_size=384, d_model=256, d_kv=64, d_ff=512, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    window = {"sliding_window": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shape = {name: getattr(llama, name) for name in SIZES}
    masked = transformers.MistralConfig(**shape, **window)
    eager = transformers.AutoConfig.for_model("granite_swa", **shape, **window)
    folders = {}
    for family, network in (
        ("causal", transformers.LlamaForCausalLM(llama)),
        ("masked", transformers.MistralForCausalLM(masked)),
        ("eager", transformers.AutoModelForCausalLM.from_config(eager)),
        ("seq2seq", transformers.T5ForConditionalGeneration(t5)),
    ):
        folders[family] = tmp_path_factory.mktemp(f"middle-{family}")
        network.save_pretrained(folders[family])
    return folders


@pytest.mark.parametrize(
    ("family", "method", "precision", "length", "recompute", "dropout"),
    [
        ("causal", "lora", "fp32", 100, False, 0.0),
        ("causal", "lora", "fp32", 300, False, 0.0),
        ("causal", "lora", "bf16", 100, False, 0.0),
        ("causal", "lora", "bf16", 100, False, 0.1),
        ("causal", "lora", "bf16", 100, True, 0.0),
        ("causal", "dora", "bf16", 100, False, 0.0),
        ("causal", "full", "fp32", 100, True, 0.0),
        ("causal", "full", "bf16", 100, False, 0.0),
        ("masked", "lora", "fp32", 300, False, 0.0),
        ("masked", "lora", "bf16", 100, True, 0.0),
        ("eager", "lora", "fp32", 300, False, 0.0),
        ("eager", "lora", "bf16", 100, False, 0.0),
        ("seq2seq", "lora", "fp32", 300, False, 0.0),
        ("seq2seq", "lora", "bf16", 100, False, 0.0),
        ("seq2seq", "dora", "fp32", 100, False, 0.0),
        ("seq2seq", "full", "bf16", 100, False, 0.0),
    ],
)
def test_the_peak_of_a_pass_is_predicted_within_a_tenth(
    middle_sized: dict[str, Path],
    family: str,
    method: str,
    precision: str,
    length: int,
    recompute: bool,
    dropout: float,
) -> None:
    folder = middle_sized[family]
    config = json.loads((folder / "config.json").read_text())
    settings = Hyperparameters(method=method, precision=precision, lora_r=8, lora_dropout=dropout)
    model = load_model(Base(folder, "middle", "1", config), settings, recompute=recompute)
    count = 600 // length
    half = [length // 2] * count
    batch = model.batch(rows_of(half, half) if family == "seq2seq" else rows_of([length] * count))

    def work() -> None:
        losses, _ = model.losses(batch)
        losses.sum().backward()

    work()  # from the second pass on there are gradients to add to
    gradients = sum(parameter.numel() * 4 for parameter in model.parameters())
    decoded = 0 if batch.decoder_input_ids is None else batch.decoder_input_ids.numel()
    job = memory.Job(
        memory.Shape.from_config(config),
        method=method,
        lora_r=8,
        lora_dropout=dropout,
        bytes_per_weight=2 if precision == "bf16" else 4,
        device="cpu",
        mean_row=length,
    )
    expected = job.estimate(batch.input_ids.numel() + decoded, checkpointing=recompute)
    parts = expected.activations + expected.copies + expected.gradients + expected.head
    assert parts == pytest.approx(peak_bytes(work) + gradients, rel=0.1)


def test_weights_are_spread_over_the_processes_only_where_one_device_is_too_small() -> None:
    shape = memory.Shape.from_config(LLAMA_7B)

    def plan(gb: float, processes: int, method: str = "lora") -> memory.Plan | None:
        ways = memory.Job(shape, method=method).plans(longest_row=1024, batch_tokens=4096, processes=processes)
        return memory.fitting(ways, gb * memory.GB)

    assert plan(12, 1) is None
    spread, whole, full = plan(12, 4), plan(40, 4), plan(48, 8, "full")
    assert spread is not None
    assert spread.sharded
    assert whole is not None
    assert not whole.sharded
    assert full is not None
    assert full.sharded
    assert full.estimate.optimizer == pytest.approx(8 * shape.weights / 8)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_gather_weights_make_the_same_number_of_passes(world: int) -> None:
    rows = rows_of([50, 40, 10, 10, 30, 7, 12])
    plans = [passes_of(rows, range(7), 40, rank, world, equal=True) for rank in range(world)]
    assert len(set(map(len, plans))) == 1
    counted = sorted(number for plan in plans for part, counts in plan if counts for number in part)
    assert counted == list(range(7))
    assert passes_of(rows, [2], 40, 1, 2, equal=True) == [([2], False)]


def test_more_of_anything_never_needs_less_memory() -> None:
    job = memory.Job(memory.Shape.from_config(LLAMA_7B))

    def total(job: memory.Job, tokens: int = 1024, *, checkpointing: bool = True, shards: int = 1) -> float:
        return job.estimate(tokens, checkpointing=checkpointing, shards=shards).total

    least = total(job)
    assert total(dataclasses.replace(job, lora_r=64)) > least
    assert total(job, 4096) > least
    assert total(job, checkpointing=False) > least
    assert total(job, shards=4) < least
    assert total(dataclasses.replace(job, method="qlora")) < least < total(dataclasses.replace(job, method="full"))
    wider = dataclasses.replace(job.shape, hidden=2 * job.shape.hidden)
    assert total(dataclasses.replace(job, shape=wider)) > least


def test_a_small_device_gets_smaller_passes_then_recomputation_then_a_refusal() -> None:
    shape = memory.Shape.from_config(LLAMA_7B)
    ways = list(memory.Job(shape).plans(longest_row=2048, batch_tokens=8192))
    plans = [memory.fitting(ways, gb * memory.GB) for gb in (140, 80, 24, 12)]
    large, middle, small, none = plans
    assert large is not None
    assert middle is not None
    assert small is not None
    assert none is None
    assert not large.gradient_checkpointing
    assert small.gradient_checkpointing
    assert large.micro_batch_tokens >= middle.micro_batch_tokens
    assert math.isclose(small.estimate.weights / memory.GB, 13.6, rel_tol=0.02)
