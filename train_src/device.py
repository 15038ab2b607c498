"""What this machine computes on: its device, the type it multiplies in, its memory, and how a job runs in that."""

import os
from pathlib import Path

import torch

from base import Base
from data import Channel
from failures import TrainingError
from hyperparameters import Hyperparameters
from memory import CUDA_CONTEXT, GB, Job, Plan, Shape, fitting


def choose_device() -> torch.device:
    """The GPU of this process where there is one, the CPU otherwise."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.distributed.get_node_local_rank(0))


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it natively, fp32 otherwise; fp16 never (T5 overflows in it)."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32


def plan_memory(base: Base, settings: Hyperparameters, train: Channel, processes: int) -> Plan:
    """Pass size and recomputation for this machine. Raises TrainingError when the model cannot fit."""
    device = choose_device()
    lengths = [len(row) for row in train.rows]
    job = Job(
        Shape.from_config(base.config),
        method=settings.method,
        lora_r=settings.lora_r,
        lora_dropout=settings.lora_dropout,
        bytes_per_weight=2 if choose_dtype(settings.precision, device) == torch.bfloat16 else 4,
        device=device.type,
        mean_row=sum(length * length for length in lengths) // sum(lengths),
        target_share=sum(len(row.ids) for row in train.rows) / sum(lengths),
    )
    plans = list(
        job.plans(
            longest_row=max(lengths),
            batch_tokens=max(1, settings.batch_tokens // processes),
            micro_batch_tokens=settings.micro_batch_tokens,
            checkpointing={"auto": None, "on": True, "off": False}[settings.gradient_checkpointing],
            processes=processes,
            sharded={"auto": None, "on": processes > 1, "off": False}[settings.sharding],
        )
    )
    available = device_bytes(device) / (_local_processes() if device.type == "cpu" else 1)
    plan = fitting(plans, available)
    if plan is None:
        least = min(each.estimate.total for each in plans)
        raise TrainingError(
            f"{base.model_id} ({job.shape.weights / 1e9:.2f} billion weights) does not fit: {settings.method} with rows "
            f"of {max(lengths)} tokens needs about {least / GB:.0f} GB, this {device.type} has "
            f"{available / GB:.0f} GB: use a larger instance, method qlora, or a smaller max_length"
        )
    return plan


def device_bytes(device: torch.device) -> float:
    """Memory that this process may have on a device; of a CPU, that all processes of this machine may have together."""
    if device.type == "cuda":
        # Other programs may have some of it; what this one has taken already is its context, which the plan counts.
        free, total = torch.cuda.mem_get_info(device)
        return min(total, free + CUDA_CONTEXT)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(memory, int(text)) if text.isdigit() else memory


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
