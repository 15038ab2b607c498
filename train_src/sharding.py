"""Models that do not fit one device: every process keeps a share of the weights (FSDP2) and gathers layer by layer.

Each transformer layer is a unit: its weights are gathered before it runs, forwards and backwards, and given up after
it; its gradients are summed over the processes and each keeps its own share, and so is the optimizer's state. The
embeddings, the last norm and the head are one more unit that stays gathered during a pass.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

LOADED_SHARE = 0.6  # of the machine's memory, for whole models on their way to the shards


def shard(network: Any, device: torch.device, computed_in: torch.dtype | None = None) -> None:
    """Split the model's weights over all processes. They move to `device` unit by unit.

    `computed_in`: what they are gathered and multiplied in where that is not their own type; gradients are summed in
    fp32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=computed_in, reduce_dtype=torch.float32 if computed_in else None)
    for layer in transformer_layers(network):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the step's labels already: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def transformer_layers(network: Any) -> list[nn.Module]:
    """The repeated blocks of a transformers model, in order."""
    names = set(network._no_split_modules or ())
    return [module for module in network.modules() if type(module).__name__ in names]


def is_sharded(network: nn.Module) -> bool:
    """Whether the weights are spread over the processes."""
    return isinstance(network, FSDPModule)


def reshard(network: nn.Module) -> None:
    """Give up what a pass that no backward one follows has left gathered.

    Until then the model's parameters are copies: updates do not reach them, and the optimizer does not know them.
    """
    if isinstance(network, FSDPModule):
        network.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a shared-out tensor, on the CPU; any other as it is. All processes must ask together."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu()


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as this process holds the parameter: its share where the parameter is shared out."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def turns(model_bytes: float, machine_bytes: float) -> Iterator[bool]:
    """Whether it is this process's turn to load the whole model: as many of a host at once as its memory holds."""
    local, processes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    at_once = max(1, int(LOADED_SHARE * machine_bytes / max(model_bytes, 1)))
    for first in range(0, processes, at_once):
        yield first <= local < first + at_once
        if dist.is_initialized():
            dist.barrier()
