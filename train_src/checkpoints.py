"""Checkpoints in /opt/ml/checkpoints from which a job goes on as if nothing had happened.

One folder for each, `step-00000120/`: the adapter in PEFT's format (usable as it is), optimizer.safetensors,
state.json, and manifest.json, which is written last and holds every file's SHA-256. A folder is written under another
name and renamed when complete. SageMaker copies files to S3 one by one, so a container may find half a checkpoint
there: without a manifest that fits, a folder is passed over and the one before it is used.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import TunedModel

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    state: dict[str, Any]

    def restore(self, model: TunedModel, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, optimizer and random generators back, bit for bit."""
        weights = _adapter_weights(self.folder, model)
        parameters = model.named_parameters()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        _restore_optimizer(optimizer, parameters, load_file(self.folder / "optimizer.safetensors"))
        restore_random(load_file(self.folder / "random.safetensors"))


def save(folder: Path, step: int, model: TunedModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write the checkpoint of a step and delete the oldest ones. Returns its folder."""
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if isinstance(model.module, peft.PeftModel):
        model.module.save_pretrained(str(temporary / "adapter"))
    save_file(
        {name: p.detach().contiguous() for name, p in model.named_parameters().items()},
        temporary / "weights.safetensors",
    )
    save_file(_optimizer_tensors(optimizer, model.named_parameters()), temporary / "optimizer.safetensors")
    save_file(state.pop("random"), temporary / "random.safetensors")
    (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    files = {path.relative_to(temporary).as_posix(): _sha256(path) for path in _files(temporary)}
    (temporary / "manifest.json").write_text(json.dumps({"step": step, "files": files}), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in _folders(folder)[:-KEPT]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> Checkpoint | None:
    """The latest complete checkpoint, or None."""
    for candidate in reversed(_folders(folder)):
        if _is_complete(candidate):
            return Checkpoint(candidate, json.loads((candidate / "state.json").read_text(encoding="utf-8")))
        print(f"checkpoint {candidate.name} is incomplete and is passed over", flush=True)
    return None


def random_state() -> dict[str, Tensor]:
    """The state of every generator training draws from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random(state: dict[str, Tensor]) -> None:
    """Put the generators back where `random_state` found them."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _adapter_weights(folder: Path, model: TunedModel) -> dict[str, Tensor]:
    return load_file(folder / "weights.safetensors", device=str(model.device))


def _optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}|{key}"] = value.detach().contiguous()
    return tensors


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    for joined, value in tensors.items():
        name, _, key = joined.rpartition("|")
        parameter = parameters[name]
        optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _is_complete(folder: Path) -> bool:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (json.JSONDecodeError, KeyError):
        return False
    return all((folder / name).is_file() and _sha256(folder / name) == digest for name, digest in files.items())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
