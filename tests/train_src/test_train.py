"""Whole jobs on tiny models, through train.py and the files SageMaker sees."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from safetensors import safe_open
from tiny_jobs import ROWS, JobMaker, own_model, run_job

import checkpoints
import evaluation
import parity
import stopping
import train
import trainer
from generation import Generator
from sampling import Sampling

SCRIPT = Path(train.__file__)
# Method, sharding, activations recomputed, precision.
TWO_PROCESSES = [
    ("lora", "off", "off", "fp32"),
    ("lora", "on", "on", "fp32"),
    ("lora", "on", "off", "bf16"),
    ("full", "on", "off", "fp32"),
    ("full", "on", "on", "bf16"),
]
LINE = re.compile(r"^metric .*\btrain_loss=([-+0-9.eE]+)")


def start(base: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(base), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def in_two_processes(bases: list[Path], **environment: str) -> list[str]:
    """What each job prints; all run one after the other in the same two processes of this machine."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in bases]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        jobs = [(str(base), probe.getsockname()[1]) for base, probe in zip(bases, probes, strict=True)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("processes_driver.py"))],
        env={
            **os.environ,
            "PYTHONPATH": str(SCRIPT.parent),
            "OMP_NUM_THREADS": "1",
            "JOBS": json.dumps(jobs),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.split("\njob ")[1:]


def losses(text: str) -> dict[int, str]:
    """The loss of each step, as printed."""
    return {
        int(step): loss for step, loss in re.findall(r"^metric step=(\d+) .*?\btrain_loss=(\S+)", text, re.MULTILINE)
    }


def read_until(output: IO[str] | None, text: str) -> str:
    assert output is not None
    seen = ""
    for line in output:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came:\n{seen}")


def weights(base: Path) -> dict[str, bytes]:
    with safe_open(base / "model" / "adapter" / "adapter_model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_a_job_learns_and_says_how_much(finished: dict[str, Path], family: str) -> None:
    evaluation = json.loads((finished[family] / "output" / "data" / "evaluation.json").read_text())
    assert evaluation["rows"] == 4
    assert evaluation["tuned"]["perplexity"] < 0.75 * evaluation["base"]["perplexity"]
    assert len(evaluation["per_row"]) == 4
    mean = sum(row["tokens"] * row["tuned_loss"] for row in evaluation["per_row"]) / evaluation["tokens"]
    assert mean == pytest.approx(evaluation["tuned"]["loss"])
    sample = evaluation["samples"][0]
    assert sample["prompt"] == ROWS[0]["instruction"]
    assert sample["reference"] == ROWS[0]["output"]
    assert sample["base"] != sample["tuned"]


def test_metric_lines_have_the_agreed_form(make_job: JobMaker, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_job(make_job(max_steps=2)) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("metric ")]
    names = [re.findall(r"(\w+)=", line) for line in lines]
    assert names[1] == [
        "step",
        "total_steps",
        "epoch",
        "train_loss",
        "token_accuracy",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "tokens",
        "eta_seconds",
        "memory_gb",
    ]
    assert ["step", "eval_loss", "eval_token_accuracy"] in names
    assert names[0] == ["base_loss", "base_perplexity"]
    assert names[-1] == ["base_loss", "base_perplexity", "test_loss", "perplexity", "test_token_accuracy"]
    assert LINE.match(lines[1])


def test_what_can_be_known_to_fail_fails_before_torch_is_loaded(make_job: JobMaker) -> None:
    base = make_job(rows=[*ROWS[:8], {"instruction": "", "output": ""}])
    job = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT)],
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(base)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.stdout.startswith("llmtuner training")
    loaded = set(re.findall(r"\| +(\w+)$", job.stderr, re.MULTILINE))
    assert "tokenizers" in loaded
    assert not loaded & {"torch", "transformers", "peft"}
    assert job.returncode == 1
    reason = (base / "output" / "failure").read_text()
    assert reason.startswith("1 of 1 rows of channel train are not usable. train.jsonl line 1: instruction and input")


