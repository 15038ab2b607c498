"""Cross entropy of the trained tokens, without ever holding (tokens, vocabulary) in memory.

Only positions that have a label reach the language model head, and they pass through it in parts. The gradient is formed
in the same pass, while a part's probabilities are at hand.

On CPU a part is a tile of the vocabulary: it stays in the processor's cache from the product that makes its logits to
the product that makes its share of the gradient, as flash attention's do, and the head's weights are read once for all
labels. On a GPU it is a number of labels, large enough to fill the device.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from memory import HEAD_CHUNK

TILE_LABELS, TILE_TOKENS = 512, 1024  # on CPU: a tile's logits and its part of the head are 2 to 4 MB each
FAR = 40.0  # by which a logit may exceed the one that its row is measured from; exp(40) is safe in fp32 and in bf16


class _Part(NamedTuple):
    """What became of some labels: losses, whether each is the likeliest, and the losses' gradient (labels, size)."""

    losses: Tensor
    correct: Tensor
    d_hidden: Tensor | None


def label_losses(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss (fp32) and whether the label is the likeliest token, for each label.

    hidden is (labels, size), weight (vocabulary, size). Gradients flow to `hidden` only when the head is frozen, and
    to the head as well when it is trained.
    """
    if weight.requires_grad or bias is not None:
        return logit_losses(F.linear(hidden, weight, bias), labels)
    losses, correct = _LabelLosses.apply(hidden, weight, labels)
    return losses, correct


def logit_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same, from logits (labels, vocabulary) that are already there."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    with torch.no_grad():
        correct = logits.gather(1, labels[:, None])[:, 0] >= logits.amax(-1)
    return losses, correct


class _LabelLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        compute, step = (_in_tiles, TILE_LABELS) if hidden.device.type == "cpu" else (_at_once, HEAD_CHUNK)
        wants = ctx.needs_input_grad[0]
        parts = [compute(x, weight, own, wants) for x, own in zip(hidden.split(step), labels.split(step), strict=True)]
        losses, correct = torch.cat([part.losses for part in parts]), torch.cat([part.correct for part in parts])
        ctx.save_for_backward(
            torch.cat([part.d_hidden for part in parts if part.d_hidden is not None]) if wants else None
        )
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        (d_hidden,) = ctx.saved_tensors
        assert gradients[0] is not None
        return (d_hidden * gradients[0][:, None]).to(d_hidden.dtype), None, None


def _at_once(hidden: Tensor, weight: Tensor, labels: Tensor, wants_gradient: bool) -> _Part:
    """All logits of these labels."""
    log_p = torch.log_softmax(hidden @ weight.t(), dim=-1, dtype=torch.float32)
    own = log_p.gather(1, labels[:, None])
    correct = own[:, 0] >= log_p.amax(-1)
    if not wants_gradient:
        return _Part(-own[:, 0], correct, None)
    p = log_p.exp_()
    p.scatter_add_(1, labels[:, None], torch.full_like(own, -1.0))
    return _Part(-own[:, 0], correct, p.to(weight.dtype) @ weight)


def _in_tiles(hidden: Tensor, weight: Tensor, labels: Tensor, wants_gradient: bool) -> _Part:
    """Tile by tile; everything is (vocabulary, labels) and (size, labels), the side MKL multiplies fastest from."""
    x = hidden.t().contiguous()
    own, largest = (torch.full(labels.shape, float("-inf")) for _ in range(2))
    base, sums = torch.zeros(labels.shape), torch.zeros(labels.shape)
    d_x = torch.zeros(x.shape)
    for start in range(0, len(weight), TILE_TOKENS):
        tile = weight[start : start + TILE_TOKENS]
        logits = (tile @ x).float()
        inside = labels - start
        is_here = (inside >= 0) & (inside < len(tile))
        found = logits.gather(0, inside.clamp(0, len(tile) - 1)[None])[0]
        own = torch.where(is_here, found, own)
        largest = torch.maximum(largest, logits.amax(0))
        if not start or bool((largest - base > FAR).any()):
            # What was summed up is measured from a larger logit from now on.
            change = (base - largest).exp_() if start else torch.zeros_like(base)
            sums, d_x, base = sums.mul_(change), d_x.mul_(change), largest
        weights = logits.sub_(base).exp_()
        sums += weights.sum(0)
        if wants_gradient:
            _add_product(d_x, tile.t(), weights.to(tile.dtype))
    losses = sums.log().add_(base).sub_(own)
    if not wants_gradient:
        return _Part(losses, own >= largest, None)
    d_hidden = d_x.div_(sums).t() - weight[labels]
    return _Part(losses, own >= largest, d_hidden.to(hidden.dtype))


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """`total`, in fp32, gains one @ other."""
    if one.dtype == torch.float32:
        total.addmm_(one, other)
    else:
        total += one @ other
