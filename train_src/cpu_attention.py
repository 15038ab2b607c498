"""Causal attention over documents that lie end to end, on CPU: compiled, or plain batched matrix products.

Documents may begin with a prefix that they share: its keys and values are computed once and seen by all.

Where nothing is compiled (cpu_kernels.py says when), each block of queries meets only the keys it may see, with all query
heads of one key head in one product. In fp32 the weights of short documents are kept for the way back; others, which
would take more memory than all else in a layer, are computed again there, as with flash attention.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import cpu_kernels
from memory import BLOCK, MOST_KEPT

# Smaller weights are nothing beside the largest, and MKL's products with denormals take 200 times as long. The
# processor's instructions for bf16 take denormals for zero.
LEAST_WEIGHT = 1e-20


@dataclass(frozen=True)
class Block:
    """Queries of one document, and the stretches of keys before and up to them."""

    queries: slice
    keys: tuple[slice, ...]

    @property
    def pairs(self) -> int:
        """Weights of one head: each query with each key."""
        return (self.queries.stop - self.queries.start) * sum(keys.stop - keys.start for keys in self.keys)


def blocks(lengths: Sequence[int], shared: int) -> Iterator[Block]:
    """The blocks of a sequence that has `shared` tokens of prefix and then documents of these lengths."""
    documents = [(shared, 0), *((length, shared) for length in lengths)] if shared else [(n, 0) for n in lengths]
    start = 0
    for length, prefix in documents:
        for first in range(start, start + length, BLOCK):
            last = min(first + BLOCK, start + length)
            own = slice(start, last)
            yield Block(slice(first, last), (slice(0, prefix), own) if prefix else (own,))
        start += length


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, lengths: Sequence[int], shared: int) -> Tensor:
    """Causal attention inside each document, of which each also sees the `shared` tokens at the start.

    query is (1, heads, tokens, size), key and value are (1, key heads, tokens, size); returns (1, tokens, heads, size).
    """
    if cpu_kernels.suits(query, key, value) and query.shape[-1] == value.shape[-1]:
        documents = [shared, *lengths] if shared else lengths
        ends = tuple(itertools.accumulate(documents))
        return _CompiledAttention.apply(query, key, value, scale, ends, shared)
    return _BlockAttention.apply(query, key, value, scale, tuple(blocks(lengths, shared)))


class _CompiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, ends: tuple[int, ...], shared: int
    ) -> Tensor:
        output, logs = cpu_kernels.attend(query, key, value, scale, ends, shared)
        ctx.save_for_backward(query, key, value, output, logs)
        ctx.scale, ctx.ends, ctx.shared = scale, ends, shared
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, logs = ctx.saved_tensors
        made = cpu_kernels.attend_backward(
            gradients[0], query, key, value, output, logs, ctx.scale, ctx.ends, ctx.shared
        )
        return *made, None, None, None


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, parts: tuple[Block, ...]) -> Tensor:
        _, heads, tokens, _ = query.shape
        key_heads, size = key.shape[1], value.shape[-1]
        output = query.new_empty(tokens, heads, size)
        pairs = heads * sum(part.pairs for part in parts)
        keeps = any(ctx.needs_input_grad) and query.dtype == torch.float32 and pairs <= MOST_KEPT * query.numel()
        kept = []
        for part in parts:
            q, k = _grouped(query[0, :, part.queries], key_heads), _seen(key, part)
            weights = _weights(q, k, scale, heads)
            own = torch.bmm(weights, _seen(value, part))
            output[part.queries] = own.view(heads, -1, size).transpose(0, 1)
            if keeps:
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale, ctx.parts = scale, parts
        return output[None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        _, heads, tokens, size = query.shape
        key_heads = key.shape[1]
        d_query = query.new_empty(tokens, heads, size)
        d_key = torch.zeros(key.shape[1:], dtype=torch.float32)
        d_value = torch.zeros(value.shape[1:], dtype=torch.float32)
        for number, part in enumerate(ctx.parts):
            q, d_output = _grouped(query[0, :, part.queries], key_heads), gradients[0][0, part.queries].transpose(0, 1)
            d_output = _grouped(d_output, key_heads)
            k, v = _seen(key, part), _seen(value, part)
            weights = kept[number] if kept else _weights(q, k, ctx.scale, heads)
            _add(d_value, part, torch.bmm(weights.transpose(1, 2), d_output))
            d_weights = torch.bmm(d_output, v.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[part.queries] = _scaled(d_scores, k, ctx.scale).view(heads, -1, size).transpose(0, 1)
            _add(d_key, part, _scaled(d_scores.transpose(1, 2), q, ctx.scale))
        return d_query.transpose(0, 1)[None], d_key[None].to(key.dtype), d_value[None].to(key.dtype), None, None


def _grouped(tensor: Tensor, key_heads: int) -> Tensor:
    """(heads, queries, size) -> (key heads, query heads of each x queries, size)."""
    return tensor.reshape(key_heads, -1, tensor.shape[-1])


def _seen(tensor: Tensor, part: Block) -> Tensor:
    """The keys or values of (1, key heads, tokens, size) that a block sees."""
    if len(part.keys) == 1:
        return tensor[0, :, part.keys[0]]
    return torch.cat([tensor[0, :, stretch] for stretch in part.keys], dim=1)


def _add(total: Tensor, part: Block, gradient: Tensor) -> None:
    sizes = [stretch.stop - stretch.start for stretch in part.keys]
    for stretch, own in zip(part.keys, gradient.split(sizes, dim=1), strict=True):
        total[:, stretch].add_(own)


def _weights(query: Tensor, key: Tensor, scale: float, heads: int) -> Tensor:
    """Softmax of the scores (key heads, query heads of each x queries, keys). The last query sees every key.

    Its sums are fp32's in every type.
    """
    scores = _scaled(query, key.transpose(1, 2), scale)
    queries = scores.shape[0] * scores.shape[1] // heads
    own = scores.view(heads, queries, -1)[:, :, -queries:]  # of the keys those that are the queries
    own.add_(_future(BLOCK, scores.dtype)[:queries, :queries])
    weights = torch.softmax(scores, -1)
    return torch.threshold_(weights, LEAST_WEIGHT, 0.0) if weights.dtype == torch.float32 else weights


def _scaled(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """scale * one @ other, a matrix for each key head."""
    return torch.baddbmm(one.new_zeros(1), one, other, beta=0, alpha=scale)


@functools.cache
def _future(size: int, dtype: torch.dtype) -> Tensor:
    """(size, size): 0 where a token may look, minus infinity after it."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu_(1)
