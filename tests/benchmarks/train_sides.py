"""One side of a training benchmark: a process of its own that trains the planned steps and tells speed, memory, losses."""

import json
import os
import resource
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from train_rows import LONGEST, SEED, write_channel

import threads

LEARNING_RATE = 3e-4
WARM_UP = 1  # steps that are not timed
CURVE_TOLERANCE = 0.01
HOPELESS = 1.5  # times slower in matrix products: a rival cannot be at its best in that type


@dataclass(frozen=True)
class Side:
    """What one side reached.

    `cpu_seconds` is processor time for 1,000 tokens, all threads together: on a busy machine it says more than the
    clock. `losses` are the training losses of the steps, mean per trained token.
    """

    tokens_per_second: float
    cpu_seconds: float
    peak_gb: float
    losses: list[float]


class Clock:
    """Seconds on the clock and on the processors, step by step; the first `warm_up` steps do not count."""

    def __init__(self, warm_up: int = WARM_UP) -> None:
        self.warm_up = warm_up
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        """A step begins or ends, on a GPU as well."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def side(self, tokens: list[int], losses: list[float]) -> Side:
        """The result; `marks` has one entry more than there are steps."""
        import torch

        first = min(self.warm_up, len(tokens) - 1)
        counted = sum(tokens[first:])
        wall, processor = (after - before for before, after in zip(self.marks[first], self.marks[-1], strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 1e9
        return Side(counted / wall, 1000 * processor / counted, peak, losses)


def precisions() -> list[str]:
    """The types a rival may be at its best in, the faster one in matrix products first; prints what was measured."""
    import torch

    speeds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, w = torch.randn(512, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
        times = []
        for _ in range(4):
            started = time.perf_counter()
            x @ w.t()
            times.append(time.perf_counter() - started)
        speeds[name] = 2 * 512 * 576 * 1536 / min(times) / 1e9
    chosen = [
        name
        for name in sorted(speeds, key=lambda name: -speeds[name])
        if speeds[name] * HOPELESS >= max(speeds.values())
    ]
    measured = ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in speeds.items())
    print(f"matrix products: {measured}; the rival runs in {' and in '.join(chosen)}", flush=True)
    return chosen


def train_py(model: Path, tokens: list[int], batch_tokens: int, **settings: Any) -> Side:
    """What train.py does between its checks and its archive: plan, load, train; in this process, each step timed."""
    from base import locate_base
    from data import load_channel
    from device import plan_memory
    from encoding import Encoder
    from folders import Folders
    from hyperparameters import Hyperparameters
    from loading import load_model
    from trainer import Trainer

    clock, losses = Clock(), []

    class Timed(Trainer):
        def _step(self, numbers: list[int]) -> bool:
            if not clock.marks:
                clock.mark()
            done = super()._step(numbers)
            clock.mark()
            losses.append(self.progress.last_loss)
            return done

    values = {
        "max_steps": len(tokens),
        "batch_tokens": batch_tokens,
        "max_length": LONGEST,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler": "constant",
        "warmup_ratio": 0,
        "seed": SEED,
    }
    with tempfile.TemporaryDirectory() as name:
        folders = Folders(Path(name))
        write_channel(folders.base, model)
        chosen = Hyperparameters.from_strings({**values, **settings})
        base = locate_base(folders, chosen)
        channel = load_channel(
            folders.channel("train"), Encoder(model, base.family), max_length=LONGEST, long_rows="cut"
        )
        plan = plan_memory(base, chosen, channel, 1)
        loaded = load_model(base, chosen, recompute=plan.gradient_checkpointing)
        Timed(loaded, channel, None, chosen, folders, micro_batch_tokens=plan.micro_batch_tokens).run()
    return clock.side(tokens, losses)


def run_side(python: Path, script: str, side: str, *arguments: str) -> Side:
    """Run `script --side SIDE` with that interpreter; its last line is the result."""
    command = [str(python), "-W", "ignore", script, "--side", side, *arguments]
    environment = dict(os.environ)
    if side == "train.py":
        threads.wait_briefly(environment)  # as train.py does before it loads anything
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return Side(**json.loads(done.stdout.splitlines()[-1]))


def clocked(trainer: Any, tokens: list[int], warm_up: int = WARM_UP) -> Side:
    """Run a transformers Trainer and time its steps. Logging must be on at every step."""
    import transformers

    clock = Clock(warm_up)

    class Steps(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.marks or clock.mark()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    trainer.add_callback(Steps())
    trainer.train()
    return clock.side(tokens, [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry])


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
    head = f"{'':24}{'tokens/s':>10}{'ours is':>9}{'CPU s/1k':>10}{'ours is':>9}{'peak GB':>9}{'ours is':>9}{'last loss':>11}{'curve differs':>15}"
    lines = [head]
    for name, side in sides.items():
        pairs = zip(ours.losses, side.losses, strict=False)
        apart = max(abs(one - other) / other for one, other in pairs)
        lines.append(
            f"{name:24}{side.tokens_per_second:>10.1f}{ours.tokens_per_second / side.tokens_per_second:>8.2f}x"
            f"{side.cpu_seconds:>10.1f}{side.cpu_seconds / ours.cpu_seconds:>8.2f}x"
            f"{side.peak_gb:>9.2f}{ours.peak_gb / side.peak_gb:>8.2f}x{side.losses[-1]:>11.4f}{apart:>14.2%}"
            f"{'' if apart <= CURVE_TOLERANCE else ' (!)'}"
        )
    if limit:
        lines.append(
            f"{'matrix limit':24}{limit:>10.1f}   of which train.py reaches {ours.tokens_per_second / limit:.0%}"
        )
    return "\n".join(lines)