@pytest.mark.slow
def test_a_job_killed_and_stopped_ends_with_the_weights_of_one_that_was_not(
    make_job: JobMaker, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_steps": 8, "save_steps": 1, "lora_dropout": 0.1, "evaluation_samples": 0}
    whole, broken = make_job("whole", **settings), make_job("broken", **settings)
    assert run_job(whole) == 0
    expected = losses(capfd.readouterr().out)
    seen: dict[int, str] = {}
    with start(broken) as job:
        seen |= losses(read_until(job.stdout, "checkpoint step-00000003 saved"))
        job.kill()
    with start(broken) as job:
        text = read_until(job.stdout, "metric step=5 ")
        job.send_signal(signal.SIGTERM)
        text += job.communicate()[0]
        seen |= losses(text)
    assert job.returncode == 0
    assert "resumed from checkpoint step-0000000" in text
    assert (broken / "model" / "manifest.json").is_file(), "a stopped job leaves a usable model"
    with start(broken) as job:
        seen |= losses(job.communicate()[0])
    assert job.returncode == 0
    assert seen == expected
    assert set(expected) == set(range(1, 9))
    assert weights(broken) == weights(whole)


def test_a_job_stopped_before_its_first_step_ends_at_once_and_saves_nothing(make_job: JobMaker) -> None:
    base = make_job(max_steps=10_000)
    with start(base) as job:
        text = read_until(job.stdout, "data checked after")
        job.send_signal(signal.SIGTERM)
        text += job.communicate()[0]
    assert job.returncode == 0, text
    assert text.endswith("stop signal received before the first step: there is nothing to save\n")
    assert not (base / "model").exists()
    assert not (base / "output" / "failure").exists()


@pytest.mark.slow
def test_a_job_stopped_while_it_is_loading_a_checkpoint_leaves_that_checkpoints_model(make_job: JobMaker) -> None:
    base, models = make_job(max_steps=10_000, log_steps=1, evaluation_samples=0), []
    for moment in ("metric step=2 ", "data checked after"):
        with start(base) as job:
            text = read_until(job.stdout, moment)
            job.send_signal(signal.SIGTERM)
            text += job.communicate()[0]
        assert job.returncode == 0, text
        manifest = json.loads((base / "model" / "manifest.json").read_text())
        models.append((manifest["metrics"]["steps"], weights(base)))
    assert "resumed from checkpoint" in text
    assert models[0] == models[1]


def test_a_job_whose_time_is_over_ends_by_itself_with_its_model(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base = make_job(max_steps=4, evaluation_samples=0)
    step = trainer.Trainer._step

    def timed(self: trainer.Trainer, numbers: list[int]) -> bool:
        if self.progress.step == 2:
            self.stop.end_after(0)
            while not self.stop.asked:
                time.sleep(0.001)
        return step(self, numbers)

    monkeypatch.setattr(trainer.Trainer, "_step", timed)
    assert run_job(base) == 0
    assert "the time limit is near: saving the last complete step" in capfd.readouterr().out
    metrics = json.loads((base / "model" / "manifest.json").read_text())["metrics"]
    assert (metrics["steps"], metrics["finished"]) == (2, False)


def test_a_model_that_is_not_written_before_the_kill_is_given_up_and_its_checkpoint_kept(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_job(max_steps=4, evaluation_samples=0)
    step = trainer.Trainer._step

    def stopped(self: trainer.Trainer, numbers: list[int]) -> bool:
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, numbers)

    def endless(*_: object) -> None:
        while True:
            time.sleep(0.001)

    monkeypatch.setattr(trainer.Trainer, "_step", stopped)
    monkeypatch.setattr(parity, "check", endless)
    monkeypatch.setattr(stopping, "WRITING_SECONDS", 2)
    assert run_job(base) == 1
    assert (base / "output" / "failure").read_text().startswith("stopped, and there was no time to write the model")
    assert not [*(base / "model").iterdir()]
    assert checkpoints.newest(base / "checkpoints")


def test_a_job_whose_time_is_over_before_its_first_step_fails_with_what_to_raise(make_job: JobMaker) -> None:
    base = make_job(evaluation_samples=0)
    with start(base, LLMTUNER_STOP_AFTER="0.1") as process:
        process.communicate()
    assert process.returncode == 1
    assert "raise max_runtime_minutes or budget_usd" in (base / "output" / "failure").read_text()


def test_a_stop_does_not_wait_for_an_evaluation(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, passes = evaluation._sums, []

    def stopping(model: Any, rows: Any, planned: Any, stop: Any) -> Any:
        if len(passes) == 1:  # the base is evaluated first
            os.kill(os.getpid(), signal.SIGTERM)
        passes.append(planned)
        return sums(model, rows, planned, stop)

    monkeypatch.setattr(evaluation, "_sums", stopping)
    base = make_job(max_steps=10, eval_steps=3, save_steps=100)
    assert run_job(base) == 0
    manifest = json.loads((base / "model" / "manifest.json").read_text())
    assert (manifest["metrics"]["steps"], manifest["metrics"]["finished"]) == (3, False)
    assert len(passes) == 2
    assert [path.name for path in (base / "checkpoints").glob("step-*")] == ["step-00000003"]


@pytest.mark.parametrize(
    ("method", "family"),
    [("lora", "seq2seq"), ("rslora", "causal"), ("dora", "causal"), ("full", "causal"), ("full", "seq2seq")],
)
def test_a_stopped_job_of_any_method_goes_on_to_the_same_model(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, method: str, family: str
) -> None:
    settings = {"kind": family, "method": method, "max_steps": 4, "learning_rate": 0.003, "evaluation_samples": 0}
    whole, broken = make_job("whole", **settings), make_job("broken", **settings)
    assert run_job(whole) == 0
    step = trainer.Trainer._step
    stops = iter([2])

    def stopping(self: trainer.Trainer, numbers: list[int]) -> bool:
        if self.progress.step == 2 and next(stops, None):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, numbers)

    monkeypatch.setattr(trainer.Trainer, "_step", stopping)
    assert run_job(broken) == 0
    assert not json.loads((broken / "model" / "manifest.json").read_text())["metrics"]["finished"]
    assert run_job(broken) == 0
    assert json.loads((broken / "model" / "manifest.json").read_text())["metrics"]["finished"]
    models = [(base / "model" / "model.safetensors").read_bytes() for base in (whole, broken)]
    assert models[0] == models[1]


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(make_job: JobMaker, capfd: pytest.CaptureFixture[str]) -> None:
    """Also when they are stopped half-way and two new ones go on."""
    jobs, expected = {}, {}
    for case in TWO_PROCESSES:
        method, sharding, recompute, precision = case
        settings = {"max_steps": 4, "save_steps": 2, "precision": precision, "method": method, "learning_rate": 0.005}
        if precision == "bf16":  # slow without hardware for it, and answers are compared in fp32 alone
            settings["evaluation_samples"] = 0
        jobs[case] = make_job("-".join(case), gradient_checkpointing=recompute, sharding=sharding, **settings)
        if (method, precision) not in expected:
            base = make_job(f"one-{method}-{precision}", gradient_checkpointing="off", **settings)
            assert run_job(base) == 0
            expected[method, precision] = (losses(capfd.readouterr().out), base)
    texts = zip(in_two_processes([*jobs.values()], STOP_AFTER="2"), in_two_processes([*jobs.values()]), strict=True)
    for (case, two), (first, second) in zip(jobs.items(), texts, strict=True):
        method, sharding, recompute, precision = case
        whole, one = expected[method, precision]
        assert "stop signal received" in first, case
        assert "resumed from checkpoint step-00000002" in second, case
        for text in (first, second):
            assert ("weights spread over the processes" in text) == (sharding == "on"), case
            assert ("activations recomputed" in text) == (recompute == "on"), case
        found = {step: float(loss) for step, loss in losses(first + second).items()}
        tolerance = 1e-4 if precision == "fp32" else 5e-3
        assert set(found) == {1, 2, 3, 4}, case
        assert found == {step: pytest.approx(float(loss), rel=tolerance) for step, loss in whole.items()}, case
        # The archive was checked against the answers of the processes; its evaluation is theirs as well.
        results = [json.loads((base / "output" / "data" / "evaluation.json").read_text()) for base in (one, two)]
        assert results[1]["tuned"]["loss"] == pytest.approx(results[0]["tuned"]["loss"], rel=max(tolerance, 1e-3)), case
        if sharding == "on":
            assert results[1]["samples"] == [], case  # each token of an answer would gather all weights
        elif precision == "fp32":
            assert results[1]["samples"] == results[0]["samples"], case
        # Saved after an evaluation, which gathers weights: nothing of what was spread is missing or rounded.
        saved = checkpoints.newest(two / "checkpoints")
        assert saved is not None
        assert {name.rpartition("|")[0] for name in saved.optimizer} == set(saved.weights), case
        assert {tensor.dtype for tensor in saved.weights.values()} == {torch.float32}, case
        sizes = [(base / "model" / "model.safetensors").stat().st_size for base in (one, two)]
        assert sizes[0] == sizes[1], case


@pytest.mark.slow
def test_processes_whose_clocks_differ_save_together_when_the_leader_does(make_job: JobMaker) -> None:
    """Otherwise one would gather the weights for a checkpoint while the other gathers them for its next pass."""
    jobs = [make_job(name, max_steps=3, sharding="on", evaluation_samples=0) for name in ("leader", "other")]
    texts = in_two_processes(jobs, SAVES_EVERY_STEP="[0, 1]")
    saved = [re.findall(r"^checkpoint step-0000000(\d) saved", text, re.MULTILINE) for text in texts]
    assert saved == [["1", "2", "3"], ["3"]]


def test_checkpoints_take_a_small_share_of_the_time(make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("job", max_steps=6, evaluation_samples=0)
    seconds = iter(range(1, 10_000))
    clock = types.SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(trainer, "time", clock)
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 1)
    save = checkpoints.save

    def slow(*arguments: Any, **options: Any) -> Path:
        for _ in range(100):
            clock.monotonic()
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoints, "save", slow)
    assert run_job(job) == 0
    assert [path.name for path in sorted((job / "checkpoints").glob("step-*"))] == ["step-00000001", "step-00000006"]


def test_a_half_written_checkpoint_is_passed_over(make_job: JobMaker, capfd: pytest.CaptureFixture[str]) -> None:
    base = make_job(max_steps=3, save_steps=1)
    assert run_job(base) == 0
    newest = base / "checkpoints" / "step-00000003"
    (newest / "weights.safetensors").write_bytes(b"half")
    capfd.readouterr()
    assert run_job(base) == 0
    text = capfd.readouterr().out
    assert "checkpoint step-00000003 is incomplete and is passed over" in text
    assert "resumed from checkpoint step-00000002" in text


def test_a_later_checkpoint_that_is_broken_does_not_push_out_the_ones_before_it(make_job: JobMaker) -> None:
    base = make_job(max_steps=4, save_steps=2)
    for name in ("step-00000020", "step-00000030", "step-of-mine"):
        (base / "checkpoints" / name).mkdir(parents=True)
    assert run_job(base) == 0
    left = {path.name for path in (base / "checkpoints").glob("step-*")}
    assert left == {"step-00000002", "step-00000004", "step-of-mine"}


def test_a_checkpoint_of_another_version_is_refused_and_a_strangers_passed_over(make_job: JobMaker) -> None:
    base = make_job(max_steps=2)
    assert run_job(base) == 0
    folder = base / "checkpoints" / "step-00000002"
    manifest, state = (json.loads((folder / name).read_text()) for name in ("manifest.json", "state.json"))
    (folder / "state.json").write_text(json.dumps({**state, "shuffled": True}))
    digest = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"files": {**manifest["files"], "state.json": digest}}))
    assert run_job(base) == 1
    reason = (base / "output" / "failure").read_text()
    assert reason.startswith(f"checkpoint step-00000002 in {base / 'checkpoints'} is not of this version")
    (folder / "manifest.json").write_text('{"files": {}}')
    assert run_job(base) == 0


