"""The training loop.

Plain PyTorch rather than transformers.Trainer: batches are measured in tokens and packed without padding, the loss is
the mean over all trained tokens of a step however it was cut into passes, and a killed job goes on bit for bit.
Measured on two Zen 4 cores (SmolLM2-135M, LoRA r=16): see tests/benchmarks/train_speed.py.
"""

import math
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import torch

import checkpoints
import evaluation
from data import Channel, Row, iterate_steps, plan_epoch, share_of, split_micro
from failures import TrainingError
from folders import Folders
from hyperparameters import Hyperparameters
from memory import CPU_MICRO_TOKENS
from metrics import Window, peak_memory_gb, report
from model import TunedModel

SAVE_SECONDS = 300
LOG_LINES = 200
EVALUATIONS = 10
EVALUATION_SHARE = 0.1  # of the training time, at most


@dataclass
class Progress:
    """Where training stands; all of it is in every checkpoint."""

    step: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    window: Window = field(default_factory=Window)
    best_loss: float = math.inf
    evaluations_without_gain: int = 0
    last_loss: float = math.nan


class Trainer:
    """Trains a model on one channel, from the newest checkpoint if there is one."""

    def __init__(
        self,
        model: TunedModel,
        train: Channel,
        validation: Channel | None,
        settings: Hyperparameters,
        folders: Folders,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.model, self.train_rows, self.settings, self.folders = model, train.rows, settings, folders
        self.validation_rows = validation.rows if validation else []
        self.rank, self.world = rank, world
        self.micro_batch_tokens = settings.micro_batch_tokens or CPU_MICRO_TOKENS
        self.total_steps = count_steps(train.rows, settings)
        self.progress = Progress()
        self.stop_signal: int | None = None
        is_fused = model.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=is_fused
        )

    def run(self) -> bool:
        """Train to the end. False when a stop signal ended it first; the checkpoint of the last step is saved then."""
        self._resume()
        signal.signal(signal.SIGTERM, self._on_stop)
        steps = iterate_steps(
            self.train_rows,
            batch_tokens=self.settings.batch_tokens,
            seed=self.settings.seed,
            skip=self.progress.step,
        )
        saved_at = time.monotonic()
        self.progress.window.started = time.monotonic()
        while self.progress.step < self.total_steps:
            _, numbers = next(steps)
            if not self._step(numbers):
                self._save()
                return False
            progress = self.progress
            is_last = progress.step == self.total_steps
            if progress.step % self._log_steps() == 0 or is_last or progress.step == 1:
                self._log()
            paused = time.monotonic()
            should_end = bool(self.validation_rows) and self._is_evaluation_step() and self._evaluate()
            if self._is_save_step(saved_at) or is_last or should_end:
                self._save()
                saved_at = time.monotonic()
            progress.window.started += time.monotonic() - paused
            if should_end:
                print(f"stopped early at step {progress.step}: no better validation loss", flush=True)
                break
        return True

    def _step(self, numbers: list[int]) -> bool:
        """One optimizer step. False, with nothing changed, when a stop signal came in the middle of it."""
        started = time.monotonic()
        settings, progress = self.settings, self.progress
        rows = self.train_rows
        labels = sum(rows[number].labels for number in numbers)
        random_before = checkpoints.random_state()
        mine = share_of(rows, numbers, self.rank, self.world)
        loss_sum, correct = 0.0, 0
        for part in split_micro(rows, mine, self.micro_batch_tokens):
            if self.stop_signal:
                self.optimizer.zero_grad()
                checkpoints.restore_random(random_before)
                return False
            losses, right = self.model.losses(self.model.batch([rows[number] for number in part]))
            total = losses.sum()
            (total / labels).backward()
            loss_sum += float(total.detach())
            correct += int(right.sum())
        if not math.isfinite(loss_sum):
            raise TrainingError(
                f"the loss became {loss_sum} at step {progress.step + 1}: lower learning_rate "
                f"(it is {settings.learning_rate:g}), or set precision to fp32"
            )
        grad_norm = self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(progress.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = sum(len(rows[number]) for number in numbers)
        progress.step += 1
        progress.rows += len(numbers)
        progress.tokens += tokens
        progress.seconds += time.monotonic() - started
        progress.last_loss = loss_sum / labels
        progress.window.add(loss_sum, correct, labels, tokens)
        self._grad_norm = grad_norm
        return True

    def learning_rate(self, step: int) -> float:
        """The rate of a step (counted from 0): linear warm-up, then the chosen curve down to zero."""
        settings = self.settings
        warmup = math.ceil(self.total_steps * settings.warmup_ratio)
        if step < warmup:
            return settings.learning_rate * (step + 1) / warmup
        if settings.lr_scheduler == "constant":
            return settings.learning_rate
        done = (step - warmup) / max(self.total_steps - warmup, 1)
        if settings.lr_scheduler == "linear":
            return settings.learning_rate * (1 - done)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _clip(self) -> float:
        limit = self.settings.max_grad_norm or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))

    def _log(self) -> None:
        progress = self.progress
        remaining = (self.total_steps - progress.step) * progress.seconds / progress.step
        report(
            step=progress.step,
            total_steps=self.total_steps,
            epoch=progress.rows / len(self.train_rows),
            **{name: value for name, value in progress.window.summary().items() if name != "tokens_per_second"},
            learning_rate=self.learning_rate(progress.step - 1),
            grad_norm=self._grad_norm,
            tokens_per_second=progress.window.summary()["tokens_per_second"],
            tokens=progress.tokens,
            eta_seconds=round(remaining),
            memory_gb=peak_memory_gb(),
        )
        progress.window = Window()

    def _log_steps(self) -> int:
        return self.settings.log_steps or max(1, self.total_steps // LOG_LINES)

    def _is_evaluation_step(self) -> bool:
        step = self.progress.step
        if self.settings.eval_steps:
            return step % self.settings.eval_steps == 0 or step == self.total_steps
        every = evaluation_steps(self.train_rows, self.validation_rows, self.total_steps, self.settings)
        return step % every == 0 or step == self.total_steps

    def _evaluate(self) -> bool:
        """Report the validation loss. True when training should end early."""
        progress = self.progress
        result = evaluation.score(self.model, self.validation_rows, self.micro_batch_tokens)
        report(step=progress.step, eval_loss=result.loss, eval_token_accuracy=result.token_accuracy)
        if result.loss < progress.best_loss:
            progress.best_loss, progress.evaluations_without_gain = result.loss, 0
        else:
            progress.evaluations_without_gain += 1
        patience = self.settings.early_stopping_patience
        return bool(patience) and progress.evaluations_without_gain >= patience

    def _is_save_step(self, saved_at: float) -> bool:
        if self.settings.save_steps:
            return self.progress.step % self.settings.save_steps == 0
        return time.monotonic() - saved_at > SAVE_SECONDS

    def _save(self) -> None:
        if self.rank:
            return
        progress = self.progress
        state: dict[str, Any] = {
            "step": progress.step,
            "rows": progress.rows,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "window": progress.window.state(),
            "best_loss": progress.best_loss if math.isfinite(progress.best_loss) else None,
            "evaluations_without_gain": progress.evaluations_without_gain,
            "settings": self.settings.as_dict(),
            "random": checkpoints.random_state(),
        }
        folder = checkpoints.save(self.folders.checkpoints, progress.step, self.model, self.optimizer, state)
        print(f"checkpoint {folder.name} saved", flush=True)

    def _resume(self) -> None:
        found = checkpoints.newest(self.folders.checkpoints)
        if found is None:
            return
        state = found.state
        found.restore(self.model, self.optimizer)
        self.progress = Progress(
            step=state["step"],
            rows=state["rows"],
            tokens=state["tokens"],
            seconds=state["seconds"],
            window=Window(**state["window"]),
            best_loss=math.inf if state["best_loss"] is None else state["best_loss"],
            evaluations_without_gain=state["evaluations_without_gain"],
        )
        print(f"resumed from checkpoint {found.folder.name}", flush=True)

    def _on_stop(self, number: int, _frame: Any) -> None:
        print("stop signal received: saving the last complete step", flush=True)
        self.stop_signal = number


def count_steps(rows: list[Row], settings: Hyperparameters) -> int:
    """Optimizer steps of the whole job."""
    if settings.max_steps:
        return settings.max_steps
    whole = int(settings.epochs)
    plans = [
        len(plan_epoch(rows, batch_tokens=settings.batch_tokens, seed=settings.seed, epoch=epoch))
        for epoch in range(whole + 1)
    ]
    return max(1, sum(plans[:whole]) + round((settings.epochs - whole) * plans[whole]))


def evaluation_steps(train: list[Row], validation: list[Row], total_steps: int, settings: Hyperparameters) -> int:
    """Steps between evaluations: about ten in a job, fewer where they would take more than a tenth of its time."""
    # A forward pass costs a third of a training pass.
    pass_cost = sum(map(len, validation)) / 3
    train_cost = total_steps * min(settings.batch_tokens, sum(map(len, train)))
    affordable = max(1, min(EVALUATIONS, int(EVALUATION_SHARE * train_cost / max(pass_cost, 1))))
    return max(1, total_steps // affordable)
