"""The memory plan is right about what is kept, and picks the fastest way that fits."""

import math
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from test_train_parts import load, rows_of

import attention
import lora_mlp
import memory
from data import passes_of
from lora_linear import speed_up
from model import TunedModel

LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}


def test_weights_are_counted_exactly_from_the_configuration(models: dict[str, Path]) -> None:
    assert memory.Shape.from_config(LLAMA_7B).weights == 6_738_415_616
    model = load(models["causal"])
    base = sum(p.numel() for n, p in model.network.named_parameters() if "lora" not in n)
    shape = memory.Shape.from_config(model.network.config.to_dict())
    assert shape.weights == base
    assert shape.adapter_weights(16) == sum(p.numel() for p in model.parameters())


def test_activations_are_predicted_from_what_autograd_really_keeps() -> None:
    config = transformers.LlamaConfig(
        vocab_size=384,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="packed",
    )
    attention.register()
    network = transformers.LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = peft.get_peft_model(network, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    speed_up(module)
    lora_mlp.fuse(module)
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    model = TunedModel(module, network, "causal", torch.device("cpu"), torch.bfloat16, False, trained)
    rows = rows_of([100] * 6)
    frozen = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        losses, _ = model.losses(model.batch(rows))
    expected = memory.estimate(
        memory.Shape.from_config(config.to_dict()),
        method="lora",
        lora_r=8,
        micro_batch_tokens=600,
        checkpointing=False,
        mean_row=100,
        device="cpu",
    ).activations
    assert sum(kept.values()) == pytest.approx(expected, rel=0.1)
    assert len(losses) == sum(row.labels for row in rows)


def test_weights_are_spread_over_the_processes_only_where_one_device_is_too_small() -> None:
    shape = memory.Shape.from_config(LLAMA_7B)

    def plan(gb: float, processes: int, method: str = "lora") -> memory.Plan | None:
        return memory.choose(
            shape, device="cuda", device_bytes=gb * memory.GB, longest_row=1024, batch_tokens=4096,
            processes=processes, method=method,
        )  # fmt: skip

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


def test_a_small_device_gets_smaller_passes_then_recomputation_then_a_refusal() -> None:
    shape = memory.Shape.from_config(LLAMA_7B)
    plans = [
        memory.choose(shape, device="cuda", device_bytes=gb * memory.GB, longest_row=2048, batch_tokens=8192)
        for gb in (140, 80, 24, 12)
    ]
    large, middle, small, none = plans
    assert large is not None
    assert middle is not None
    assert small is not None
    assert none is None
    assert not large.gradient_checkpointing
    assert small.gradient_checkpointing
    assert large.micro_batch_tokens >= middle.micro_batch_tokens
    assert math.isclose(small.estimate.weights / memory.GB, 13.6, rel_tol=0.02)