def test_other_rows_do_not_go_on_from_a_checkpoint_nor_take_an_earlier_base_evaluation(make_job: JobMaker) -> None:
    base = make_job(max_steps=2)
    assert run_job(base) == 0
    first = json.loads((base / "output" / "data" / "evaluation.json").read_text())
    for name in ("train", "test"):
        path = base / "input" / "data" / name / f"{name}.jsonl"
        path.write_text(path.read_text().replace("blue", "red"))
    assert run_job(base) == 1
    assert "(the rows of channel train were others)" in (base / "output" / "failure").read_text()
    shutil.rmtree(base / "checkpoints" / "step-00000002")
    assert run_job(base) == 0
    assert json.loads((base / "output" / "data" / "evaluation.json").read_text())["base"] != first["base"]


@pytest.mark.parametrize(("kind", "words"), [("causal", 700), ("seq2seq", 700)])
def test_questions_longer_than_the_model_reads_do_not_cost_the_job_its_archive(
    make_job: JobMaker, kind: str, words: int
) -> None:
    long = [{"instruction": "thing " * words, "output": "Blue."} for _ in range(2)]
    base = make_job(kind=kind, rows=[*long, *ROWS], max_steps=2)
    assert run_job(base) == 0
    probes = json.loads((base / "model" / "parity.json").read_text())["probes"]
    assert [len(probe["prompt_ids"]) < 512 for probe in probes] == [True, True]
    samples = json.loads((base / "output" / "data" / "evaluation.json").read_text())["samples"]
    assert [sample["reference"] for sample in samples] == [ROWS[0]["output"], ROWS[1]["output"]]


