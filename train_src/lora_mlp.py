"""A gated feed-forward block with LoRA on its three layers, as one step of autograd.

down(silu(gate(x)) * up(x)) keeps four tensors of the block's inner width for the way back when PyTorch does it step by
step; here only the gate's and the up layer's results are kept and the rest is computed again, which costs two passes
over memory and no matrix product. The adapter's own arithmetic is that of lora_linear.py.
"""

import functools
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

SAME = 0.02  # relative difference; GELU instead of SiLU makes 0.1
PARTS = ("gate_proj", "up_proj", "down_proj")


def fuse(model: nn.Module) -> int:
    """Give every block that is found to be of this form the faster arithmetic; returns how many there are.

    Its three layers must be plain LoRA layers (lora_linear.py says which are).
    """
    blocks = [module for module in model.modules() if _has_parts(module)]
    kinds = {type(block): _gives_the_same(block) for block in {type(block): block for block in blocks}.values()}
    fused = [block for block in blocks if kinds[type(block)]]
    for block in fused:
        setattr(block, "forward", functools.partial(_forward, block, block.forward))  # noqa: B010 (mypy: a method)
    return len(fused)


def _has_parts(module: nn.Module) -> bool:
    layers = [getattr(module, name, None) for name in PARTS]
    return all(isinstance(layer, PeftLinear) and layer.get_base_layer().bias is None for layer in layers)


@torch.no_grad()
def _gives_the_same(block: Any) -> bool:
    """Whether this kind of block is the one written down here: tried out, because names alone do not say it."""
    weight = block.gate_proj.get_base_layer().weight
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
    weights = [layer.base_layer.weight for layer in layers]
    low = [each for layer in layers for each in (layer.lora_A["default"].weight, layer.lora_B["default"].weight)]
    return _LoraSwiGlu.apply(x, *weights, *low, tuple(layer.scaling["default"] for layer in layers))


class _LoraSwiGlu(torch.autograd.Function):
    """x is (..., hidden); gate and up weights (inner, hidden), down (hidden, inner); a (r, inputs), b (outputs, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *others: Any) -> Tensor:
        *low, scales = others
        rows = x.reshape(-1, x.shape[-1])
        a_gate, a_up, a_down = (a.to(x.dtype) for a in low[0::2])
        b_gate, b_up, b_down = ((b * scale).to(x.dtype) for b, scale in zip(low[1::2], scales, strict=True))
        low_gate, low_up = rows @ a_gate.t(), rows @ a_up.t()
        g = (rows @ gate.t()).addmm_(low_gate, b_gate.t())
        u = (rows @ up.t()).addmm_(low_up, b_up.t())
        inner = torch.nn.functional.silu(g).mul_(u)
        low_down = inner @ a_down.t()
        y = (inner @ down.t()).addmm_(low_down, b_down.t())
        ctx.save_for_backward(
            rows, gate, up, down, a_gate, b_gate, a_up, b_up, a_down, b_down, low_gate, low_up, low_down, g, u
        )
        ctx.scales = scales
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate, up, down, a_gate, b_gate, a_up, b_up, a_down, b_down, low_gate, low_up, low_down, g, u = (
            ctx.saved_tensors
        )
        shape = gradients[0].shape
        dy = gradients[0].reshape(-1, shape[-1])
        d_low = dy @ b_down
        d_inner = (dy @ down).addmm_(d_low, a_down)
        activated = torch.nn.functional.silu(g)
        da_down = d_low.t() @ torch.mul(activated, u)
        db_down = dy.t() @ low_down
        du = activated.mul_(d_inner)
        dg = torch.ops.aten.silu_backward(d_inner.mul_(u), g)
        d_low_gate, d_low_up = dg @ b_gate, du @ b_up
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dg @ gate).addmm_(du, up).addmm_(d_low_gate, a_gate).addmm_(d_low_up, a_up).view(shape)
        low = [
            (d_low_gate.t() @ rows, dg.t() @ low_gate),
            (d_low_up.t() @ rows, du.t() @ low_up),
            (da_down, db_down),
        ]
        adapters = [
            each for (a, b), scale in zip(low, ctx.scales, strict=True) for each in (a.float(), b.float().mul_(scale))
        ]
        return dx, None, None, None, *adapters, None
