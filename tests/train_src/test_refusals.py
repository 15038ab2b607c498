"""A job that would waste money is stopped in its first seconds, with the reason where SageMaker reads it."""

import errno
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_jobs import ROWS, JobMaker, own_model, run_job

import checkpoints
import trainer
from failures import TrainingError, write_failure
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
        ({"target_modules": " , "}, "target_modules is empty, it must be auto or names of layers separated by commas"),
        ({"family": "seq2seq"}, "is a causal model: set auto"),
        ({"kind": "seq2seq", "learning_rate": "1e-8"}, "learning_rate 1e-08 changes nothing"),
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


def without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def with_damaged_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")


def with_damaged_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def with_truncated_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_a_layers_weights(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.down_proj" not in name}
    save_file(kept, model / "model.safetensors", {"format": "pt"})


def with_weights_of_another_shape(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:32].clone()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def with_pickled_weights(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_tokenizer, r"the tokenizer of tiny cannot be used: .* has no tokenizer\.json"),
        (with_damaged_tokenizer, r"the tokenizer of tiny cannot be used: .*tokenizer\.json is damaged"),
        (with_damaged_config, r"config\.json of the base model is damaged \(.*\): stage the model again"),
        (with_truncated_weights, r"the base model tiny does not load: .*; stage it again"),
        (
            without_a_layers_weights,
            r"the weights of tiny are incomplete: 1 are missing \(model\.layers\.1\.mlp\.down_proj",
        ),
        (with_weights_of_another_shape, r"the base model tiny does not load: .*; stage it again"),
        (with_pickled_weights, r"the base model tiny does not load: .*; stage it again"),
    ],
)
def test_a_damaged_base_model_is_named(make_job: JobMaker, spoil: Callable[[Path], None], reason: str) -> None:
    base = make_job(model_id="tiny")
    spoil(own_model(base))
    assert run_job(base) == 1
    assert re.match(reason, (base / "output" / "failure").read_text(), re.DOTALL)


def test_a_channel_without_rows_is_named(make_job: JobMaker) -> None:
    base = make_job()
    (base / "input" / "data" / "validation" / "validation.jsonl").rename(base / "rows.txt")
    assert run_job(base) == 1
    assert (base / "output" / "failure").read_text().startswith("channel validation has no row: it needs .jsonl files")


def test_early_stopping_without_anything_to_evaluate_on_is_refused(make_job: JobMaker) -> None:
    base = make_job(early_stopping_patience=3)
    shutil.rmtree(base / "input" / "data" / "validation")
    assert run_job(base) == 1
    assert (base / "output" / "failure").read_text().startswith("early_stopping_patience is 3, but there is nothing")


@pytest.mark.parametrize(("line", "reason"), [(b'{"instruction"', "not JSON: "), (b'"\xff"', "not UTF-8: ")])
def test_a_broken_line_is_named_wherever_it_stands(make_job: JobMaker, line: bytes, reason: str) -> None:
    base = make_job(rows=ROWS * 50)
    with (base / "input" / "data" / "train" / "train.jsonl").open("ab") as file:
        file.write(line)
    assert run_job(base) == 1
    text = (base / "output" / "failure").read_text()
    assert text.startswith(f"1 of 1993 rows of channel train are not usable. train.jsonl line 1993: {reason}")


def test_a_disk_too_small_for_checkpoints_and_archive_is_refused_before_training(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
    base = make_job()
    assert run_job(base) == 1
    assert "GB: give the job an instance with a larger disk" in (base / "output" / "failure").read_text()
    assert not list((base / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), SafetensorError("No space left on device")])
def test_a_disk_that_fills_up_leaves_the_reason_and_the_checkpoint_before(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save, saved = checkpoints._save, []

    def filling(tensors: Any, path: Path) -> None:
        saved.append(path)
        if len(saved) > 2:  # two files each
            path.write_bytes(b"half")
            raise error
        save(tensors, path)

    monkeypatch.setattr(checkpoints, "_save", filling)
    base = make_job(max_steps=3, save_steps=1)
    with pytest.raises(type(error)):
        run_job(base)
    assert (base / "output" / "failure").read_text().startswith(f"the disk of {base} is full: give the job an instance")
    left = [path.name for path in (base / "checkpoints").iterdir() if path.is_dir()]
    assert left == ["step-00000001"]
    assert checkpoints.newest(base / "checkpoints") is not None
    assert (base / "checkpoints" / "step-00000001" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_first_reason_of_a_job_stays_and_one_of_an_earlier_job_goes(make_job: JobMaker) -> None:
    base = make_job(epochs=0)
    assert run_job(base) == 1
    write_failure(base / "output" / "failure", "RuntimeError: connection closed by peer")
    assert (base / "output" / "failure").read_text().startswith("wrong hyperparameters: epochs is 0")
    (base / "input" / "config" / "hyperparameters.json").write_text('{"max_steps": "1", "evaluation_samples": "0"}')
    assert run_job(base) == 0
    assert not (base / "output" / "failure").exists()


@pytest.mark.parametrize("has_test_channel", [True, False])
def test_damaged_weights_stop_the_job_before_a_step_is_taken(make_job: JobMaker, has_test_channel: bool) -> None:
    base = make_job(model_id="tiny")
    model = own_model(base)
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
    import device

    monkeypatch.setattr(device, "device_bytes", lambda _: 0.3e9)
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