def test_an_encoder_decoder_is_served_with_prompts_as_long_as_it_was_trained_on(make_job: JobMaker) -> None:
    base = make_job(kind="seq2seq", max_length=700, max_steps=1, evaluation_samples=0)
    model = own_model(base)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "n_positions": 512}))  # as FLAN-T5 says
    assert run_job(base) == 0
    generator = Generator(base / "model")
    assert generator.limit == 700
    assert list(generator.stream([5] * 699 + [1], Sampling(max_new_tokens=2)))


def test_checkpoints_of_another_job_are_refused(make_job: JobMaker) -> None:
    base = make_job(max_steps=2)
    assert run_job(base) == 0
    path = base / "input" / "config" / "hyperparameters.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_r": "8"}))
    assert run_job(base) == 1
    assert "lora_r was 16 and is 8" in (base / "output" / "failure").read_text()


@pytest.mark.parametrize("method", ["rslora", "dora", "full"])
@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_every_method_trains_and_its_archive_passes_the_parity_check(
    make_job: JobMaker, method: str, family: str
) -> None:
    base = make_job(kind=family, method=method, max_steps=6, learning_rate=0.003)
    assert run_job(base) == 0
    evaluation = json.loads((base / "output" / "data" / "evaluation.json").read_text())
    assert evaluation["tuned"]["loss"] < evaluation["base"]["loss"]
    manifest = json.loads((base / "model" / "manifest.json").read_text())
    assert manifest["hyperparameters"]["method"] == method
    assert (base / "model" / "adapter").is_dir() == (method != "full")


def test_recomputing_activations_changes_no_loss(make_job: JobMaker, capfd: pytest.CaptureFixture[str]) -> None:
    texts = []
    for choice in ("on", "off"):
        assert run_job(make_job(choice, max_steps=3, gradient_checkpointing=choice)) == 0
        texts.append(capfd.readouterr().out)
    assert "activations recomputed" in texts[0]
    assert losses(texts[0]) == losses(texts[1])


def test_early_stopping_ends_with_the_best_weights(make_job: JobMaker, capfd: pytest.CaptureFixture[str]) -> None:
    noise = [
        {"instruction": row["instruction"], "output": f"{number * 7919 % 1000}"} for number, row in enumerate(ROWS)
    ]
    base = make_job(rows=noise, epochs=50, eval_steps=1, early_stopping_patience=3, lr_scheduler="constant")
    assert run_job(base) == 0
    text = capfd.readouterr().out
    evaluations = [float(loss) for loss in re.findall(r"\beval_loss=(\S+)", text)]
    best = evaluations.index(min(evaluations)) + 1
    assert len(evaluations) == best + 3
    assert f"took the weights of step {best}, with the lowest validation loss" in text
