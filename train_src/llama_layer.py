"""What a Llama-like layer does beside its matrix products, and whole layers in TorchScript.

A step of one row is some forty small operations a layer, and on a CPU Python takes longer to start them than they run;
TorchScript starts them from C++. The operations and their order stay the same, and so do the bits of the result.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from linears import Linear


class Norm(nn.Module):
    """RMS norm over the last axis: `x / sqrt(mean(x^2) + eps) * weight`."""

    def __init__(self, weight: Tensor, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.eps, self.size = weight.detach().to(dtype), eps, len(weight)
        self.is_split = weight.device.type == "cpu" and dtype == torch.float32
        self.longer = self.weight * self.size**0.5
        self.least = torch.tensor((eps * self.size) ** 0.5, dtype=dtype, device=weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        if not self.is_split:
            return torch.rms_norm(x, [self.size], self.weight, self.eps)
        # For CPUs PyTorch composes rms_norm of nine operations; these are four.
        return (x * self.longer).div_(torch.linalg.vector_norm(x, 2.0, [-1], True).hypot_(self.least))


class Turn(nn.Module):
    """Takes queries, keys and values apart and turns queries and keys to their places, normed where a model does so."""

    def __init__(
        self, heads: int, kv_heads: int, size: int, dtype: torch.dtype, query_norm: Norm | None, key_norm: Norm | None
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, size
        self.query_norm, self.key_norm = query_norm, key_norm
        self.is_in_place = dtype == torch.float32 and query_norm is None

    def forward(self, qkv: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (tokens, heads, size) and keys with values (tokens, 2, kv_heads, size); `turns` (tokens, 1, size / 2).

        Both are views of `qkv`, which is overwritten where its strides allow.
        """
        heads = qkv.contiguous().view(qkv.size(0), -1, self.size)
        own = heads[:, : -self.kv_heads]
        turned = own
        if self.query_norm is not None and self.key_norm is not None:
            query, key = own.split([self.heads, self.kv_heads], 1)
            turned = torch.cat([self.query_norm(query), self.key_norm(key)], 1)
        turned = turned.float()
        torch.view_as_complex(turned.view(qkv.size(0), -1, self.size // 2, 2)).mul_(turns)
        if not self.is_in_place:
            own.copy_(turned)
        return heads[:, : self.heads], heads[:, self.heads :].view(qkv.size(0), 2, self.kv_heads, self.size)


def attend_rows(query: Tensor, pairs: Tensor, slots: list[Tensor], keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """What the newest token of each row attends to, (tokens, heads x size), once its keys and values are kept.

    `query` and `pairs` are what Turn gives. Of each row: the slot (2, kv_heads, size) for the newest keys and values, and
    all keys and all values (1, kv_heads, length, size). Tokens beyond the rows are padding.
    """
    # The heads that share keys are rows of one query. A row at a time: none sees another's length.
    queries = query.view(query.size(0), 1, pairs.size(2), -1, query.size(2))
    found: list[Tensor] = []
    for row in range(len(slots)):
        slots[row].copy_(pairs[row])
        found.append(functional.scaled_dot_product_attention(queries[row], keys[row], values[row]))
    for _ in range(query.size(0) - len(slots)):
        found.append(found[-1])
    return torch.cat(found).reshape(query.size(0), -1)  # GPUs' kernels lay their results out in their own ways


@dataclass
class Layer:
    """The parts of a layer; query, key and value are one product, gate and up another."""

    attention_norm: Norm
    qkv: Linear
    turn: Turn
    out: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear


class _ScriptedLayer(nn.Module):
    """A layer of packed products, for the newest token of some rows."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.attention_norm, self.turn, self.mlp_norm = layer.attention_norm, layer.turn, layer.mlp_norm
        self.qkv: Any = layer.qkv.product
        self.out: Any = layer.out.product
        self.gate_up: Any = layer.gate_up.product
        self.down: Any = layer.down.product

    def forward(
        self, hidden: Tensor, turns: Tensor, slots: list[Tensor], keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        """The layer added to (rows, hidden), in place; the others as Turn and attend_rows say."""
        query, pairs = self.turn(self.qkv(self.attention_norm(hidden)), turns)
        hidden.add_(self.out(attend_rows(query, pairs, slots, keys, values)))
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, -1)
        return hidden.add_(self.down(functional.silu(gate).mul_(up)))


def scripted(layer: Layer) -> Any:
    """What moves rows through the layer, as _ScriptedLayer says; None when not all its products are packed."""
    if not all(linear.is_packed for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # as linears.py says
        return torch.jit.script(_ScriptedLayer(layer)).forward
