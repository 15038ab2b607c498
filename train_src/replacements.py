"""Faster arithmetic of others in place of transformers' own.

Liger's Triton kernels on an NVIDIA GPU: norms and rotary positions in one launch each, where they are installed. The
head and the feed-forward blocks have arithmetic of their own (label_loss.py, lora_mlp.py), so Liger's are not used.
PyTorch's GELU everywhere.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.activations import NewGELUActivation

KERNELS = {"rope": True, "rms_norm": True, "swiglu": False, "geglu": False}
OURS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def apply_liger(network: Any, device: torch.device) -> bool:
    """Give a loaded model Liger's kernels. False where they do not help (CPU), are missing, or know no such model."""
    if device.type != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return False
    # It warns of each backend for other makers' chips that it does not find.
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)
    from liger_kernel.transformers import monkey_patch

    patch = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.get(network.config.model_type)
    if patch is None:
        return False
    known = patch.__code__.co_varnames[: patch.__code__.co_argcount]
    patch(model=network, **{name: value for name, value in {**KERNELS, **OURS}.items() if name in known})
    return True


def use_native_gelu(network: nn.Module) -> None:
    """PyTorch's own GELU in place of the same formula written in eight operations (T5's), which keeps four tensors."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def tried_out(modules: Sequence[Any], gives_the_same: Callable[[Any], bool]) -> list[Any]:
    """Those of a kind that passes: one module of each class is tried, since names alone do not say what it computes."""
    kinds = {kind: gives_the_same(module) for kind, module in {type(module): module for module in modules}.items()}
    return [module for module in modules if kinds[type(module)]]
