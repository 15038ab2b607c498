"""Attention over many documents laid end to end in one sequence, each seeing only itself.

Rows of different length are trained without padding: all linear layers see one long sequence, and this function splits
it at the documents' borders. It is registered with transformers as `packed`, so every causal model that uses the
attention interface takes it.

On CPU the arithmetic is cpu_attention.py's, which can also share a prefix between the documents: rows that begin alike
(a system prompt, a fixed instruction) have it computed once in a pass and not once each.

On a GPU all documents go through one launch of the flash kernel for sequences of various length, where this PyTorch and
this GPU have it (torch.nn.attention.varlen, bf16, Ampere or newer); elsewhere one by one.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

import cpu_attention

NAME = "packed"

# What a model's attention may ask for beyond scaled, causal softmax; a model that does gets its own mask instead.
UNSUPPORTED = ("sliding_window", "softcap", "s_aux")


def register() -> None:
    """Make `attn_implementation="packed"` known to transformers."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def set_documents(lengths: Sequence[int], shared: int = 0, sources: Sequence[int] = ()) -> None:
    """Say how long the documents of the next forward pass are, in order. Empty: each sequence is one document.

    `shared` tokens at the start of the sequence come before every document (on CPU only). For an encoder-decoder
    `lengths` are those of the targets, `sources` those of what the encoder reads.

    A module variable and not an argument: a model that drops unknown arguments on their way to its attention would
    otherwise let the documents see each other without an error. It must stay until the backward pass is over, because
    gradient checkpointing runs the forward pass again there.
    """
    _DOCUMENTS[:] = lengths
    _SOURCES[:] = sources
    _SHARED[0] = shared


_DOCUMENTS: list[int] = []
_SOURCES: list[int] = []
_SHARED = [0]


def documents_of_halves() -> tuple[list[int], list[int]]:
    """(lengths of the sources, of the targets) of an encoder-decoder's current pass."""
    return _SOURCES, _DOCUMENTS


def packed_attention(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document of the current batch.

    query is (1, heads, tokens, size), key and value are (1, key heads, tokens, size). Returns (1, tokens, heads, size).
    """
    asked = [name for name in UNSUPPORTED if others.get(name) is not None]
    if asked or attention_mask is not None:
        raise NotImplementedError(f"packed attention has no {', '.join(asked) or 'mask'}")
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # Our own autograd function runs its way back outside of autocast, so it must be given one type from the start.
        low = torch.get_autocast_dtype(kind)
        query, key, value = query.to(low), key.to(low), value.to(low)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    lengths = _DOCUMENTS or [query.shape[2]]
    if kind == "cpu":
        return cpu_attention.attend(query, key, value, scale, lengths, _SHARED[0]), None
    if _SHARED[0]:
        raise NotImplementedError(f"documents share a prefix on CPU only, this is {kind}")
    varlen = varlen_attention() if _has_flash(query) else None
    if varlen is not None:
        return _all_at_once(varlen, query, key, value, lengths, scale), None
    documents = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [_document_attention(q, k, v, scale) for q, k, v in documents]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


@functools.cache
def varlen_attention() -> Callable[..., Any] | None:
    """PyTorch's attention over sequences of various length, or None where this PyTorch has none that does what we need."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return (
        varlen_attn
        if {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)
        else None
    )


def _has_flash(tensor: Tensor) -> bool:
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.device.type == "cuda" and half and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


def _all_at_once(
    varlen: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float
) -> Tensor:
    """(1, heads, tokens, size) each -> (1, tokens, heads, size)."""
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    longest = max(lengths)
    return varlen(
        q, k, v, ends, ends, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1]
    )[None]


def _document_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    is_grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=is_grouped)


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed attention needs no mask tensor: a document's length says it all."""
