"""LoRA adapters of a served model: read from a PEFT folder, added to or taken away from rows of a batch.

An archive holds merged weights and, beside them, the adapter that was merged. A row that asks for the base model takes
that share away again; a row that asks for another adapter takes it away and adds the other one's.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from linears import Linear, has_fbgemm


class AdapterError(ValueError):
    """A folder is no adapter this server can use; the text says why."""


@dataclass(frozen=True)
class Lora:
    """One layer's share: `x -> (x @ down.T) @ up.T`, the scale in `up`. Shapes (rank, in) and (out, rank)."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class Share:
    """An adapter for some rows of a batch; `rows` None: all of them. `sign` -1 takes it away."""

    adapter: "Adapter"
    sign: float
    rows: Tensor | None


class Adapter:
    """An adapter bound to the layers of a decoder: layer name -> two small products."""

    def __init__(self, name: str, layers: Mapping[str, tuple[Linear, Linear, float]]) -> None:
        self.name = name
        self.layers = layers

    def share(self, layer: str, x: Tensor) -> Tensor | None:
        """What the adapter adds to a layer's output for these inputs; None when it leaves the layer alone."""
        found = self.layers.get(layer)
        if found is None:
            return None
        down, up, scale = found
        return up(down(x)) * scale


def add_shares(layer: str, x: Tensor, output: Tensor, shares: Sequence[Share]) -> Tensor:
    """The output of a layer with the adapters of its rows; changes it in place."""
    for share in shares:
        part = share.adapter.share(layer, x if share.rows is None else x[share.rows])
        if part is None:
            continue
        if share.rows is None:
            output.add_(part, alpha=share.sign)
        else:
            output.index_add_(0, share.rows, part, alpha=share.sign)
    return output


def bind(lora: Lora, dtype: torch.dtype, device: torch.device) -> tuple[Linear, Linear, float]:
    """The products of a layer's share. `up` is stretched to a largest weight of 1, so that fp16 loses nothing of it."""
    scale = float(lora.up.abs().max()) or 1.0
    return _linear(lora.down, dtype, device), _linear(lora.up / scale, dtype, device), scale


def _linear(weight: Tensor, dtype: torch.dtype, device: torch.device) -> Linear:
    # fp16 is packed as bf16 is, and keeps more of an adapter that was trained in fp32.
    wanted = torch.float16 if dtype == torch.bfloat16 and has_fbgemm() and device.type == "cpu" else dtype
    return Linear(weight.to(device, wanted))


def read_adapter(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Lora]:
    """Module name -> share, in fp32, for an adapter as PEFT saves it.

    `shapes` are (out, in) of the served model's layers. Raises AdapterError for another kind of adapter, and for one of
    another base model (names or shapes that differ).
    """
    weights_path, config_path = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if not weights_path.is_file() or not config_path.is_file():
        raise AdapterError(f"{folder} needs adapter_config.json and adapter_model.safetensors, as PEFT saves them")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        weights = load_file(weights_path)
    except (ValueError, SafetensorError) as error:
        raise AdapterError(f"{folder} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(alpha := config.get("lora_alpha"), int | float):
        raise AdapterError(f"{config_path} has no number lora_alpha, as PEFT saves it")
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DORA" if config.get("use_dora") else config.get("peft_type")
        raise AdapterError(f"the adapter is of type {kind}, only plain LoRA can be swapped: deploy its merged archive")
    if config.get("alpha_pattern") or config.get("modules_to_save") or config.get("bias", "none") != "none":
        raise AdapterError("the adapter changes more than LoRA weights of one scale: deploy its merged archive")
    found = {}
    for name, down in weights.items():
        if not name.endswith(".lora_A.weight"):
            continue
        stem = name.removesuffix(".lora_A.weight")
        module = stem.removeprefix("base_model.model.")
        up = weights.get(f"{stem}.lora_B.weight")
        if up is None or shapes.get(module) != (len(up), down.shape[1]):
            raise AdapterError(f"{module} of the adapter does not fit the served model: it was tuned from another base")
        root = math.sqrt(len(down)) if config.get("use_rslora") else len(down)
        found[module] = Lora(down.float(), up.float() * (alpha / root))
    if not found:
        raise AdapterError("the adapter has no LoRA weights")
    return found
