"""Matrix products of served models: rows of activations by a weight that is packed once.

On x86 CPUs bf16 weights are kept as fp16 in the layout of FBGEMM, which PyTorch brings, and multiplied by fp32
activations: one pass over the weights serves all rows of a batch, where PyTorch's own bf16 product on a CPU without
bf16 instructions costs as much for each further row as for the first. fp16 holds every bf16 weight from 2^-14 to 65504
exactly and the smaller ones to 2^-25. Elsewhere weights keep their type and PyTorch multiplies.

A prompt's product has so many rows that arithmetic bounds it, not memory. There, on a CPU with AVX2 at most, PyTorch's
fp32 product does in 4 seconds what FBGEMM's does in 5, so a Linear may keep its weight a second time, in fp32.
"""

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_FP16 = 65504.0
MOST_ROWS = 64  # of a batch whose rows shall not depend on each other
WIDE_ROWS = MOST_ROWS + 1  # from here on the fp32 weight multiplies, where there is one


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


def is_fp32_faster() -> bool:
    """Whether PyTorch's fp32 product beats FBGEMM's when there are many rows."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


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


def padded_rows(count: int) -> int:
    """The rows that a packed product of `count` rows takes, so that none depends on how many the others are."""
    return row_counts()[count] if count <= MOST_ROWS else count


class PackedProduct(nn.Module):
    """The product by one packed weight, fp32 (rows, in) -> (rows, out), for TorchScript."""

    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


def _scripted(product: PackedProduct) -> Any:
    """What Python calls. Handing PyTorch a packed weight from Python itself takes 40 microseconds."""
    with warnings.catch_warnings():
        # torch.compile, which PyTorch recommends instead, would need a C++ compiler where the model is served.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        return torch.jit.script(product).forward


class Linear(nn.Module):
    """`x @ weight.T + bias`. Takes and gives fp32 when packed, else the weight's type.

    `keeps_plain` spends 4 bytes more for each weight on faster products of WIDE_ROWS and more, where they are; those come
    with the strides of a transposed matrix.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, keeps_plain: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.product: PackedProduct | None = None
        self._packed: Any = None
        self._plain: Tensor | None = None
        self._weight, self._bias = weight, bias
        self.weight = weight.new_empty(0)  # transformers asks a layer's weight for its type
        if is_packable(weight):
            own_bias = None if bias is None else bias.float()
            self.product = PackedProduct(torch.ops.quantized.linear_prepack_fp16(weight.float(), own_bias))
            self._packed = _scripted(self.product)
            self._plain = weight.float() if keeps_plain and is_fp32_faster() else None
            self._weight, self._bias = torch.empty(0), own_bias
            self.weight = torch.empty(0)

    @property
    def is_packed(self) -> bool:
        """Whether activations are fp32 whatever the weights were."""
        return self._packed is not None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self._packed is None:
            return functional.linear(x, self._weight, self._bias)
        if x.dim() != 2:
            return self.forward(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        count = x.shape[0]
        if self._plain is not None and count >= WIDE_ROWS:
            # Turned round: the tall weight first is what MKL multiplies fastest.
            product = torch.mm(self._plain, x.t()).t()
            return product if self._bias is None else product.add_(self._bias)
        wanted = padded_rows(count)
        if wanted == count:
            return self._packed(x)
        return self._packed(functional.pad(x, (0, 0, 0, wanted - count)))[:count]


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
