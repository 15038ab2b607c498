"""Cross entropy of the trained tokens, without ever holding (tokens, vocabulary) in memory.

Only positions that have a label reach the language model head, and they pass through it in parts. The gradient is formed
in the same pass, while a part's probabilities are at hand.

On CPU a part is a tile of the vocabulary: it stays in the processor's cache from the product that makes its logits to
the product that makes its share of the gradient, as flash attention's do, and the head's weights are read once for all
labels. On a GPU, and where the head is trained, it is a number of labels.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

import cpu_kernels
from memory import HEAD_CHUNK

TILE_LABELS, TILE_TOKENS = 1024, 1024  # on CPU: a tile's logits and its part of the head are 1 to 4 MB each
FAR = 60.0  # by which a logit may exceed the label's own; exp(60) for every token is safe in fp32 and in bf16
FAR_LABELS = 64  # of those where it does, so many are computed anew at once
TIE = 1e-3  # what exceeds the label's own logit by less is rounding


class _Part(NamedTuple):
    """What became of some labels: losses, whether each is the likeliest, and the losses' gradient (labels, size)."""

    losses: Tensor
    correct: Tensor
    d_hidden: Tensor | None


def label_losses(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss (fp32) and whether the label is the likeliest token, for each label.

    hidden is (labels, size), weight (vocabulary, size). Gradients flow to `hidden` only when the head is frozen, and
    to the head as well when it is trained; then all losses must have the same share in what is differentiated.
    """
    if bias is not None:
        return logit_losses(F.linear(hidden, weight, bias), labels)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    losses, correct = _LabelLosses.apply(hidden, weight, labels, dtype)
    return losses, correct


def logit_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same, from logits (labels, vocabulary) that are already there."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    with torch.no_grad():
        correct = logits.gather(1, labels[:, None])[:, 0] >= logits.amax(-1)
    return losses, correct


class _LabelLosses(torch.autograd.Function):
    """`dtype` is what hidden and weight are multiplied in."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        is_tuned, is_trained, *_ = ctx.needs_input_grad
        on_cpu = hidden.device.type == "cpu"
        # Evaluation, which wants no gradients, takes the same way as training.
        compute = _in_tiles if on_cpu and not weight.requires_grad else _at_once
        size = TILE_LABELS if on_cpu else HEAD_CHUNK
        head = weight.to(dtype)
        d_weight = torch.zeros(weight.shape, device=weight.device) if is_trained else None
        parts = [
            compute(x, head, own, is_tuned, d_weight)
            for x, own in zip(hidden.to(dtype).split(size), labels.split(size), strict=True)
        ]
        losses, correct = torch.cat([part.losses for part in parts]), torch.cat([part.correct for part in parts])
        d_hidden = torch.cat([part.d_hidden for part in parts if part.d_hidden is not None]) if is_tuned else None
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        share = gradients[0]
        if d_weight is not None:
            torch._assert_async((share == share[0]).all())  # it is the gradient of the losses' plain sum
            d_weight = (d_weight * share[0]).to(ctx.dtypes[1])
        return (d_hidden * share[:, None]).to(ctx.dtypes[0]), d_weight, None, None


def _at_once(
    hidden: Tensor, weight: Tensor, labels: Tensor, wants_gradient: bool, d_weight: Tensor | None = None
) -> _Part:
    """All logits of these labels, in place from logits to gradient. `d_weight` gains the head's gradient."""
    logits = (hidden @ weight.t()).float()
    index = labels[:, None]
    own, largest = logits.gather(1, index), logits.amax(-1, keepdim=True)
    correct = (own >= largest)[:, 0]
    weights = logits.sub_(largest).exp_()
    sums = weights.sum(-1, keepdim=True)
    losses = (sums.log() + largest - own)[:, 0]
    if not wants_gradient:
        return _Part(losses, correct, None)
    p = weights.div_(sums).scatter_add_(1, index, torch.full_like(own, -1.0)).to(weight.dtype)
    if d_weight is not None:
        _add_product(d_weight, p.t(), hidden)
    return _Part(losses, correct, p @ weight)


def _in_tiles(hidden: Tensor, weight: Tensor, labels: Tensor, wants_gradient: bool, _: Tensor | None = None) -> _Part:
    """Tile by tile; everything is (vocabulary, labels) and (size, labels), the side MKL multiplies fastest from.

    A label's logits are measured from its own one: the product begins at minus that, so that a tile is exponentiated as
    it comes, and in bf16 the differences are rounded, not the logits.
    """
    own = (hidden.float() * weight[labels]).sum(-1)
    base = own.to(hidden.dtype)
    x, start_from = hidden.t().contiguous(), -base
    largest, sums = torch.full_like(own, float("-inf")), torch.zeros_like(own)
    exponentiate = cpu_kernels.exponentiate if cpu_kernels.suits(weight) else _exponentiate
    d_x = torch.zeros(x.shape)
    for tile in weight.split(TILE_TOKENS):
        weights = torch.addmm(start_from, tile, x)
        exponentiate(weights, largest, sums)
        if wants_gradient:
            _add_product(d_x, tile.t(), weights)
    own -= base
    losses, correct = sums.log() - own, largest < own + TIE
    d_hidden = (d_x.div_(sums).t() - weight[labels]).to(hidden.dtype) if wants_gradient else None
    far_labels = (largest > FAR).nonzero()[:, 0]
    for far in far_labels.split(FAR_LABELS) if len(far_labels) else ():
        part = _at_once(hidden[far], weight, labels[far], wants_gradient)
        losses[far], correct[far] = part.losses, part.correct
        if d_hidden is not None and part.d_hidden is not None:
            d_hidden[far] = part.d_hidden
    return _Part(losses, correct, d_hidden)


def _exponentiate(tile: Tensor, largest: Tensor, sums: Tensor) -> None:
    """As cpu_kernels.exponentiate."""
    torch.maximum(largest, _largest(tile).float(), out=largest)
    sums += tile.exp_().sum(0, dtype=torch.float32)


def _largest(tile: Tensor) -> Tensor:
    """tile.amax(0), by halves that may overlap: a quarter of its time, as PyTorch's own goes down the columns."""
    while (size := len(tile)) > 1:
        half = (size + 1) // 2
        tile = torch.maximum(tile[:half], tile[size - half :])
    return tile[0]


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """`total`, in fp32, gains one @ other."""
    if one.dtype == torch.float32:
        total.addmm_(one, other)
    else:
        total += one @ other
