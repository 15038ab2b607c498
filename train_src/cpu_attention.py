"""Causal attention over documents that lie end to end, on CPU: plain batched matrix products, block by block.

Each block of queries meets only the keys it may see, with all query heads of one key head in one product, and only the
sums of the softmax are kept for the way back, as flash attention does; the weights are computed again there. Documents
may begin with a prefix that they share: its keys and values are computed once and seen by all.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # queries
# exp(-80) is nothing beside the sum's largest term, exp(0). Below -87 results are denormal, and MKL takes 200 times as long.
LEAST_EXPONENT = -80.0


@dataclass(frozen=True)
class Block:
    """Queries of one document, and the stretches of keys before and up to them."""

    queries: slice
    keys: tuple[slice, ...]


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
    return _BlockAttention.apply(query, key, value, scale, tuple(blocks(lengths, shared)))


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, parts: tuple[Block, ...]) -> Tensor:
        _, heads, tokens, _ = query.shape
        key_heads, size = key.shape[1], value.shape[-1]
        output = query.new_empty(tokens, heads, size)
        log_sums = query.new_empty(key_heads, heads // key_heads, tokens, dtype=torch.float32)
        for part in parts:
            q, k = _grouped(query[0, :, part.queries], key_heads), _seen(key, part)
            scores = _scores(q, k, scale, heads)
            largest = scores.amax(-1, keepdim=True)
            weights = _weights(scores.sub_(largest), heads)
            sums = weights.sum(-1, keepdim=True)
            own = torch.bmm(weights.to(q.dtype), _seen(value, part)).div_(sums)
            output[part.queries] = own.view(heads, -1, size).transpose(0, 1)
            log_sums[:, :, part.queries] = sums.log_().add_(largest).view(key_heads, heads // key_heads, -1)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.scale, ctx.parts = scale, parts
        return output[None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_sums = ctx.saved_tensors
        _, heads, _, size = query.shape
        key_heads = key.shape[1]
        d_output = gradients[0][0]
        # What the softmax takes from each row of gradients.
        common = (d_output * output).sum(-1, dtype=torch.float32).t().reshape(log_sums.shape)
        d_query = query.new_empty(query.shape[2], heads, size)
        d_key = torch.zeros(key.shape[1:], dtype=torch.float32)
        d_value = torch.zeros(value.shape[1:], dtype=torch.float32)
        for part in ctx.parts:
            q, d_out = _grouped(query[0, :, part.queries], key_heads), d_output[part.queries].transpose(0, 1)
            d_out = _grouped(d_out, key_heads)
            k, v = _seen(key, part), _seen(value, part)
            scores = _scores(q, k, ctx.scale, heads)
            weights = _weights(scores.sub_(log_sums[:, :, part.queries].reshape(key_heads, -1, 1)), heads)
            _add(d_value, part, torch.bmm(weights.to(q.dtype).transpose(1, 2), d_out))
            d_scores = torch.bmm(d_out, v.transpose(1, 2)).float()
            d_scores.sub_(common[:, :, part.queries].reshape(key_heads, -1, 1)).mul_(weights)
            low = d_scores.to(q.dtype)
            d_query[part.queries] = _scaled(low, k, ctx.scale).view(heads, -1, size).transpose(0, 1)
            _add(d_key, part, _scaled(low.transpose(1, 2), q, ctx.scale))
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


def _scores(query: Tensor, key: Tensor, scale: float, heads: int) -> Tensor:
    """Scaled scores in fp32, minus infinity for what comes after a query. The last query sees every key."""
    scores = _scaled(query, key.transpose(1, 2), scale).float()
    own = _own_keys(scores, heads)
    own.add_(_future(BLOCK)[: own.shape[1], : own.shape[1]])
    return scores


def _weights(scores: Tensor, heads: int) -> Tensor:
    """exp of the scores, in place; zero for what comes after a query."""
    weights = scores.clamp_(min=LEAST_EXPONENT).exp_()
    _own_keys(weights, heads).tril_()
    return weights


def _own_keys(scores: Tensor, heads: int) -> Tensor:
    """Of the scores (key heads, query heads of each x queries, keys) the keys that are the queries: (heads, n, n)."""
    queries = scores.shape[0] * scores.shape[1] // heads
    return scores.view(heads, queries, -1)[:, :, -queries:]


def _scaled(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """scale * one @ other, a matrix for each key head."""
    return torch.baddbmm(one.new_zeros(1), one, other, beta=0, alpha=scale)


@functools.cache
def _future(size: int) -> Tensor:
    """(size, size): 0 where a token may look, minus infinity after it."""
    return torch.full((size, size), float("-inf")).triu_(1)
