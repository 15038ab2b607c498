"""Matrix products of served models: rows of activations by a weight that is packed once.

On x86 CPUs bf16 weights are kept as fp16 in the layout of FBGEMM, which PyTorch brings, and multiplied by fp32
activations: one pass over the weights serves all rows of a batch, where PyTorch's own bf16 product on a CPU without
bf16 instructions costs as much for each further row as for the first. fp16 holds every bf16 weight from 2^-14 to 65504
exactly and the smaller ones to 2^-25. Elsewhere weights keep their type and PyTorch multiplies.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_FP16 = 65504.0
MOST_ROWS = 64  # of a batch whose rows shall not depend on each other


def has_fbgemm() -> bool:
    """Whether this machine has FBGEMM's fp16 product."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
        torch.ops.quantized, "linear_dynamic_fp16"
    )


def is_packable(weight: Tensor) -> bool:
    """Whether FBGEMM multiplies by this weight without a loss that matters."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.float16)
        and has_fbgemm()
        and float(weight.abs().max()) <= LARGEST_FP16
    )


@functools.cache
def row_counts() -> tuple[int, ...]:
    """For each number of rows up to MOST_ROWS, the number to multiply so that a row's result is always the same.

    FBGEMM cuts a batch into blocks, and blocks of one or two rows add in another order than taller ones. Which numbers
    of rows avoid that depends on the CPU, so they are tried: a row repeated must give the same bits everywhere.
    """
    generator = torch.Generator().manual_seed(0)
    packed = torch.ops.quantized.linear_prepack_fp16(torch.randn(64, 576, generator=generator), None)
    row = torch.randn(1, 576, generator=generator)
    products = [
        torch.ops.quantized.linear_dynamic_fp16(row.repeat(count, 1), packed) for count in range(1, MOST_ROWS + 7)
    ]
    same = [bool((product == products[47][0]).all()) for product in products]
    counts = []
    for count in range(1, MOST_ROWS + 1):
        fitting = (more for more in range(count, MOST_ROWS + 7) if same[more - 1])
        counts.append(next(fitting, count))
    return (0, *counts)


class Linear(nn.Module):
    """`x @ weight.T + bias`. Takes and gives fp32 when packed, else the weight's type."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed: Any = None
        self._weight, self._bias = weight, bias
        self.weight = weight.new_empty(0)  # transformers asks a layer's weight for its type
        if is_packable(weight):
            self._packed = torch.ops.quantized.linear_prepack_fp16(
                weight.float(), None if bias is None else bias.float()
            )
            self._weight, self._bias = torch.empty(0), None
            self.weight = torch.empty(0)

    @property
    def is_packed(self) -> bool:
        """Whether activations are fp32 whatever the weights were."""
        return self._packed is not None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self._packed is None:
            return functional.linear(x, self._weight, self._bias)
        flat = x.reshape(-1, self.in_features)
        count = len(flat)
        wanted = row_counts()[count] if count <= MOST_ROWS else count
        if wanted != count:
            flat = functional.pad(flat, (0, 0, 0, wanted - count))
        product = torch.ops.quantized.linear_dynamic_fp16(flat, self._packed)[:count]
        return product.reshape(*x.shape[:-1], self.out_features)


def pack_linears(model: nn.Module) -> None:
    """Replace each nn.Linear of a model by its packed form, in place; what remains becomes fp32 if any was."""
    packed = False
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            linear = Linear(module.weight.detach(), None if module.bias is None else module.bias.detach())
            model.set_submodule(name, linear)
            packed = packed or linear.is_packed
    if packed:
        model.float()
