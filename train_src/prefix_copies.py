"""A prefix that documents share, copied before each of them for kernels that know only whole documents."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Copies:
    """Where tokens lie in a sequence (`shared` tokens of prefix, then the documents) and in one of whole documents.

    `lengths` are those of the documents with a prefix each.
    """

    def __init__(self, lengths: Sequence[int], shared: int, device: torch.device) -> None:
        self.shared = shared
        self.lengths = [shared + length for length in lengths]
        borders = itertools.pairwise(itertools.accumulate(lengths, initial=shared))
        pieces = [piece for border in borders for piece in ((0, shared), border)]
        sources = torch.cat([torch.arange(*piece) for piece in pieces])  # of each copied token, its place before
        prefixes, own = (torch.nonzero(mask).squeeze(1) for mask in (sources < shared, sources >= shared))
        firsts = torch.cat([prefixes[:shared], own])
        self.sources, self.prefixes, self.firsts = (each.to(device) for each in (sources, prefixes, firsts))

    def of(self, tensor: Tensor) -> Tensor:
        """(1, tokens, heads, size) of the sequence -> of whole documents."""
        copied: Tensor = _Copy.apply(tensor, self)
        return copied

    def first(self, tensor: Tensor) -> Tensor:
        """(1, tokens, heads, size) of whole documents -> of the sequence: the first copy, as all are the same."""
        return tensor.index_select(1, self.firsts)


class _Copy(torch.autograd.Function):
    """The gradients of the copies are added up by one sum: an index adds them in bf16, in the order they come in."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, copies: Copies) -> Tensor:
        ctx.copies = copies
        return tensor.index_select(1, copies.sources)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        copies: Copies = ctx.copies
        total = gradients[0].index_select(1, copies.firsts)
        prefixes = gradients[0].index_select(1, copies.prefixes)
        total[:, : copies.shared] = prefixes.unflatten(1, (-1, copies.shared)).sum(1)
        return total, None
