"""T5's attention over rows that lie end to end, each seeing only itself: no padding in a pass, on CPU.

A padded batch of rows of mixed length spends about half of its arithmetic on padding. Here the linear layers see one
long sequence of sources and one of targets, and only attention goes row by row. Scores depend on distances, so all rows
share one table of biases, as large as the longest of them.

On a GPU the many small products of single rows would cost more than the padding they save.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mt5.modeling_mt5 import MT5Attention
from transformers.models.t5.modeling_t5 import T5Attention

import attention
from lora_linear import project
from row_attention import attend_in_rows


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
    is_causal = module.is_decoder and key_value_states is None
    if key_value_states is None:
        parts = project((module.q, module.k, module.v), hidden_states)
    else:
        parts = [module.q(hidden_states), *project((module.k, module.v), key_value_states)]
    query, key, value = (part[0].unflatten(-1, (module.n_heads, module.key_value_proj_dim)) for part in parts)
    dropout = module.dropout if module.training else 0.0
    output = attend_in_rows(query, key, value, position_bias, queries, keys, is_causal=is_causal, dropout=dropout)
    return module.o(output.flatten(1)[None]), position_bias, None


def _biases(module: Any, longest: int) -> Tensor:
    """(heads, longest, longest): what a distance adds to a score; minus infinity ahead of a target's token."""
    biases = module.compute_bias(longest, longest)[0].float()
    if module.is_decoder:
        future = torch.ones(longest, longest, dtype=torch.bool).triu_(1)
        biases = biases.masked_fill(future, float("-inf"))
    return biases
