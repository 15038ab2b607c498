"""Cross entropy of the trained tokens, without ever holding (tokens, vocabulary) in memory.

Only positions that have a label reach the language model head, and they pass through it in chunks that stay in the
processor's cache. The gradient is formed in the same pass, while the chunk's probabilities are at hand.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

CHUNK = 128  # labels


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
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        correct = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            log_p = torch.log_softmax(hidden[part] @ weight.t(), dim=-1, dtype=torch.float32)
            index = labels[part, None]
            own = log_p.gather(1, index)
            losses[part] = -own[:, 0]
            correct[part] = own[:, 0] >= log_p.amax(-1)
            if d_hidden is not None:
                p = log_p.exp_()
                p.scatter_add_(1, index, torch.full_like(own, -1.0))
                d_hidden[part] = p.to(weight.dtype) @ weight
        ctx.save_for_backward(d_hidden)
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        (d_hidden,) = ctx.saved_tensors
        assert gradients[0] is not None
        return (d_hidden * gradients[0][:, None]).to(d_hidden.dtype), None, None
