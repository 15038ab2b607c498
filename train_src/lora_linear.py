"""A LoRA layer as one step of autograd instead of eight.

PEFT owns the adapter (its creation, names, saving and merging); this replaces only the arithmetic of its plain linear
layers, y = x W^T + scale * (x A^T) B^T. The adapter stays in fp32 and is multiplied in the model's own precision; only
x and the (tokens, r) product are kept for the way back. Layers with dropout, DoRA or quantised weights keep PEFT's own
forward.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn


def speed_up(model: nn.Module) -> int:
    """Give the plain LoRA layers of a PEFT model the faster arithmetic; returns how many there are."""
    layers = [module for module in model.modules() if isinstance(module, PeftLinear) and is_plain(module)]
    for layer in layers:
        setattr(layer, "forward", functools.partial(_forward, layer))  # noqa: B010 (mypy: a method)
    return len(layers)


def is_plain(layer: PeftLinear) -> bool:
    """Whether a layer is what this arithmetic is for."""
    name = "default"
    return (
        type(layer.base_layer) is nn.Linear
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and name not in layer.lora_variant
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


def _forward(layer: PeftLinear, x: Tensor, *_: Any, **__: Any) -> Tensor:
    base = layer.base_layer
    if layer.disable_adapters or layer.merged:
        return base(x)
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    return _LoraLinear.apply(x, base.weight, base.bias, a, b, scale)


class _LoraLinear(torch.autograd.Function):
    """x is (..., inputs), weight (outputs, inputs), a (r, inputs), b (outputs, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a_low, b_low = a.to(x.dtype), (b * scale).to(x.dtype)
        low = rows @ a_low.t()
        y = F.linear(rows, weight, bias).addmm_(low, b_low.t())
        ctx.save_for_backward(rows, weight, a_low, b_low, low)
        ctx.scale = scale
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, weight, a, b, low = ctx.saved_tensors
        dy = gradient.reshape(-1, weight.shape[0])
        d_low = dy @ b
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(d_low, a).view(*gradient.shape[:-1], rows.shape[1])
        da = (d_low.t() @ rows).float()
        db = (dy.t() @ low).float().mul_(ctx.scale)
        return dx, None, None, da, db, None
