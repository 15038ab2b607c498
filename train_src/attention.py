"""Attention over many documents laid end to end in one sequence, each seeing only itself.

Rows of different length are trained without padding: all linear layers see one long sequence, and this function splits
it at the documents' borders. It is registered with transformers as `packed`, so every causal model that uses the
attention interface takes it.

Documents may share a prefix: what rows begin with alike (a system prompt, a fixed instruction) goes through all layers
once in a pass and not once each.

On CPU the arithmetic is cpu_attention.py's. On a GPU all documents go through one launch: documents of one length as a
batch, on Hopper and newer by cuDNN, which is faster there; others through the flash kernel for sequences of various
length (bf16, Ampere or newer). Elsewhere they go one by one. These kernels know no shared prefix and are given a copy of
it for each document.
"""

import collections
import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

import cpu_attention
from prefix_copies import Copies

NAME = "packed"

COMMON = 1 / 8  # of all passes: a shape with that share is worth a plan
# What a model's attention may ask for beyond scaled, causal softmax; a model that does gets its own mask instead.
UNSUPPORTED = ("sliding_window", "softcap", "s_aux")


def register() -> None:
    """Make `attn_implementation="packed"` known to transformers."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def set_documents(lengths: Sequence[int], shared: int = 0, sources: Sequence[int] = ()) -> None:
    """Say how long the documents of the next forward pass are, in order. Empty: each sequence is one document.

    `shared` tokens at the start of the sequence come before every document. For an encoder-decoder `lengths` are those of
    the targets, `sources` those of what the encoder reads.

    A module variable and not an argument: a model that drops unknown arguments on their way to its attention would
    otherwise let the documents see each other without an error. It must stay until the backward pass is over, because
    gradient checkpointing runs the forward pass again there.
    """
    _DOCUMENTS[:] = lengths
    _SOURCES[:] = sources
    _SHARED[0] = shared
    _ENDS.clear()
    _COPIES.clear()
    if lengths:
        _PASSES[len(lengths), shared + max(lengths)] += 1


_DOCUMENTS: list[int] = []
_SOURCES: list[int] = []
_SHARED = [0]
_ENDS: dict[torch.device, Tensor] = {}  # where the documents of this pass end, once a layer has asked
_COPIES: dict[torch.device, Copies] = {}  # of the prefix that they share, likewise
_PASSES: collections.Counter[tuple[int, int]] = collections.Counter()  # by documents and longest document


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
    return on_gpu(query, key, value, lengths, _SHARED[0], scale), None


def on_gpu(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], shared: int, scale: float) -> Tensor:
    """packed_attention by PyTorch's own kernels, as set_documents describes the documents."""
    if not shared:
        return _whole_documents(query, key, value, lengths, scale)
    copies = _copies(lengths, shared, query.device)
    q, k, v = (copies.of(tensor.transpose(1, 2)).transpose(1, 2) for tensor in (query, key, value))
    return copies.first(_whole_documents(q, k, v, copies.lengths, scale))


def _whole_documents(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Documents end to end, by the kernel that suits them: (1, heads, tokens, size) each -> (1, tokens, heads, size)."""
    if len(set(lengths)) == 1:
        return _as_batch(query, key, value, lengths[0], scale)
    if _has_flash(query):
        return _all_at_once(query, key, value, lengths, scale)
    documents = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [_document_attention(q, k, v, scale) for q, k, v in documents]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _as_batch(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float) -> Tensor:
    """Documents of one length: (1, heads, tokens, size) each -> (1, tokens, heads, size)."""
    # Views both ways: an index instead of squeeze() would have its gradient copied.
    q, k, v = (tensor.squeeze(0).unflatten(1, (-1, length)).transpose(0, 1) for tensor in (query, key, value))
    with sdpa_kernel(_kernels(query, length), set_priority=True):
        output = _document_attention(q, k, v, scale)
    return output.transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _kernels(tensor: Tensor, length: int) -> list[SDPBackend]:
    """PyTorch's attention kernels, to be taken in this order."""
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if tensor.device.type != "cuda" or torch.cuda.get_device_capability(tensor.device) < (9, 0):
        return others
    # cuDNN plans for each new shape, a second or two, which pays only where the shape returns, as max_length's does.
    count = _PASSES[tensor.shape[2] // length, length]
    returns = count > 1 and count >= COMMON * _PASSES.total()
    return [SDPBackend.CUDNN_ATTENTION, *others] if returns else others


@functools.cache
def varlen_attention() -> Callable[..., Any] | None:
    """PyTorch's attention over sequences of various length, or None where this PyTorch's lacks what we need."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    needed = {"scale", "window_size", "enable_gqa"}
    return varlen_attn if needed <= set(inspect.signature(varlen_attn).parameters) else None


def _has_flash(tensor: Tensor) -> bool:
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.device.type == "cuda" and half and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


def _all_at_once(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """(1, heads, tokens, size) each -> (1, tokens, heads, size)."""
    ends = _ends(lengths, query.device)
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    longest = max(lengths)
    varlen = varlen_attention()
    if varlen is None:
        # What varlen_attn calls; PyTorch before 2.12 has no other way to it for grouped heads.
        output = torch.ops.aten._flash_attention_forward(
            q, k, v, ends, ends, longest, longest, 0.0, True, False, scale=scale
        )[0]
    else:
        is_grouped = q.shape[1] != k.shape[1]
        output = varlen(q, k, v, ends, ends, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=is_grouped)
    return output.unsqueeze(0)


def _ends(lengths: Sequence[int], device: torch.device) -> Tensor:
    """(documents + 1) sums. Copied to the GPU once in a pass: each copy waits for what the GPU is doing."""
    if device not in _ENDS:
        _ENDS[device] = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    return _ENDS[device]


def _copies(lengths: Sequence[int], shared: int, device: torch.device) -> Copies:
    if device not in _COPIES:
        _COPIES[device] = Copies(lengths, shared, device)
    return _COPIES[device]


def _document_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    is_grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=is_grouped)


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed attention needs no mask tensor: a document's length says it all."""
