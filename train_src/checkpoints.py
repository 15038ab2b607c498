"""Checkpoints in /opt/ml/checkpoints from which a job goes on as if nothing had happened.

One folder for each, `step-00000120/`: adapter/ (PEFT's format, usable as it is; full fine-tuning has none),
weights.safetensors and optimizer.safetensors, state.json, and manifest.json, which is written last and holds every
file's SHA-256. A folder is written under another name and renamed when complete. SageMaker copies files to S3 one by
one, so a container may find half a checkpoint there: without a manifest that fits, a folder is passed over and the one
before it is used.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import TunedModel
from sharding import like, whole

KEPT = 2
NAME = re.compile(r"step-\d{8}")
NEEDED = {"state.json", "weights.safetensors", "optimizer.safetensors"}


@dataclass(frozen=True)
class Checkpoint:
    """What training goes on from: `state` as the trainer saved it, and tensors by name."""

    name: str
    state: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor]

    def restore(self, model: TunedModel, optimizer: torch.optim.Optimizer) -> None:
        """Put weights and optimizer back, bit for bit."""
        parameters = model.named_parameters()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(like(self.weights[name], parameter))
        for joined, value in self.optimizer.items():
            name, _, key = joined.rpartition("|")
            parameter = parameters[name]
            # AdamW keeps its step counter beside the parameter only when fused; on CPU that is the same place.
            is_moment = value.shape == parameter.shape
            optimizer.state[parameter][key] = like(value, parameter) if is_moment else value.to(parameter.device)


def save(
    folder: Path,
    step: int,
    model: TunedModel,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    best: dict[str, Tensor],
    *,
    writes: bool = True,
) -> Path:
    """Write the checkpoint of a step and delete the oldest ones. Returns its folder.

    Where the weights are spread over the processes, all must call it together; only one of them `writes`.
    """
    parameters = model.named_parameters()
    weights = _whole(parameters.items(), keep=writes)
    moments = _whole(
        ((f"{name}|{key}", value) for name, p in parameters.items() for key, value in optimizer.state[p].items()),
        keep=writes,
    )
    best = _whole(best.items(), keep=writes)
    final = folder / f"step-{step:08d}"
    if not writes:
        return final
    temporary = folder / f".{final.name}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(".step-*"):
        shutil.rmtree(abandoned)
    temporary.mkdir()
    try:
        if isinstance(model.module, peft.PeftModel):
            model.module.save_pretrained(str(temporary / "adapter"), state_dict=weights)
        _save(weights, temporary / "weights.safetensors")
        _save(moments, temporary / "optimizer.safetensors")
        if best:
            _save(best, temporary / "best.safetensors")
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        files = {path.relative_to(temporary).as_posix(): _sha256(path) for path in _files(temporary)}
        (temporary / "manifest.json").write_text(json.dumps({"step": step, "files": files}), encoding="utf-8")
    except BaseException:
        shutil.rmtree(temporary)  # on a full disk there must be room to say why
        raise
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    # One of a later step was passed over as incomplete: it must not count as one that is kept.
    kept = [each for each in _folders(folder) if each.name <= final.name][-KEPT:]
    for other in _folders(folder):
        if other not in kept:
            shutil.rmtree(other)
    return final


def newest(folder: Path) -> Checkpoint | None:
    """The latest complete checkpoint, or None."""
    for candidate in reversed(_folders(folder)):
        if _is_complete(candidate):
            best = candidate / "best.safetensors"
            return Checkpoint(
                candidate.name,
                json.loads((candidate / "state.json").read_text(encoding="utf-8")),
                load_file(candidate / "weights.safetensors"),
                load_file(candidate / "optimizer.safetensors"),
                load_file(best) if best.is_file() else {},
            )
        print(f"checkpoint {candidate.name} is incomplete and is passed over", flush=True)
    return None


def _whole(tensors: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """The whole of each tensor, which all processes gather. Who does not write keeps none: a host has one memory."""
    found = {}
    for name, tensor in tensors:
        value = whole(tensor)
        if keep:
            found[name] = value
    return found


def _save(tensors: dict[str, Any], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _folders(folder: Path) -> list[Path]:
    found = folder.glob("step-*") if folder.is_dir() else []
    return sorted(path for path in found if path.is_dir() and NAME.fullmatch(path.name))


def _is_complete(folder: Path) -> bool:
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return (
        isinstance(files, dict)
        and files.keys() >= NEEDED
        and all((folder / name).is_file() and _sha256(folder / name) == digest for name, digest in files.items())
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
