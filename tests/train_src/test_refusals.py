"""A job that would waste money is stopped in its first seconds, with the reason where SageMaker reads it."""

import functools
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from tiny_jobs import ROWS, JobMaker, run_job

import trainer
from failures import TrainingError
from hyperparameters import Hyperparameters


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_length": 12}, "max_length 12 cuts the answer of 32 of 32 rows of channel train: raise max_length"),
        ({"long_rows": "stop", "max_length": 20}, "set long_rows to cut or drop"),
        ({"max_length": 4096}, "max_length is 4096, tiny reads at most 512 tokens"),
        ({"learning_rate": "1e-8"}, "learning_rate 1e-08 changes nothing"),
        ({"learning_rate": "fast", "epoch": 3}, "epoch is not a hyperparameter"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', it must be a number"),
        ({"epochs": 0}, "epochs is 0, it must be from 0.001 to 1000"),
        ({"method": "qlora"}, "method qlora needs an NVIDIA GPU, this machine has none"),
        ({"target_modules": "q_proj,nonsense"}, "target_modules has nonsense; the model has down_proj"),
        ({"family": "seq2seq"}, "is a causal model: set auto"),
    ],
)
def test_a_job_that_would_waste_money_is_stopped_with_the_reason(
    make_job: JobMaker, settings: dict[str, object], reason: str
) -> None:
    base = make_job(**{"model_id": "tiny", **settings})
    assert run_job(base) == 1
    assert reason in (base / "output" / "failure").read_text()


def test_a_loss_that_is_no_number_stops_the_job(make_job: JobMaker) -> None:
    base = make_job(learning_rate=1.0, max_grad_norm=0, epochs=20, warmup_ratio=0, method="full")
    assert run_job(base) == 1
    assert re.search(r"the loss (became|exploded)", (base / "output" / "failure").read_text())


def test_a_loss_that_stays_far_above_what_it_was_stops_the_job_and_a_single_peak_does_not() -> None:
    progress = trainer.Progress()
    job = SimpleNamespace(settings=Hyperparameters(learning_rate=0.5), progress=progress)
    check = functools.partial(trainer.Trainer._check_loss, job)
    for loss in (2.0, 1.0, *([9.0, 1.5] * trainer.EXPLODED_STEPS), *([9.0] * (trainer.EXPLODED_STEPS - 1))):
        check(loss)
    with pytest.raises(TrainingError, match=r"the loss exploded: 9\.00 at step 1, after 1\.00: lower learning_rate"):
        check(9.0)


@pytest.mark.parametrize("has_test_channel", [True, False])
def test_damaged_weights_stop_the_job_before_a_step_is_taken(
    make_job: JobMaker, tmp_path: Path, has_test_channel: bool
) -> None:
    base = make_job(model_id="tiny")
    channel = base / "input" / "data" / "model"
    model = shutil.copytree(channel.resolve(), tmp_path / "model")
    channel.unlink()
    channel.symlink_to(model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    if not has_test_channel:
        shutil.rmtree(base / "input" / "data" / "test")
    assert run_job(base) == 1
    where = "the loss of tiny is nan before any training" if has_test_channel else "the loss became nan at step 1"
    assert (base / "output" / "failure").read_text().startswith(where)
    assert not list((base / "checkpoints").glob("step-*"))


def test_rows_without_a_token_to_train_on_are_named(make_job: JobMaker) -> None:
    silent = {
        "messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes.", "weight": 0}]
    }
    base = make_job(rows=[*ROWS[:9], silent])
    assert run_job(base) == 1
    reason = (base / "output" / "failure").read_text()
    assert reason.startswith(
        "1 of 2 rows of channel train are not usable. train.jsonl line 2: every answer has weight 0"
    )


def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    import model

    monkeypatch.setattr(model, "_device_bytes", lambda _: 0.3e9)
    base = make_job()
    assert run_job(base) == 1
    assert "does not fit: lora with rows of" in (base / "output" / "failure").read_text()


def test_an_unforeseen_error_leaves_its_reason_first_and_the_traceback_after_it(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(trainer.Trainer, "run", fail)
    base = make_job()
    with pytest.raises(RuntimeError):
        run_job(base)
    text = (base / "output" / "failure").read_text()
    assert text.startswith("RuntimeError: disk on fire")
    assert "Traceback" in text
