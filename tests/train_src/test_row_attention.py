"""Attention of rows end to end is that of each row alone, forwards and backwards."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import row_attention
from row_attention import attend_in_rows

HEADS, SIZE = 3, 8


def tensors(queries: list[int], keys: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    counts = [sum(queries), sum(keys), sum(keys)]
    made = [torch.randn(count, HEADS, SIZE, dtype=dtype).requires_grad_() for count in counts]
    longest = max(queries)
    return [*made, torch.randn(HEADS, longest, longest).requires_grad_()]


def hidden_future(biases: Tensor) -> Tensor:
    return biases.masked_fill(torch.ones(biases.shape[1:], dtype=torch.bool).triu(1), float("-inf"))


def row_by_row(
    query: Tensor, key: Tensor, value: Tensor, biases: Tensor | None, queries: list[int], keys: list[int]
) -> Tensor:
    found = []
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        one = [each.transpose(0, 1)[None] for each in (q, k, v)]
        mask = None if biases is None else biases[None, :, : len(q), : len(k)]
        found.append(functional.scaled_dot_product_attention(*one, attn_mask=mask, scale=1.0)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("block", [4, 128])
def test_it_equals_attention_of_each_row_alone(monkeypatch: pytest.MonkeyPatch, is_causal: bool, block: int) -> None:
    monkeypatch.setattr(row_attention, "BLOCK", block)
    lengths = [5, 1, 13]
    inputs = tensors(lengths, lengths)
    biases = hidden_future(inputs[3]) if is_causal else inputs[3]
    ours = attend_in_rows(*inputs[:3], biases, lengths, lengths, is_causal=is_causal)
    theirs = row_by_row(*inputs[:3], biases, lengths, lengths)
    torch.testing.assert_close(ours, theirs)
    wanted = torch.randn_like(ours)
    gradients = [torch.autograd.grad(each, inputs, wanted, retain_graph=True) for each in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_targets_look_at_sources_of_another_length(dtype: torch.dtype, tolerance: float) -> None:
    queries, keys = [5, 9, 2], [3, 1, 14]
    inputs = tensors(queries, keys, dtype)[:3]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    ours, theirs = attend_in_rows(*inputs, None, queries, keys), row_by_row(*exact, None, queries, keys)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    wanted = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, inputs, wanted), torch.autograd.grad(theirs, exact, wanted.double())
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def test_a_dropped_weight_counts_in_neither_direction_and_the_others_make_up_for_it() -> None:
    inputs = tensors([6], [6])
    torch.manual_seed(1)
    ours = attend_in_rows(*inputs, [6], [6], dropout=0.4)
    torch.manual_seed(1)
    query, key, value = (each.transpose(0, 1) for each in inputs[:3])
    weights = torch.softmax(query @ key.transpose(1, 2) + inputs[3], -1)
    mask = torch.rand_like(weights) >= 0.4
    theirs = (weights * mask / 0.6 @ value).transpose(0, 1)
    assert 0 < int(mask.sum()) < mask.numel()
    torch.testing.assert_close(ours, theirs)
    wanted = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad(each, inputs, wanted) for each in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_causal_block_reads_no_key_after_its_last_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_attention, "BLOCK", 4)
    found = [(part.queries, part.keys, part.first) for part in row_attention.blocks([6, 3], [6, 3], is_causal=True)]
    assert found == [
        (slice(0, 4), slice(0, 4), 0), (slice(4, 6), slice(0, 6), 4), (slice(6, 9), slice(6, 9), 0),
    ]  # fmt: skip
