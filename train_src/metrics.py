"""The lines that SageMaker, CloudWatch and the kit read progress from: `metric name=value name=value`.

One fixed form: whole numbers as they are, the rest with five significant digits, never a progress bar.
"""

import math
import resource
import sys
import time
from dataclasses import dataclass, field

import torch


def line(**values: float) -> str:
    """The text of one metric line, in the order given."""
    return "metric " + " ".join(f"{name}={_shown(value)}" for name, value in values.items())


def report(**values: float) -> None:
    """Print one metric line at once."""
    print(line(**values), flush=True)


def perplexity(loss: float) -> float:
    """e to the mean loss per token; infinite where that leaves the range of a float."""
    return math.exp(loss) if loss < 700 else math.inf


def peak_memory_gb() -> float:
    """Most memory in use so far, in GB: the GPU's where there is one, this process's otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


@dataclass
class Window:
    """What happened since the last metric line. It travels in checkpoints, so a resumed job logs the same numbers."""

    loss_sum: float = 0.0
    correct: int = 0
    trained: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, loss_sum: float, correct: int, trained: int, tokens: int) -> None:
        """Count one optimizer step."""
        self.loss_sum += loss_sum
        self.correct += correct
        self.trained += trained
        self.tokens += tokens

    def summary(self) -> dict[str, float]:
        """`train_loss`, `token_accuracy` and `tokens_per_second` since the window was opened."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        return {
            "train_loss": self.loss_sum / max(self.trained, 1),
            "token_accuracy": self.correct / max(self.trained, 1),
            "tokens_per_second": self.tokens / seconds,
        }

    def state(self) -> dict[str, float]:
        """The sums, for a checkpoint."""
        return {"loss_sum": self.loss_sum, "correct": self.correct, "trained": self.trained, "tokens": self.tokens}


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.5g}"
