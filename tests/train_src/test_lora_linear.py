"""The fast LoRA layers give what PEFT's own give, alone and over one input, plain and in 4 bits."""

from pathlib import Path
from typing import Any

import bitsandbytes
import peft
import pytest
import torch
from test_train_parts import load

import lora_linear
from model import TunedModel


def stirred(folder: Path, **settings: object) -> TunedModel:
    model = load(folder, **settings)
    torch.manual_seed(1)
    for parameter in model.named_parameters().values():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def layers_of(model: TunedModel) -> list[Any]:
    attention = model.network.decoder.block[0].layer[1].EncDecAttention
    return [attention.q, attention.k, attention.v]


@pytest.fixture(params=["plain", "four bits"])
def attention_block(request: pytest.FixtureRequest, models: dict[str, Path]) -> torch.nn.Module:
    """An attention block with adapters that do something, its arithmetic ours; its layers plain or in 4 bits."""
    torch.manual_seed(0)
    if request.param == "plain":
        block = load(models["causal"]).network.model.layers[0].self_attn
    else:
        block = torch.nn.Module()
        for name, width in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
            block.add_module(name, bitsandbytes.nn.Linear4bit(64, width, bias=False, quant_type="nf4"))
        # Moving it is what quantises it.
        peft.inject_adapter_in_model(
            peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]), block.to("cpu")
        )
        assert lora_linear.speed_up(block) == 4
    for name, parameter in block.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    return block


@pytest.mark.parametrize("names", [["o_proj"], ["q_proj", "k_proj", "v_proj"]])
def test_the_fast_lora_layers_equal_pefts_own(attention_block: torch.nn.Module, names: list[str]) -> None:
    layers = [attention_block.get_submodule(name) for name in names]
    x = torch.randn(2, 5, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    fast = [layer(x) for layer in layers]
    slow = [peft.tuners.lora.Linear.forward(layer, y) for layer in layers]
    assert len({each.grad_fn for each in fast}) == 1
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    parameters = [each for layer in layers for name, each in layer.named_parameters() if "lora" in name]
    weights = [torch.randn_like(each) for each in fast]
    ours = torch.autograd.grad(sum((a * w).sum() for a, w in zip(fast, weights, strict=True)), [x, *parameters])
    theirs = torch.autograd.grad(sum((a * w).sum() for a, w in zip(slow, weights, strict=True)), [y, *parameters])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_layers_that_share_an_input_do_not_mix_up_inputs(attention_block: torch.nn.Module) -> None:
    """Asked in any order, for other inputs in between, and left before all have asked: each gives its own answer."""
    q, k, v = (attention_block.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj"))
    first, second = torch.randn(1, 3, 64), torch.randn(1, 4, 64)
    expected = {layer: peft.tuners.lora.Linear.forward(layer, first) for layer in (q, k, v)}
    for layer, x in ((v, first), (q, second), (k, second), (q, first), (q, first), (v, first), (k, first)):
        found = layer(x)
        if x is first:
            torch.testing.assert_close(found, expected[layer], rtol=1e-4, atol=1e-4)


def test_the_fast_lora_layers_stand_aside_when_adapters_are_off(models: dict[str, Path]) -> None:
    model = load(models["causal"])
    layer = model.network.model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(2, 5, 64)
    with model.base():
        torch.testing.assert_close(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("settings", [{"method": "dora"}, {"lora_dropout": 0.5}])
def test_other_layers_keep_their_own_forward(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    monkeypatch.setattr(lora_linear._LoraLinears, "apply", lambda *_: pytest.fail("not these"))
    layers = layers_of(stirred(models["seq2seq"], **settings))
    x = torch.randn(1, 3, 64)
    torch.manual_seed(3)
    together = lora_linear.project(layers, x)
    torch.manual_seed(3)
    for one, layer in zip(together, layers, strict=True):
        assert torch.equal(one, layer(x))


def test_the_base_models_answer_is_without_the_adapters(models: dict[str, Path]) -> None:
    model = stirred(models["seq2seq"])
    layers, x = layers_of(model), torch.randn(1, 3, 64)
    with model.base():
        for one, layer in zip(lora_linear.project(layers, x), layers, strict=True):
            assert torch.equal(one, layer.base_layer(x))


def test_layers_of_which_one_has_no_adapter_are_asked_one_by_one(models: dict[str, Path]) -> None:
    layers, x = layers_of(stirred(models["seq2seq"], target_modules="q,v")), torch.randn(1, 3, 64)
    for one, layer in zip(lora_linear.project(layers, x), layers, strict=True):
        assert torch.equal(one, layer(x))
