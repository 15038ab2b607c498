"""T5's attention over rows that lie end to end, each seeing only itself: no padding in a pass, on CPU.

A padded batch of rows of mixed length spends about half of its arithmetic on padding. Here the linear layers see one
long sequence of sources and one of targets, and only attention goes row by row. Scores depend on distances, so all rows
share one table of biases, as large as the longest of them.

On a GPU the many small products of single rows would cost more than the padding they save.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from transformers.models.mt5.modeling_mt5 import MT5Attention
from transformers.models.t5.modeling_t5 import T5Attention

import attention


def pack(network: nn.Module) -> None:
    """Give every attention of a T5 the form described above.

    It acts where the model's attention implementation is `attention.NAME`, and is transformers' own elsewhere.
    """
    for module in network.modules():
        if isinstance(module, T5Attention | MT5Attention):
            plain = module.forward
            setattr(module, "forward", functools.partial(_forward, module, plain))  # noqa: B010 (mypy: a method)


def _forward(
    module: Any,
    plain: Any,
    hidden_states: Tensor,
    mask: Tensor | None = None,
    key_value_states: Tensor | None = None,
    position_bias: Tensor | None = None,
    past_key_values: Any = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None, None]:
    """T5Attention.forward; `position_bias` is (heads, longest row, longest row), or None over the encoder's output."""
    if module.config._attn_implementation != attention.NAME:
        return plain(hidden_states, mask, key_value_states, position_bias, past_key_values, **others)
    sources, targets = attention.documents_of_halves()
    queries = targets if module.is_decoder else sources
    keys = queries if key_value_states is None else sources
    if key_value_states is None and position_bias is None:
        position_bias = _biases(module, max(queries))
    seen = hidden_states if key_value_states is None else key_value_states
    query, key, value = (
        _heads(module, layer(x)) for layer, x in ((module.q, hidden_states), (module.k, seen), (module.v, seen))
    )
    dropout = module.dropout if module.training else 0.0
    output = _row_by_row(query, key, value, position_bias, queries, keys, dropout)
    return module.o(output.transpose(1, 2).flatten(2)), position_bias, None


def _heads(module: Any, x: Tensor) -> Tensor:
    """(1, tokens, inner) -> (1, heads, tokens, head size)."""
    return x.unflatten(-1, (module.n_heads, module.key_value_proj_dim)).transpose(1, 2)


def _biases(module: Any, longest: int) -> Tensor:
    """(heads, longest, longest): what a distance adds to a score; minus infinity ahead of a target's token."""
    biases = module.compute_bias(longest, longest)[0]
    if module.is_decoder:
        future = torch.ones(longest, longest, dtype=torch.bool).triu_(1)
        biases = biases.masked_fill(future, float("-inf"))
    return biases


def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    biases: Tensor | None,
    queries: Sequence[int],
    keys: Sequence[int],
    dropout: float,
) -> Tensor:
    """Attention of each row's queries to the keys of the same row; shapes (1, heads, tokens, size)."""
    rows = zip(query.split(queries, 2), key.split(keys, 2), value.split(keys, 2), strict=True)
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if biases is None else biases[None, :, : q.shape[2], : k.shape[2]].to(q.dtype),
                dropout_p=dropout,
                scale=1.0,
            )
            for q, k, v in rows
        ],
        dim=2,
    )
