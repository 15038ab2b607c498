"""The steps of a job: how many there are, the learning rate of each, and after which ones is logged and evaluated."""

import math
from collections.abc import Sequence

from data import Row
from hyperparameters import Hyperparameters
from sampler import iterate_steps

LOG_LINES = 200
EVALUATIONS = 10
EVALUATION_SHARE = 0.1  # of the training time, at most


class Schedule:
    """Counted once when a job begins. Steps are those of the optimizer."""

    def __init__(self, train: Sequence[Row], validation: Sequence[Row], settings: Hyperparameters) -> None:
        self._settings = settings
        self.total_steps = count_steps(train, settings)
        self.warmup_steps = math.ceil(self.total_steps * settings.warmup_ratio)
        self.log_steps = settings.log_steps or max(1, self.total_steps // LOG_LINES)
        tokens, validation_tokens = sum(map(len, train)), sum(map(len, validation))
        trained_tokens = self.total_steps * min(settings.batch_tokens, tokens)
        self.evaluation_steps = settings.eval_steps or evaluation_steps(
            self.total_steps, trained_tokens, validation_tokens
        )

    def learning_rate(self, step: int) -> float:
        """The rate of a step (counted from 0): linear warm-up, then the chosen curve down to zero."""
        settings = self._settings
        if step < self.warmup_steps:
            return settings.learning_rate * (step + 1) / self.warmup_steps
        if settings.lr_scheduler == "constant":
            return settings.learning_rate
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        if settings.lr_scheduler == "linear":
            return settings.learning_rate * (1 - done)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def count_steps(rows: Sequence[Row], settings: Hyperparameters) -> int:
    """Optimizer steps of the whole job."""
    if settings.max_steps:
        return settings.max_steps
    steps = iterate_steps(rows, batch_tokens=settings.batch_tokens, seed=settings.seed, epochs=settings.epochs)
    return sum(1 for _ in steps)


def evaluation_steps(total_steps: int, trained_tokens: int, validation_tokens: int) -> int:
    """Steps between evaluations: about ten in a job, fewer where they would take more than a tenth of its time."""
    # A forward pass costs a third of a training pass.
    affordable = int(EVALUATION_SHARE * trained_tokens / max(validation_tokens / 3, 1))
    return max(1, total_steps // max(1, min(EVALUATIONS, affordable)))
