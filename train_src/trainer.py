"""The training loop.

Plain PyTorch rather than transformers.Trainer: batches are measured in tokens and packed without padding, the loss is
the mean over all trained tokens of a step however it was cut into passes or spread over processes, and a killed job goes
on bit for bit. tests/benchmarks/train_speed.py measures what that gains.

Everything random in a step (dropout) is drawn from a seed made of the job's seed, the step and the process, so that a
step is the same whether the job came to it directly or through a checkpoint.
"""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import checkpoints
import evaluation
from data import Channel, Row, fingerprint
from failures import TrainingError
from folders import Folders
from group import Group
from hyperparameters import Hyperparameters
from metrics import Window, peak_memory_gb, report
from model import TunedModel
from sampler import iterate_steps, passes_of
from schedule import Schedule
from sharding import like, whole
from stopping import Stop

SAVE_SECONDS = 300
SAVE_SHARE = 0.05  # of the training time, at most: a checkpoint of all weights of 7B takes minutes to write
LEAST_EFFECT = 1e-6  # share of the loss that an update must move it by
EXPLODED = 3.0  # times the best loss, and 2 nats more
EXPLODED_STEPS = 5


@dataclass
class Progress:
    """Where training stands; all of it is in every checkpoint."""

    step: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_train_loss: float = 1e9
    exploded_steps: int = 0
    best_loss: float = 1e9
    best_step: int = 0
    evaluations_without_gain: int = 0
    last_loss: float = 0.0
    window: Window = field(default_factory=Window)


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
        micro_batch_tokens: int,
        group: Group | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.model, self.train_rows, self.settings, self.folders = model, train.rows, settings, folders
        self.validation_rows = validation.rows if validation else []
        self.data = fingerprint(train.rows)
        self.group = group or Group()
        self.micro_batch_tokens = micro_batch_tokens
        self.schedule = Schedule(train.rows, self.validation_rows, settings)
        self.progress = Progress()
        self.saved_step, self.saving_seconds = 0, 0.0
        self.stop = stop or Stop(folders)
        self.grad_norm = 0.0
        self.best_weights: dict[str, Tensor] = {}
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )

    def run(self) -> bool:
        """Train to the end. False when a stop signal ended it first; the last complete step is saved then."""
        self._resume()
        self.stop.is_training = True
        settings, progress = self.settings, self.progress
        steps = iterate_steps(
            self.train_rows,
            batch_tokens=settings.batch_tokens,
            seed=settings.seed,
            skip=progress.step,
            epochs=None if settings.max_steps else settings.epochs,
        )
        saved_at = progress.window.started = time.monotonic()
        while progress.step < self.schedule.total_steps and not self._has_run_out_of_patience():
            if not self._step(next(steps)):
                self._save()
                return False
            is_last = progress.step == self.schedule.total_steps
            if progress.step == 1 or is_last or progress.step % self.schedule.log_steps == 0:
                self._log()
            paused = time.monotonic()
            if self.validation_rows and (is_last or progress.step % self.schedule.evaluation_steps == 0):
                self._evaluate()
            if is_last or self._has_run_out_of_patience() or self._is_save_step(saved_at):
                began = time.monotonic()
                self._save()
                saved_at = time.monotonic()
                self.saving_seconds = saved_at - began
            progress.window.started += time.monotonic() - paused
        self._take_best()
        return True

    def _step(self, numbers: list[int]) -> bool:
        """One optimizer step. False, with nothing changed, when a stop signal came before its end."""
        started = time.monotonic()
        settings, progress, rows = self.settings, self.progress, self.train_rows
        labels = sum(rows[number].labels for number in numbers)
        torch.manual_seed(((settings.seed * 1_000_003 + progress.step) * 1_009 + self.group.rank) % 2**63)
        passes = passes_of(
            rows,
            numbers,
            self.micro_batch_tokens,
            self.group.rank,
            self.group.size,
            equal=self.model.sharded,
            is_padded=self.model.pads,
        )
        # Sums stay on the device: reading one would make it wait for the next pass to be prepared.
        sums = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        for part, counts in passes:
            if self.stop.asked and self.group.size == 1:
                self.optimizer.zero_grad()
                return False
            losses, right = self.model.losses(self.model.batch([rows[number] for number in part]))
            total = losses.sum()
            (total * counts / labels).backward()
            sums += torch.stack([total.detach().double(), right.sum().double()]) * counts
        # Processes must agree to stop, or one would wait for the others for ever.
        loss_sum, hits, stopping = self.group.sum(*sums.tolist(), self.stop.asked)
        if stopping:
            self.optimizer.zero_grad()
            return False
        self._check_loss(loss_sum / labels)
        if not self.model.sharded:  # there the gradients were summed on the way back
            self.group.sum_gradients(self.model.parameters())
        limit = settings.max_grad_norm or math.inf
        self.grad_norm = float(whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)))
        for each in self.optimizer.param_groups:
            each["lr"] = self.schedule.learning_rate(progress.step)
        is_first_full_size = progress.step == max(self.schedule.warmup_steps - 1, 0)
        sample = [rows[number] for number in passes[-1][0]] if is_first_full_size and passes else []
        before = self._loss_of(sample)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if is_first_full_size:
            self._check_effect(before, self._loss_of(sample), sample)
        tokens = sum(len(rows[number]) for number in numbers)
        progress.step += 1
        progress.rows += len(numbers)
        progress.tokens += tokens
        progress.seconds += time.monotonic() - started
        progress.last_loss = loss_sum / labels
        progress.window.add(loss_sum, int(hits), labels, tokens)
        return True

    def _check_loss(self, loss: float) -> None:
        """Stop a job whose loss is no number or keeps far above what it was; every later step would be wasted."""
        settings, progress = self.settings, self.progress
        advice = f"lower learning_rate (it is {settings.learning_rate:g})"
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} at step {progress.step + 1}: {advice}, or set precision fp32")
        progress.best_train_loss = min(progress.best_train_loss, loss)
        is_far = loss > EXPLODED * progress.best_train_loss + 2
        progress.exploded_steps = progress.exploded_steps + 1 if is_far else 0
        if progress.exploded_steps >= EXPLODED_STEPS:
            raise TrainingError(
                f"the loss exploded: {loss:.2f} at step {progress.step + 1}, after {progress.best_train_loss:.2f}: "
                + advice
            )

    def _loss_of(self, sample: list[Row]) -> float:
        """Sum of the losses of some rows as they are without dropout, which would hide how little an update does."""
        if not sample:
            return 0.0
        with self.model.evaluating():
            losses, _ = self.model.losses(self.model.batch(sample))
            return float(losses.sum())

    def _check_effect(self, before: float, after: float, sample: list[Row]) -> None:
        """Stop a job whose updates change nothing: the losses of the same rows around the first full-size update."""
        before, after, count = self.group.sum(before, after, sum(row.labels for row in sample))
        if abs(after - before) < LEAST_EFFECT * abs(before):
            raise TrainingError(
                f"learning_rate {self.settings.learning_rate:g} changes nothing: the loss of the same rows stayed at "
                f"{after / max(count, 1):.4f} after an update; 1e-4 to 1e-3 is usual for adapters, 1e-5 for full"
            )

    def _log(self) -> None:
        progress = self.progress
        summary = progress.window.summary()
        if self.group.leads:
            report(
                step=progress.step,
                total_steps=self.schedule.total_steps,
                epoch=progress.rows / len(self.train_rows),
                train_loss=summary["train_loss"],
                token_accuracy=summary["token_accuracy"],
                learning_rate=self.schedule.learning_rate(progress.step - 1),
                grad_norm=self.grad_norm,
                tokens_per_second=summary["tokens_per_second"],
                tokens=progress.tokens,
                eta_seconds=round((self.schedule.total_steps - progress.step) * progress.seconds / progress.step),
                memory_gb=peak_memory_gb(),
            )
        progress.window = Window()

    def _evaluate(self) -> None:
        progress = self.progress
        try:
            result = evaluation.score(self.model, self.validation_rows, self.micro_batch_tokens, self.group, self.stop)
        except evaluation.Interrupted:
            return
        if self.group.leads:
            report(step=progress.step, eval_loss=result.loss, eval_token_accuracy=result.token_accuracy)
        if result.loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.evaluations_without_gain = result.loss, progress.step, 0
            if self.settings.early_stopping_patience:
                self.best_weights = {n: p.detach().clone() for n, p in self.model.named_parameters().items()}
        else:
            progress.evaluations_without_gain += 1

    def _has_run_out_of_patience(self) -> bool:
        patience = self.settings.early_stopping_patience
        return bool(patience) and self.progress.evaluations_without_gain >= patience

    def _take_best(self) -> None:
        """With early stopping the best weights win, not the last ones."""
        progress = self.progress
        if not self.best_weights or progress.best_step == progress.step:
            return
        with torch.no_grad():
            for name, parameter in self.model.named_parameters().items():
                parameter.copy_(self.best_weights[name])
        print(f"took the weights of step {progress.best_step}, with the lowest validation loss", flush=True)

    def _is_save_step(self, saved_at: float) -> bool:
        if self.settings.save_steps:
            return self.progress.step % self.settings.save_steps == 0
        is_due = time.monotonic() - saved_at > max(SAVE_SECONDS, self.saving_seconds / SAVE_SHARE)
        if not self.model.sharded:
            return is_due
        # All must gather together, and only the leader knows how long it has written.
        return self.group.sum(self.group.leads and is_due) == [1]

    def _save(self) -> None:
        if self.saved_step == self.progress.step or not (self.group.leads or self.model.sharded):
            return
        window = self.progress.window
        state = asdict(replace(self.progress, window=Window()))
        state["window"] = window.state()
        state["settings"], state["data"] = self.settings.as_dict(), self.data
        folder = checkpoints.save(
            self.folders.checkpoints,
            self.progress.step,
            self.model,
            self.optimizer,
            state,
            self.best_weights,
            writes=self.group.leads,
        )
        self.saved_step = self.progress.step
        print(f"checkpoint {folder.name} saved", flush=True)

    def _resume(self) -> None:
        reads = self.group.leads or self.group.is_one_host
        found = checkpoints.newest(self.folders.checkpoints) if reads else None
        if not self.group.is_one_host:
            # Only the first host is sure to have it on its disk. Where all have, 7B weights and their moments are not sent.
            found = self.group.from_leader(found)
        if found is None:
            return
        try:
            self._check_same_job(found.state.pop("settings"), found.state.pop("data"))
            found.restore(self.model, self.optimizer)
            self.progress = Progress(**{**found.state, "window": Window(**found.state["window"])})
            parameters = self.model.named_parameters()
            self.best_weights = {name: like(tensor, parameters[name]) for name, tensor in found.best.items()}
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise TrainingError(
                f"checkpoint {found.name} in {self.folders.checkpoints} is not of this version or not of this base model "
                f"({type(error).__name__}: {error}): use a new checkpoint location"
            ) from error
        self.saved_step = self.progress.step
        print(f"resumed from checkpoint {found.name}", flush=True)

    def _check_same_job(self, saved: dict[str, Any], data: str) -> None:
        """A checkpoint continues the job it came from; other data or another adapter would silently mix two jobs."""
        free = {"log_steps", "save_steps", "evaluation_samples", "kit_version", "run_name"}
        ours = self.settings.as_dict()
        changed = [name for name in ours if name not in free and saved.get(name) != ours[name]]
        found = [f"{name} was {saved.get(name)!r} and is {ours[name]!r}" for name in changed]
        if data != self.data and not changed:
            found = ["the rows of channel train were others"]
        if found:
            differences = ", ".join(found)
            raise TrainingError(
                f"the checkpoints in {self.folders.checkpoints} belong to another job ({differences}): use a new "
                "checkpoint location, or the same settings"
            )
