"""Norms and rotary positions as one step of autograd each are transformers' own, values and gradients."""

import copy
import sys
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import cpu_layers

SIZES = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
T5_SIZES = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4}


@pytest.fixture(autouse=True)
def _own_rotations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test replaces in transformers' modules is put back after it."""
    for name in ("llama", "qwen3", "gemma", "gemma3_text", "cohere"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **SIZES))
        source = sys.modules[type(model).__module__]
        plain = getattr(source, cpu_layers.ROTATION)
        monkeypatch.setattr(source, cpu_layers.ROTATION, getattr(plain, "args", [plain])[0])


def make(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    sizes = T5_SIZES if name == "t5" else SIZES
    config = transformers.AutoConfig.for_model(name, **sizes, dropout_rate=0.0)
    loader = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
    model = loader.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).requires_grad_(False)


def passed(model: Any) -> tuple[Tensor, Tensor]:
    """Logits of a short text, and the gradient of what its embeddings are."""
    ids = torch.arange(5, 45)[None]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    logits = model(inputs_embeds=embedded, **more).logits.float()
    logits.square().mean().backward()
    assert embedded.grad is not None
    return logits.detach(), embedded.grad.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "expected"),
    [("llama", (5, 1)), ("qwen3", (9, 1)), ("gemma", (5, 1)), ("gemma3_text", (13, 1)), ("t5", (12, 0))],
)
def test_a_model_with_them_computes_what_it_did(name: str, expected: tuple[int, int], dtype: torch.dtype) -> None:
    model = make(name, dtype)
    plain = passed(copy.deepcopy(model))
    assert cpu_layers.use_cpu_layers(model) == expected
    for own, reference in zip(passed(model), plain, strict=True):
        share = (own - reference).norm() / reference.norm()
        assert share < (1e-5 if dtype == torch.float32 else 0.03)


def test_norms_that_are_trained_and_rotations_of_another_kind_stay() -> None:
    trained = make("llama", torch.float32).requires_grad_(True)
    assert cpu_layers.use_cpu_layers(trained)[0] == 0
    assert cpu_layers.use_cpu_layers(make("cohere", torch.float32)) == (0, 0)


@pytest.mark.parametrize("rotation", ["of_one", "of_half_angles"])
def test_a_rotation_that_takes_something_else_stays(monkeypatch: pytest.MonkeyPatch, rotation: str) -> None:
    def of_one(tensor: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        return tensor * cos + tensor * sin

    def of_half_angles(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
        return [x[..., ::2] * cos + x[..., 1::2] * sin for x in (q, k)]

    model = make("llama", torch.float32)
    own = {"of_one": of_one, "of_half_angles": of_half_angles}[rotation]
    monkeypatch.setattr(sys.modules[type(model).__module__], cpu_layers.ROTATION, own)
    assert cpu_layers.use_cpu_layers(model) == (5, 0)
