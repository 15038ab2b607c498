"""What a rehearsal can do: targets local and local-docker run their jobs on this machine."""

from __future__ import annotations

import os

from llmtuner_kit.errors import SettingsError

_GPUS = ("/dev/nvidia0", "/dev/dxg")
_GPU_METHODS = ("qlora",)


def without_gpu(target: str) -> str:
    """Why jobs of a target have no NVIDIA GPU, as the end of a sentence; empty: they have one, or are on AWS."""
    if target == "aws":
        return ""
    if target == "local-docker":  # its image has PyTorch for CPUs
        return "in containers, which have no GPU"
    return "" if any(map(os.path.exists, _GPUS)) else "on this machine, which has no NVIDIA GPU"


def require_possible(target: str, method: str) -> None:
    """Raises SettingsError where a job with this method would need a GPU that the target does not have."""
    where = without_gpu(target)
    if where and method in _GPU_METHODS:
        raise SettingsError(
            f"method {method!r} needs an NVIDIA GPU, and target {target!r} trains {where}.",
            fix=f"to rehearse, set method to 'lora'; with target 'aws' the same run trains with {method!r}",
        )
