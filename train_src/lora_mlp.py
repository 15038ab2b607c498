"""A gated feed-forward block with LoRA on its three layers, as one step of autograd.

down(silu(gate(x)) * up(x)) keeps four tensors of the block's inner width for the way back when PyTorch does it step by
step; here only the gate's and the up layer's results are kept and the rest is computed again, which costs two passes
over memory and no matrix product. The adapter's own arithmetic is that of lora_linear.py; on an NVIDIA GPU
swiglu_kernels.py does all between the large products in one pass over memory each way.
"""

import functools
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import cpu_kernels
from lora_linear import adapters, dense, is_plain, shaped
from replacements import tried_out

SAME = 0.02  # relative difference; GELU instead of SiLU makes 0.1
PARTS = ("gate_proj", "up_proj", "down_proj")


def fuse(model: nn.Module) -> int:
    """Give every block that is found to be of this form the faster arithmetic; returns how many there are."""
    fused = tried_out([module for module in model.modules() if _has_parts(module)], _gives_the_same)
    for block in fused:
        setattr(block, "forward", functools.partial(_forward, block, block.forward))  # noqa: B010 (mypy: a method)
    return len(fused)


def _has_parts(module: nn.Module) -> bool:
    layers = [getattr(module, name, None) for name in PARTS]
    return all(
        isinstance(layer, LoraLayer) and is_plain(layer) and layer.get_base_layer().bias is None for layer in layers
    )


@torch.no_grad()
def _gives_the_same(block: Any) -> bool:
    """Whether this kind of block is the one written down here: tried out, because names alone do not say it."""
    weight = dense(block.gate_proj.get_base_layer())
    x = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device)
    # Large enough for activation functions to differ.
    x = 2 * x / (x @ weight.float().t()).square().mean().sqrt()
    x = x.to(weight.dtype)[None]
    plain, fused = block(x).float(), _fused(block, x).float()
    return bool((plain - fused).norm() <= SAME * plain.norm())


def _forward(block: Any, plain: Any, x: Tensor) -> Tensor:
    if block.gate_proj.disable_adapters or block.gate_proj.merged:
        return plain(x)
    return _fused(block, x)


def _fused(block: Any, x: Tensor) -> Tensor:
    layers = [getattr(block, name) for name in PARTS]
    scale, low = adapters(layers)
    return _LoraSwiGlu.apply(x, [layer.base_layer for layer in layers], scale, *low)


class _LoraSwiGlu(torch.autograd.Function):
    """x is (..., hidden); gate and up weights (inner, hidden), down (hidden, inner); a (r, inputs), b (outputs, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bases: list[Any], scale: float, *low: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a = torch.cat([low[0], low[2]]).mul_(scale).to(x.dtype)
        a_down = (low[4] * scale).to(x.dtype)
        b_gate, b_up, b_down = (b.to(x.dtype) for b in low[1::2])
        gate, up, down = bases
        lows = rows @ a.t()
        g, u = rows @ dense(gate).t(), rows @ dense(up).t()
        inner = _arithmetic(g, lows).swiglu(g, u, lows, b_gate, b_up)
        low_down = inner @ a_down.t()
        y = (inner @ dense(down).t()).addmm_(low_down, b_down.t())
        ctx.save_for_backward(rows, a, a_down, b_gate, b_up, b_down, lows, low_down, g, u)
        ctx.bases, ctx.scale = bases, scale
        return shaped(y, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, a_down, b_gate, b_up, b_down, lows, low_down, g, u = ctx.saved_tensors
        gate, up, down = ctx.bases
        shape = gradients[0].shape
        dy = gradients[0].reshape(-1, shape[-1])
        d_low = dy @ b_down
        inner, dg, du = _arithmetic(g, lows).swiglu_backward(dy @ dense(down), g, u, lows, b_gate, b_up, d_low, a_down)
        da_down = (d_low.t() @ inner).float().mul_(ctx.scale)
        d_lows = torch.cat([dg @ b_gate, du @ b_up], 1)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dg @ dense(gate)).addmm_(du, dense(up)).addmm_(d_lows, a).view(shape)
        da_gate, da_up = (d_lows.t() @ rows).float().mul_(ctx.scale).chunk(2)
        low_gate, low_up = lows.chunk(2, 1)
        db_gate, db_up, db_down = (
            (change.t() @ low).float() for change, low in ((dg, low_gate), (du, low_up), (dy, low_down))
        )
        return dx, None, None, da_gate, db_gate, da_up, db_up, da_down, db_down


def _arithmetic(g: Tensor, lows: Tensor) -> Any:
    """What has swiglu and swiglu_backward for these tensors."""
    if g.is_cuda:
        import swiglu_kernels  # needs Triton, which PyTorch brings for NVIDIA GPUs only

        return swiglu_kernels
    is_paired = lows.shape[1] % 4 == 0  # the rank is even
    return cpu_kernels if is_paired and cpu_kernels.suits(g) else InSteps


class InSteps:
    """PyTorch's own steps; on the way there `g` and `u` are given their adapters' part in place."""

    @staticmethod
    def swiglu(g: Tensor, u: Tensor, lows: Tensor, b_gate: Tensor, b_up: Tensor) -> Tensor:
        low_gate, low_up = lows.chunk(2, 1)
        g.addmm_(low_gate, b_gate.t())
        u.addmm_(low_up, b_up.t())
        return torch.nn.functional.silu(g).mul_(u)

    @staticmethod
    def swiglu_backward(
        d_inner: Tensor,
        g: Tensor,
        u: Tensor,
        _lows: Tensor,
        _b_gate: Tensor,
        _b_up: Tensor,
        d_low: Tensor,
        a_down: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_inner.addmm_(d_low, a_down)
        activated = torch.nn.functional.silu(g)
        inner = activated * u
        du = activated.mul_(d_inner)
        dg = torch.ops.aten.silu_backward(d_inner.mul_(u), g)
        return inner, dg, du
