"""Layers over one input give together what each gives alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from test_train_parts import load
from torch import Tensor

import lora_shared
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


def test_outputs_and_gradients_are_those_of_pefts_layers_one_by_one(models: dict[str, Path]) -> None:
    model = stirred(models["seq2seq"])
    layers = layers_of(model)
    x, y = (torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    together = lora_shared.project(layers, x)
    alone = [PeftLinear.forward(layer, y) for layer in layers]
    weights = [torch.randn_like(each) for each in alone]
    parameters = [parameter for layer in layers for name, parameter in layer.named_parameters() if "lora" in name]

    def gradients(outputs: list[Tensor], source: Tensor) -> tuple[Tensor, ...]:
        total = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
        return torch.autograd.grad(total, [source, *parameters])

    assert len(parameters) == 6
    for one, other in zip([*together, *gradients(together, x)], [*alone, *gradients(alone, y)], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"method": "dora"}, {"lora_dropout": 0.5}, {"target_modules": "q,v"}])
def test_other_layers_keep_their_own_forward(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    monkeypatch.setattr(lora_shared._SharedLora, "apply", lambda *_: pytest.fail("not these"))
    layers = layers_of(stirred(models["seq2seq"], **settings))
    x = torch.randn(1, 3, 64)
    torch.manual_seed(3)
    together = lora_shared.project(layers, x)
    torch.manual_seed(3)
    for one, layer in zip(together, layers, strict=True):
        assert torch.equal(one, layer(x))


def test_the_base_models_answer_is_without_the_adapters(models: dict[str, Path]) -> None:
    model = stirred(models["seq2seq"])
    layers, x = layers_of(model), torch.randn(1, 3, 64)
    with model.base():
        for one, layer in zip(lora_shared.project(layers, x), layers, strict=True):
            assert torch.equal(one, layer.base_layer(x))
