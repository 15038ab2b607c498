"""Attention of rows that lie end to end, each over its own keys, with T5's biases: one step of autograd, on CPU.

Blocks of a row's queries meet the keys they may see in one batched product over all heads. Their weights are kept for
the way back (4 bytes for each pair of tokens and head, and 1 where attention drops at random); PyTorch's own steps keep
several such tensors, and compute what a target's token may not see.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # queries


@dataclass(frozen=True)
class Block:
    """Queries of one row and the keys they see, as places in all rows; `first` is the first query's place in its row."""

    queries: slice
    keys: slice
    first: int

    @property
    def biases(self) -> tuple[slice, slice, slice]:
        """The part of (heads, longest row, longest row) that belongs to this block."""
        count = self.queries.stop - self.queries.start
        return slice(None), slice(self.first, self.first + count), slice(self.keys.stop - self.keys.start)


def blocks(queries: Sequence[int], keys: Sequence[int], *, is_causal: bool) -> Iterator[Block]:
    """The blocks of rows with so many queries and keys each: whole rows, or, where it is causal, stretches of them.

    A stretch sees no key after its last query.
    """
    query = key = 0
    for length, seen in zip(queries, keys, strict=True):
        for first in range(0, length, BLOCK if is_causal else length):
            last = min(first + BLOCK, length) if is_causal else length
            yield Block(slice(query + first, query + last), slice(key, key + (last if is_causal else seen)), first)
        query, key = query + length, key + seen


def attend_in_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    biases: Tensor | None,
    queries: Sequence[int],
    keys: Sequence[int],
    *,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """What the queries of each row find among the keys of the same row.

    query, key and value are (tokens, heads, size); `queries` and `keys` say how many of the tokens are each row's.
    `biases` (heads, longest row, longest row) is added to the scores, which are not scaled; where `is_causal` it must be
    minus infinity ahead of a token. Each weight is dropped with probability `dropout`. Returns (tokens, heads, size).
    """
    parts = tuple(blocks(queries, keys, is_causal=is_causal))
    return _RowAttention.apply(query, key, value, biases, parts, dropout)


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        biases: Tensor | None,
        parts: tuple[Block, ...],
        dropout: float,
    ) -> Tensor:
        output = torch.empty_like(query)
        kept: list[Tensor] = []
        masks: list[Tensor] = []
        for part in parts:
            scores = torch.bmm(_heads(query, part.queries), _heads(key, part.keys).transpose(1, 2)).float()
            if biases is not None:
                scores += biases[part.biases]
            weights = torch.softmax(scores, -1)
            kept.append(weights)
            if dropout:
                masks.append(torch.rand_like(weights) >= dropout)
                weights = _dropped(weights, masks[-1], dropout)
            _heads(output, part.queries).copy_(torch.bmm(weights.to(value.dtype), _heads(value, part.keys)))
        ctx.save_for_backward(query, key, value, biases, *kept, *masks)
        ctx.parts, ctx.dropout = parts, dropout
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, biases, *kept = ctx.saved_tensors
        d_query = torch.empty_like(query)
        d_key, d_value = (torch.zeros(each.shape, dtype=torch.float32) for each in (key, value))
        d_biases = torch.zeros_like(biases) if ctx.needs_input_grad[3] else None
        for number, part in enumerate(ctx.parts):
            q, k, v = _heads(query, part.queries), _heads(key, part.keys), _heads(value, part.keys)
            d_output = _heads(gradients[0], part.queries)
            weights = seen = kept[number]
            d_weights = torch.bmm(d_output, v.transpose(1, 2)).float()
            if ctx.dropout:
                mask = kept[number + len(ctx.parts)]
                seen, d_weights = (_dropped(each, mask, ctx.dropout) for each in (weights, d_weights))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if d_biases is not None:
                d_biases[part.biases] += d_scores
            low = d_scores.to(q.dtype)
            _heads(d_query, part.queries).copy_(torch.bmm(low, k))
            _heads(d_key, part.keys).add_(torch.bmm(low.transpose(1, 2), q))
            _heads(d_value, part.keys).add_(torch.bmm(seen.to(v.dtype).transpose(1, 2), d_output))
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), d_biases, None, None


def _heads(tensor: Tensor, tokens: slice) -> Tensor:
    """Tokens of (all tokens, heads, size) as (heads, tokens, size)."""
    return tensor[tokens].transpose(0, 1)


def _dropped(tensor: Tensor, mask: Tensor, dropout: float) -> Tensor:
    return tensor.mul(mask).mul_(1 / (1 - dropout))
