"""Training jobs of a second: the rows, the SageMaker base folder, and a run of train.py in this process."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

ROWS = [
    {"instruction": f"What is the colour of thing {number}?", "input": "", "output": f"Thing {number} is blue. " * 3}
    for number in range(40)
]
JobMaker = Callable[..., Path]


def write_job(base: Path, model: Path, rows: list[dict[str, str]], **hyperparameters: object) -> Path:
    """Lay out a SageMaker base folder: four test rows, four for validation, the rest to train on."""
    parts = {"test": rows[:4], "validation": rows[4:8], "train": rows[8:]}
    for name, part in parts.items():
        folder = base / "input" / "data" / name
        folder.mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (base / "input" / "data" / "model").symlink_to(model)
    config = base / "input" / "config"
    config.mkdir(parents=True)
    values = {"learning_rate": "0.01", "batch_tokens": "400", "evaluation_samples": "2", **hyperparameters}
    (config / "hyperparameters.json").write_text(json.dumps({name: str(value) for name, value in values.items()}))
    return base


def own_model(base: Path) -> Path:
    """A copy of the job's base model that a test may spoil."""
    channel = base / "input" / "data" / "model"
    model = shutil.copytree(channel.resolve(), base.with_name("model"))
    channel.unlink()
    channel.symlink_to(model)
    return model


def run_job(base: Path) -> int:
    """Run train.py's main in this process; its handlers and its timer do not outlive it."""
    import train

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    timer = signal.getitimer(signal.ITIMER_REAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGEMAKER_BASE_DIR", str(base))
        try:
            return train.main()
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            for number, handler in handlers.items():
                signal.signal(number, handler)
