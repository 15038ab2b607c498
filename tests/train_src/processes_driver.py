"""Runs jobs one after the other in two processes, as train.py runs one; Python and torch start only once for all.

    JOBS='[["/base/folder", 29501], ...]' python processes_driver.py

With STOP_AFTER=2 every job gets SIGTERM, through the parent of the two, when it has taken two steps. With
SAVES_EVERY_STEP='[0, 1]' the first process is to save after every step of the first job by its own clock, the other one
never, and in the second job it is the other way round.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import launch
from folders import Folders


def main() -> int:
    """The parent: starts the two as train.py does."""
    (base, _), *_ = json.loads(os.environ["JOBS"])
    os.environ["LLMTUNER_PROCESSES"] = "2"
    return launch.run_workers(Path(__file__), launch.worker_environments(Folders(Path(base))))


def work() -> int:
    """One of the two; the exit code of the first job that fails."""
    import train
    import trainer

    if after := int(os.environ.get("STOP_AFTER", "0")):
        _stop_every_job(after)
    saving = json.loads(os.environ.get("SAVES_EVERY_STEP", "[]"))
    for number, (base, port) in enumerate(json.loads(os.environ["JOBS"])):
        if saving:
            trainer.SAVE_SHARE = math.inf
            trainer.SAVE_SECONDS = 0 if int(os.environ["RANK"]) == saving[number] else math.inf
        if os.environ["RANK"] == "0":
            print(f"job {base}", flush=True)
        os.environ |= {"SAGEMAKER_BASE_DIR": base, "MASTER_PORT": str(port)}
        if code := train.main():
            return code
    return 0


def _stop_every_job(after: int) -> None:
    from trainer import Trainer

    step = Trainer._step

    def stopping(trainer: Trainer, numbers: list[int]) -> bool:
        if trainer.progress.step == after:
            if trainer.group.leads:
                os.kill(os.getppid(), signal.SIGTERM)
            while not trainer.stop.asked:  # a signal that came later would stop the next job
                time.sleep(0.001)
        return step(trainer, numbers)

    Trainer._step = stopping


if __name__ == "__main__":
    sys.exit(work() if "RANK" in os.environ else main())
