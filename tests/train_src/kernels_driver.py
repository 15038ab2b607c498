"""Runs the GPU's kernels in Triton's interpreter and prints how far each result is from PyTorch's own steps, as JSON.

A process of its own: Triton decides at its first import whether it interprets.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "train_src"))

import torch

import lora_mlp
import swiglu_kernels as kernels


def differences(tokens: int, width: int, rank: int) -> list[float]:
    """Largest relative difference of inner, then of inner and the two gradients on the way back."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    generator = torch.Generator().manual_seed(0)
    g, u, d_inner = (random(tokens, width) for _ in range(3))
    adapters = random(tokens, 2 * rank), random(width, rank), random(width, rank)
    down = random(tokens, rank), random(rank, width)
    kept = [each.clone() for each in (g, u)]
    found = [kernels.swiglu(g, u, *adapters)]
    expected = [lora_mlp.InSteps.swiglu(*kept, *adapters)]
    expected += lora_mlp.InSteps.swiglu_backward(d_inner.clone(), *kept, *adapters, *down)
    found += kernels.swiglu_backward(d_inner, g, u, *adapters, *down)
    return [float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, expected, strict=True)]


print(json.dumps([differences(*json.loads(each)) for each in sys.argv[1:]]))
