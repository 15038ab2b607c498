"""LoRA layers as one step of autograd instead of eight, several of them at once where they read the same input.

PEFT owns the adapter (its creation, names, saving and merging); this replaces only the arithmetic of its plain linear
layers, y = x W^T + (x (scale A)^T) B^T. The adapter stays in fp32 and is multiplied in the model's own precision; only
x and the (tokens, r) product are kept for the way back. Weights in 4 bits are spread out for each product and not kept.
Layers with dropout or DoRA keep PEFT's own forward.

Queries, keys and values have one input: its products with the three A are one, and so is its gradient's sum.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

# Layers of one block that read the same input, by their names in transformers' models.
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("wi_0", "wi_1"))


def speed_up(model: nn.Module) -> int:
    """Give the plain LoRA layers of a PEFT model the faster arithmetic; returns how many there are."""
    layers = [module for module in model.modules() if _is_fast(module)]
    groups: list[list[Any]] = [[layer] for layer in layers]
    for module in model.modules():
        for names in SHARED_INPUTS:
            members = [getattr(module, name, None) for name in names]
            groups.append([member for member in members if _is_fast(member)])
    for group in groups:  # those of several come last and stay
        shared = _Layers(group)
        for number, layer in enumerate(group):
            setattr(layer, "forward", functools.partial(shared.forward, number))  # noqa: B010 (mypy: a method)
    return len(layers)


def _is_fast(module: Any) -> bool:
    return isinstance(module, LoraLayer) and is_plain(module)


def is_plain(layer: Any) -> bool:
    """Whether the layer's arithmetic is the formula above and nothing else."""
    name = "default"
    base = layer.get_base_layer()
    return (
        (type(base) is nn.Linear or is_four_bit(base))
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and name not in layer.lora_variant
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


def is_four_bit(base: nn.Module) -> bool:
    """Whether it is bitsandbytes' layer with weights in 4 bits (told by its name: the package may not be there)."""
    return type(base).__name__ == "Linear4bit" and type(base).__module__.startswith("bitsandbytes")


def dense(base: Any) -> Tensor:
    """The frozen weight (outputs, inputs); made from its 4 bits where it is kept so."""
    if not is_four_bit(base):
        weight: Tensor = base.weight
        return weight
    from bitsandbytes.functional import dequantize_4bit

    spread: Tensor = dequantize_4bit(base.weight.data, base.weight.quant_state)
    return spread


def adapters(layers: Sequence[Any]) -> tuple[float, list[Tensor]]:
    """(scale, [A, B of the first, A, B of the next, ...]). The scale is one, since rank and alpha are one for all."""
    (scale,) = {layer.scaling["default"] for layer in layers}
    return scale, [part["default"].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]


def project(layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
    """What each of the layers makes of x (..., inputs); together where all of them are plain LoRA layers in use."""
    if all(_is_fast(layer) and not layer.disable_adapters and not layer.merged for layer in layers):
        return _together(layers, x)
    return [layer(x) for layer in layers]


def _together(layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
    scale, low = adapters(layers)
    outputs: Sequence[Tensor] = _LoraLinears.apply(x, [layer.base_layer for layer in layers], scale, *low)
    return outputs


class _Layers:
    """Layers that read the same input: who is asked first computes for all, and the others find their result here."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def forward(self, number: int, x: Tensor, *_: Any, **__: Any) -> Tensor:
        layer = self._layers[number]
        if layer.disable_adapters or layer.merged:
            output: Tensor = layer.base_layer(x)
            return output
        if x is not self._input or number not in self._outputs:
            self._input, self._outputs = x, dict(enumerate(_together(self._layers, x)))
        output = self._outputs.pop(number)
        if not self._outputs:
            self._input = None
        return output


class _LoraLinears(torch.autograd.Function):
    """x is (..., inputs); each layer's weight is (outputs, inputs), its a (r, inputs) and its b (outputs, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bases: Sequence[Any], scale: float, *low: Tensor) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        a = torch.cat(low[0::2]).mul_(scale).to(x.dtype)
        b = [_turned(each, x.dtype) for each in low[1::2]]
        ctx.ranks = [len(each) for each in b]
        lows = rows @ a.t()
        outputs = [
            F.linear(rows, dense(base), base.bias).addmm_(part, each)
            for base, part, each in zip(bases, lows.split(ctx.ranks, 1), b, strict=True)
        ]
        ctx.save_for_backward(rows, a, lows, *b)
        ctx.bases, ctx.scale = bases, scale
        return tuple(shaped(output, x) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, lows, *b = ctx.saved_tensors
        dys = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        d_lows = torch.cat([dy @ each.t() for dy, each in zip(dys, b, strict=True)], 1)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dys[0] @ dense(ctx.bases[0])
            for dy, base in zip(dys[1:], ctx.bases[1:], strict=True):
                dx.addmm_(dy, dense(base))
            dx = dx.addmm_(d_lows, a).view(*gradients[0].shape[:-1], rows.shape[1])
        das = (d_lows.t() @ rows).float().mul_(ctx.scale).split(ctx.ranks)
        dbs = [(dy.t() @ part).float() for dy, part in zip(dys, lows.split(ctx.ranks, 1), strict=True)]
        return dx, None, None, *(each for pair in zip(das, dbs, strict=True) for each in pair)


def shaped(rows: Tensor, like: Tensor) -> Tensor:
    """(tokens, outputs) as (..., outputs), and to autograd no view: a model may change it in place (OLMo clips)."""
    result: Tensor = torch.ops.aten._unsafe_view(rows, [*like.shape[:-1], rows.shape[1]])
    return result


def _turned(b: Tensor, dtype: torch.dtype) -> Tensor:
    """(r, outputs), contiguous: MKL adds a narrow product to a wide one faster from this side."""
    return torch.empty(*b.shape[::-1], dtype=dtype, device=b.device).copy_(b.t())
