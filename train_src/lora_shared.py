"""Several LoRA layers that read the same input, as one step of autograd.

T5's queries, keys and values (or the keys and values of what the encoder made) are three layers over one tensor. Here
the narrow products of their adapters with it are one product, in both directions, and its gradient is summed up by the
products themselves instead of between them. The arithmetic of each layer is that of lora_linear.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor

from lora_linear import is_plain

NAME = "default"  # of the adapter


def project(layers: Sequence[Any], x: Tensor) -> list[Tensor]:
    """What each of the layers makes of x (..., inputs); together where all of them are plain LoRA layers in use."""
    if not all(_is_plain_in_use(layer) for layer in layers):
        return [layer(x) for layer in layers]
    weights = [each for layer in layers for each in (layer.base_layer.weight, layer.base_layer.bias)]
    low = [each for layer in layers for each in (layer.lora_A[NAME].weight, layer.lora_B[NAME].weight)]
    return list(_SharedLora.apply(x, tuple(layer.scaling[NAME] for layer in layers), *weights, *low))


def _is_plain_in_use(layer: Any) -> bool:
    return isinstance(layer, PeftLinear) and is_plain(layer) and not layer.disable_adapters and not layer.merged


class _SharedLora(torch.autograd.Function):
    """x (..., inputs), the layers' scales; then weight (outputs, inputs) and bias of each, a (r, inputs), b (outputs, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: tuple[float, ...], *parts: Any) -> tuple[Tensor, ...]:
        count = len(scales)
        weights, biases, low = parts[: 2 * count : 2], parts[1 : 2 * count : 2], parts[2 * count :]
        rows = x.reshape(-1, x.shape[-1])
        ctx.ranks = [len(a) for a in low[0::2]]
        a = torch.cat(low[0::2]).to(x.dtype)
        # Turned round once: MKL adds a narrow product to a wide one faster from this side.
        b = [(each * scale).to(x.dtype).t().contiguous() for each, scale in zip(low[1::2], scales, strict=True)]
        inner = rows @ a.t()
        outputs = [
            F.linear(rows, weight, bias).addmm_(own, up).view(*x.shape[:-1], -1)
            for weight, bias, own, up in zip(weights, biases, inner.split(ctx.ranks, 1), b, strict=True)
        ]
        ctx.save_for_backward(rows, a, inner, *weights, *b)
        ctx.scales, ctx.shape = scales, x.shape
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, inner, *others = ctx.saved_tensors
        count = len(ctx.scales)
        weights, b = others[:count], others[count:]
        dy = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        d_inner = torch.cat([own @ up.t() for own, up in zip(dy, b, strict=True)], 1)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = d_inner @ a
            for own, weight in zip(dy, weights, strict=True):
                dx.addmm_(own, weight)
            dx = dx.view(ctx.shape)
        da = (d_inner.t() @ rows).float().split(ctx.ranks)
        db = [
            (own.t() @ low).float().mul_(scale)
            for own, low, scale in zip(dy, inner.split(ctx.ranks, 1), ctx.scales, strict=True)
        ]
        adapters = [each for pair in zip(da, db, strict=True) for each in pair]
        return dx, None, *[None] * (2 * count), *adapters
