"""SIGTERM: SageMaker is about to end the job (stop, budget used up, spot capacity gone) and kills it 120 s later.

Before the first step there is nothing to save, so the job ends at once, unless a checkpoint is there that the job was
about to go on from: then it is loaded and written as a model like any other. Later the trainer ends after the last
complete step. A model that is not written by then is given up: its half would be packed and sent for nothing.

What the largest models write takes longer than those 120 s. Such a job is told when its time is over (LLMTUNER_STOP_AFTER)
and ends by itself, early enough to write its model and to be no stopped job at all.
"""

import os
import signal
import sys
from types import FrameType

from failures import TrainingError
from folders import Folders

WRITING_SECONDS = 105  # of the 120 until SageMaker kills the job


class Stop:
    """Whether the job is to end. Made before anything slow is done."""

    def __init__(self, folders: Folders) -> None:
        self.asked = False
        self.is_training = False
        self._folders = folders
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked by launch.py, which may have one waiting

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # Several processes must agree before one of them may leave.
        is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
        if is_alone and not self.is_training and not any(self._folders.checkpoints.glob("step-*")):
            print("stop signal received before the first step: there is nothing to save", flush=True)
            sys.exit(0)
        print("stop signal received: saving the last complete step", flush=True)
        self.asked = True
        signal.signal(signal.SIGALRM, self._give_up)
        signal.setitimer(signal.ITIMER_REAL, WRITING_SECONDS)

    def end_after(self, seconds: float) -> None:
        """Ask for the end after so many seconds. Raises TrainingError then, where nothing has been learnt."""
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        if not self.is_training and not any(self._folders.checkpoints.glob("step-*")):
            raise TrainingError(
                "the job's time limit is over before its first step: raise max_runtime_minutes or budget_usd"
            )
        print("the time limit is near: saving the last complete step", flush=True)
        self.asked = True

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        """Half a model is worth nothing, and would be packed and sent for money."""
        raise TrainingError(
            "stopped, and there was no time to write the model: what it has learnt is in its last checkpoint, from which "
            "the same job goes on when it is started again"
        )
