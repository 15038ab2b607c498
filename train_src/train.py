"""Entry point of a training job: `python3 train.py` in a SageMaker container, or anywhere with its folder layout.

Reads hyperparameters and channels, trains, evaluates the base and the tuned model on the test channel, and leaves the
archive in /opt/ml/model. What can be known to fail is found before torch is loaded. The reason of a failure is written
where SageMaker reads it, and the exit code is 1.
"""

import os
import sys
import time

STARTED = time.monotonic()
# Passes differ in size: PyTorch's memory on a GPU grows and shrinks in one piece instead of breaking into many.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
if os.environ.get("RANK", "0") == "0":
    print(f"llmtuner training on {os.uname().nodename}, python {sys.version.split()[0]}", flush=True)

import traceback  # noqa: E402
from pathlib import Path  # noqa: E402

import disk  # noqa: E402
import launch  # noqa: E402
import requirements  # noqa: E402
import threads  # noqa: E402
from failures import TrainingError, write_failure  # noqa: E402
from folders import Folders  # noqa: E402
from stopping import Stop  # noqa: E402


def main() -> int:
    """Run the job; the exit code says whether it succeeded."""
    threads.wait_briefly()
    folders = Folders.from_environment()
    stop = Stop(folders)
    if "RANK" not in os.environ:
        folders.failure.unlink(missing_ok=True)  # of an earlier try in the same folders
    try:
        requirements.install_missing(Path(__file__).with_name("requirements.txt"))
        if launch.count_gpus() and "RANK" not in os.environ:
            requirements.install_for_gpus(folders.hyperparameters().get("method", ""))
        workers = launch.worker_environments(folders)
        if workers:
            return launch.run_workers(Path(__file__), workers)
        if os.environ.get("RANK", "0") != "0":
            sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (for the whole process)
        _run(folders, stop)
    except TrainingError as error:
        write_failure(folders.failure, str(error))
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return 1
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if disk.is_full(error):
            reason = (
                f"the disk of {folders.base} is full: {disk.LARGER}; what was saved in {folders.checkpoints} before "
                f"is whole ({reason})"
            )
        write_failure(folders.failure, reason, traceback.format_exc())
        raise
    return 0


def _run(folders: Folders, stop: Stop) -> None:
    from base import locate_base
    from data import load_channel
    from encoding import Encoder
    from hyperparameters import Hyperparameters

    if seconds := os.environ.get("LLMTUNER_STOP_AFTER"):
        stop.end_after(float(seconds) - (time.monotonic() - STARTED))
    settings = Hyperparameters.from_strings(folders.hyperparameters())
    if settings.method == "qlora" and not launch.count_gpus():
        raise TrainingError("method qlora needs an NVIDIA GPU, this machine has none: use lora, or a GPU instance")
    base = locate_base(folders, settings)
    max_length = base.max_length(settings.max_length)
    try:
        encoder = Encoder(base.folder, base.family)
    except (FileNotFoundError, ValueError) as error:
        raise TrainingError(f"the tokenizer of {base.model_id} cannot be used: {error}") from error
    channels = {}
    for name in ("train", "validation", "test"):
        if name == "train" or folders.channel(name).is_dir():
            channel = load_channel(folders.channel(name), encoder, max_length=max_length, long_rows=settings.long_rows)
            channels[name] = channel
            print(
                f"channel {name}: {len(channel.rows)} rows, {channel.tokens} tokens, {channel.labels} trained on, "
                f"{channel.cut} rows cut and {channel.dropped} left out at max_length {max_length}",
                flush=True,
            )
    if settings.early_stopping_patience and "validation" not in channels:
        raise TrainingError(
            f"early_stopping_patience is {settings.early_stopping_patience}, but there is nothing to evaluate on: give "
            "the job a channel validation, or set it to 0"
        )
    print(f"data checked after {time.monotonic() - STARTED:.1f} s; loading {base.model_id}", flush=True)

    requirements.pass_over_four_bit(settings.method)
    from job import Job

    Job(folders, settings, base, encoder, channels, stop).run()


if __name__ == "__main__":
    sys.exit(main())
