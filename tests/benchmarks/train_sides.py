"""One side of a training benchmark: a process of its own that trains the planned steps and tells speed, memory, losses."""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from train_rows import LONGEST, ROOT, SEED, write_channel

LEARNING_RATE = 3e-4
WARM_UP = 2  # steps that are not timed
CURVE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Side:
    """What one side reached. `losses` are the training losses of the steps, mean per trained token."""

    tokens_per_second: float
    peak_gb: float
    losses: list[float]


def train_py(model: Path, steps: int, tokens: int, **settings: Any) -> Side:
    """train.py on a base folder of its own, read through its metric lines."""
    with tempfile.TemporaryDirectory() as name:
        values = {
            "max_steps": steps,
            "batch_tokens": tokens,
            "max_length": LONGEST,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler": "constant",
            "warmup_ratio": 0,
            "log_steps": 1,
            "seed": SEED,
        }
        write_channel(Path(name), model, **{**values, **settings})
        done = subprocess.run(
            [sys.executable, str(ROOT / "train_src" / "train.py")],
            env={**os.environ, "SAGEMAKER_BASE_DIR": name},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    lines = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in done.stdout.splitlines() if "train_loss=" in line]
    seen, timed = 0, []
    for line in lines:
        own = int(line["tokens"]) - seen
        seen += own
        timed.append((own, own / float(line["tokens_per_second"])))
    return Side(
        rate(timed),
        float(lines[-1]["memory_gb"]),
        [float(line["train_loss"]) for line in lines],
    )


def rate(timed: list[tuple[int, float]]) -> float:
    """Tokens per second of the steps after the warm-up; each has (tokens, seconds)."""
    counted = timed[min(WARM_UP, len(timed) - 1) :]
    return sum(tokens for tokens, _ in counted) / sum(seconds for _, seconds in counted)


def rival(python: Path, script: str, side: str, *arguments: str) -> Side:
    """Run `script --side SIDE` in the rival's environment; its last line is the result."""
    command = [str(python), "-W", "ignore", script, "--side", side, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Side(**json.loads(done.stdout.splitlines()[-1]))


def clocked(trainer: Any, tokens: list[int]) -> Side:
    """Run a transformers Trainer and time its steps. Logging must be on at every step."""
    import torch
    import transformers

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.marks = self.marks or [time.perf_counter()]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter())

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    seconds = [after - before for before, after in zip(clock.marks, clock.marks[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e9
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return Side(rate(list(zip(tokens, seconds, strict=True))), peak, losses)


def training_arguments(folder: str, steps: int, *, bf16: bool) -> dict[str, Any]:
    """What every side of transformers' family is told: train.py's settings in its words."""
    import torch

    return {
        "output_dir": folder,
        "max_steps": steps,
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
        "dataloader_num_workers": 0,
    }


def print_side(side: Side) -> None:
    """The result of a child process, as its last line."""
    print(json.dumps(asdict(side)))


def table(sides: dict[str, Side], limit: float | None = None) -> str:
    """Speed, memory and losses side by side; the first side is the one the others are compared with."""
    ours = next(iter(sides.values()))
    head = f"{'':24}{'tokens/s':>10}{'ours is':>9}{'peak GB':>9}{'ours is':>9}{'last loss':>11}{'curve differs':>15}"
    lines = [head]
    for name, side in sides.items():
        pairs = zip(ours.losses, side.losses, strict=False)
        apart = max(abs(one - other) / other for one, other in pairs)
        lines.append(
            f"{name:24}{side.tokens_per_second:>10.1f}{ours.tokens_per_second / side.tokens_per_second:>8.2f}x"
            f"{side.peak_gb:>9.2f}{ours.peak_gb / side.peak_gb:>8.2f}x{side.losses[-1]:>11.4f}{apart:>14.2%}"
            f"{'' if apart <= CURVE_TOLERANCE else ' (!)'}"
        )
    if limit:
        lines.append(
            f"{'matrix limit':24}{limit:>10.1f}   of which train.py reaches {ours.tokens_per_second / limit:.0%}"
        )
    return "\n".join(lines)
