"""Norms and rotary positions on a CPU, each as one step of autograd.

transformers writes both out in steps, each of which passes over memory and keeps its result for the way back. Here a
norm keeps its input and a number a token, a rotation nothing. Only frozen norms are replaced: their weights need no
gradient.
"""

import functools
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

import cpu_kernels
from replacements import tried_out

ROTATION = "apply_rotary_pos_emb"
SAME = 0.02  # relative difference, as bf16 rounds
OFFSETS = (0.0, 1.0)  # what a norm's weights lack: Gemma's are kept as their distance from one


def use_cpu_layers(network: nn.Module) -> tuple[int, int]:
    """Give a loaded model this arithmetic where it is found to be the same: (norms, modules whose rotation it is)."""
    norms = [module for module in network.modules() if _is_norm(module)]
    replaced = [
        functools.partial(_norm, norm, offset)
        for offset in OFFSETS
        for norm in tried_out(norms, functools.partial(_is_same_norm, offset=offset))
    ]
    for own in replaced:
        setattr(own.args[0], "forward", own)  # noqa: B010 (mypy: a method)
    sources = {sys.modules[type(module).__module__] for module in network.modules()}
    return len(replaced), sum(_replace_rotation(source) for source in sources if hasattr(source, ROTATION))


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return _epsilon(module) is not None and weight is not None and weight.dim() == 1 and not weight.requires_grad


def _epsilon(module: Any) -> float | None:
    """What keeps a root mean square from zero; None of any other module."""
    if "RMSNorm" in type(module).__name__:
        return getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return getattr(module, "variance_epsilon", None)


@torch.no_grad()
def _is_same_norm(norm: Any, offset: float) -> bool:
    x = torch.randn(2, len(norm.weight), generator=torch.Generator().manual_seed(0)).mul_(3).to(norm.weight.dtype)
    plain, own = norm(x), _norm(norm, offset, x)
    return plain.dtype == own.dtype and bool((plain - own).float().norm() <= SAME * plain.float().norm())


def _norm(norm: Any, offset: float, x: Tensor) -> Tensor:
    # With an offset the sum, and what it multiplies, are rounded in no type but fp32.
    weight = norm.weight.float() + offset if offset else norm.weight
    result: Tensor = _RmsNorm.apply(x, weight, _epsilon(norm))
    return result.to(x.dtype) if offset else result


class _RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in the weight's type; computed in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.is_compiled = cpu_kernels.suits(x, weight)
        if ctx.is_compiled:
            y, factor = cpu_kernels.rms_norm(x, weight, eps)
            ctx.save_for_backward(x, weight, factor)
            return y
        wide = x.float()
        squares = torch.linalg.vector_norm(wide, 2.0, -1, True).square_()
        factor = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return (wide * factor).to(weight.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, weight, factor = ctx.saved_tensors
        if ctx.is_compiled:
            return cpu_kernels.rms_norm_backward(gradients[0], x, weight, factor), None, None
        wide, change = x.float(), (gradients[0] * weight).float()
        common = torch.linalg.vecdot(change, wide)[..., None].mul_(factor**3).div_(-x.shape[-1])
        return change.mul_(factor).addcmul_(wide, common).to(x.dtype), None, None


def _replace_rotation(source: Any) -> bool:
    plain = getattr(source, ROTATION)
    if isinstance(plain, functools.partial):
        return True
    own = functools.partial(_rotations, plain)
    if not _is_same_rotation(plain, own):
        return False
    setattr(source, ROTATION, own)
    return True


def _is_same_rotation(plain: Any, own: Any) -> bool:
    if list(inspect.signature(plain).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return False
    x, angles = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((1, 2, 3, 8), (1, 3, 4)))
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    try:
        turned = plain(x, x, cos, sin)
    except RuntimeError:  # angles of another shape
        return False
    return all(torch.allclose(*pair, atol=1e-5) for pair in zip(turned, own(x, x, cos, sin), strict=True))


def _rotations(plain: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    if q.device.type != "cpu" or q.shape[-1] != cos.shape[-1]:
        return plain(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)


class _Rotation(torch.autograd.Function):
    """Number i of a head and number i + half, turned by the place's angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    if cpu_kernels.suits(x[..., : x.shape[-1] // 2], cos, sin) and cos.shape == (1, 1, *x.shape[2:]) and len(x) == 1:
        return cpu_kernels.rotate(x, cos, sin, direction)
    result = x * cos
    (own_low, own_high), (low, high), (sin_low, sin_high) = (each.chunk(2, -1) for each in (result, x, sin))
    own_low.addcmul_(high, sin_low, value=-direction)
    own_high.addcmul_(low, sin_high, value=direction)
    return result
