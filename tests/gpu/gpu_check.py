"""What only a machine with a GPU can show: train.py and serve.py do on it what they do on a processor.

    python tests/gpu/gpu_check.py                 # prints a table; the exit code is the number of failed checks
    python tests/gpu/gpu_check.py --device cpu    # the same against a second run on the processor, to try the script out

Whole jobs on a tiny Llama and a tiny T5, each a process of its own, on the GPU and on the processor over the same rows:
their losses step by step, in fp32 closely, in bf16 and 4-bit within what rounding costs. A job's parity gate (archive.py)
must have passed. A killed job goes on to the same losses. The archive in fp32 gives the same greedy tokens on both, alone
and in serve.py's batches. These checks are a script and no tests because CI has no GPU.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAIN_SRC = ROOT / "train_src"
sys.path[:0] = [str(TRAIN_SRC), str(ROOT / "tests" / "train_src")]

STEPS = 6
TAUGHT = 60  # steps after which answers are sentences
ANSWER = 24  # tokens
ROWS = [
    {"instruction": f"What is the colour of thing {n}?", "input": "", "output": f"Thing {n} is blue. " * (1 + n % 7)}
    for n in range(48)
]
FP32, BF16, FOUR_BIT = 1e-3, 0.03, 0.06  # largest relative difference of a step's loss from the processor's in fp32
SAME = 1e-4  # of a job that was killed: the device's own order of sums
# family, method, precision, gradient checkpointing, tolerance
JOBS = [
    ("causal", "lora", "fp32", "off", FP32),
    ("causal", "lora", "fp32", "on", FP32),
    ("causal", "dora", "fp32", "off", FP32),
    ("causal", "full", "fp32", "off", FP32),
    ("seq2seq", "lora", "fp32", "off", FP32),
    ("seq2seq", "full", "fp32", "off", FP32),
    ("causal", "lora", "bf16", "off", BF16),
    ("causal", "rslora", "bf16", "on", BF16),
    ("causal", "dora", "bf16", "off", BF16),
    ("causal", "full", "bf16", "off", BF16),
    ("causal", "qlora", "bf16", "off", FOUR_BIT),
    ("seq2seq", "lora", "bf16", "off", BF16),
    ("seq2seq", "full", "bf16", "off", BF16),
]
KILLED_JOB = JOBS[0]
KILLED = "checkpoint step-00000003 saved"


@dataclass(frozen=True)
class Outcome:
    """A finished job: its folder, the loss of each step, what it printed."""

    base: Path
    code: int
    losses: dict[int, float]
    text: str

    @property
    def why(self) -> str:
        """The reason of a failure, in a line."""
        failure = self.base / "output" / "failure"
        lines = (failure.read_text() if failure.is_file() else self.text).strip().splitlines()
        return f"exit code {self.code}: {lines[0] if failure.is_file() else lines[-1]}"[:200]


@dataclass
class Report:
    """The table, printed as it grows."""

    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, what: str, passed: bool, figures: str) -> None:
        """One line of it."""
        self.failed += not passed
        seconds = time.monotonic() - self.started
        print(f"{'ok' if passed else 'FAILED':8}{what:46}{figures}  [{seconds:.0f} s]", flush=True)


def run_job(environment: dict[str, str], at: str = "", sent: int = signal.SIGTERM) -> tuple[int, str, float]:
    """(exit code, output, seconds from the signal to the end) of train.py. It is sent when a line has `at` in it."""
    text, signalled = "", 0.0
    with subprocess.Popen(
        [sys.executable, str(TRAIN_SRC / "train.py")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        assert job.stdout is not None
        for line in job.stdout:
            text += line
            if at and at in line and not signalled:
                signalled = time.monotonic()
                job.send_signal(sent)
    return job.returncode, text, time.monotonic() - signalled if signalled else 0.0


class Machine:
    """Runs jobs and archives on the device that is checked, or on the processor."""

    def __init__(self, folder: Path, device: str) -> None:
        from tiny_models import tiny_model

        self.folder, self.device = folder, device
        self.models = {family: tiny_model(folder / f"model-{family}", family) for family in ("causal", "seq2seq")}
        # T5 drops at random, and devices draw other numbers.
        config = self.models["seq2seq"] / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dropout_rate": 0.0}))

    def environment(self, device: str, **more: str) -> dict[str, str]:
        """Of a process that sees the GPU, or none."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **hidden, **more}

    def lay_out(self, name: str, family: str, **hyperparameters: object) -> Path:
        """A job's folder."""
        from tiny_jobs import write_job

        values = {"max_steps": STEPS, "log_steps": 1, "learning_rate": 0.003, "evaluation_samples": 1}
        return write_job(self.folder / name, self.models[family], ROWS, **{**values, **hyperparameters})

    def train(self, base: Path, device: str, kill_at: str = "") -> Outcome:
        """Run train.py there; with `kill_at` it is killed when it prints that."""
        environment = self.environment(device, SAGEMAKER_BASE_DIR=str(base))
        code, text, _ = run_job(environment, kill_at, signal.SIGKILL)
        found = re.findall(r"^metric step=(\d+) .*?\btrain_loss=(\S+)", text, re.MULTILINE)
        return Outcome(base, code, {int(step): float(loss) for step, loss in found}, text)

    def job(self, family: str, method: str, precision: str, checkpointing: str, device: str) -> Outcome:
        """A whole job."""
        name = f"{family}-{method}-{precision}-{checkpointing}-{device}"
        base = self.lay_out(name, family, method=method, precision=precision, gradient_checkpointing=checkpointing)
        return self.train(base, "cpu" if device == "reference" else device)

    def taught(self, family: str) -> Outcome:
        """A job long enough for answers that are more than one token again and again."""
        values = {"method": "full", "precision": "fp32", "max_steps": TAUGHT, "learning_rate": 0.01, "log_steps": 10}
        return self.train(self.lay_out(f"taught-{family}", family, **values), self.device)

    def resumed(self) -> tuple[Outcome, Outcome]:
        """A job killed after its third checkpoint, and the one that goes on from there."""
        base = self.lay_out("killed", "causal", method="lora", precision="fp32", save_steps=1)
        return self.train(base, self.device, kill_at=KILLED), self.train(base, self.device)

    def answers(self, folder: Path, device: str) -> Any:
        """What this script's `--answers` says there: greedy tokens and texts."""
        command = [sys.executable, __file__, "--answers", str(folder)]
        done = subprocess.run(
            command, env=self.environment(device), capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1][:200]}
        return json.loads(done.stdout.splitlines()[-1])

    def served(self, folder: Path) -> Any:
        """serve.py's texts for the same questions, all asked at once."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = {"SM_MODEL_DIR": str(folder), "SAGEMAKER_BIND_TO_PORT": str(port), "LLMTUNER_HOST": "127.0.0.1"}
        url = f"http://127.0.0.1:{port}"
        server = subprocess.Popen(
            [sys.executable, str(TRAIN_SRC / "serve.py")],
            env=self.environment(self.device, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            deadline = time.monotonic() + 180
            while not _is_ready(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    server.kill()
                    return {"failed": server.communicate()[0].strip().splitlines()[-1][:200]}
                time.sleep(0.2)
            bodies = [{"inputs": text, "parameters": {"max_new_tokens": ANSWER}} for text in questions()]
            with ThreadPoolExecutor(len(bodies)) as clients:
                replies = list(clients.map(lambda body: _post(f"{url}/invocations", body), bodies))
            return {"texts": [reply[0]["generated_text"] for reply in replies]}
        finally:
            server.terminate()
            server.wait(30)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def questions() -> list[str]:
    """What the archives are asked."""
    return [row["instruction"] for row in ROWS[:8]]


def answer(folder: Path) -> None:
    """Load an archive as the serving side does, check its parity, answer, and print that as JSON."""
    import parity
    from generation import Generator
    from sampling import Sampling

    generator = Generator(folder)
    difference = parity.check(folder, generator)
    prompts = [generator.prompt_ids([{"role": "user", "content": text}]) for text in questions()]
    pieces = [list(generator.stream(prompt, Sampling(max_new_tokens=ANSWER))) for prompt in prompts]
    print(
        json.dumps(
            {
                "device": generator.decoder.device.type,
                "parity": difference,
                "tokens": [[piece.token_id for piece in one] for one in pieces],
                "texts": ["".join(piece.text for piece in one) for one in pieces],
            }
        )
    )


def in_fp32(archive: Path, family: str) -> Path:
    """A copy of an archive whose weights are fp32: there the greedy tokens of two devices are the same."""
    import torch
    import transformers

    copy = archive.with_name("model-fp32")
    shutil.copytree(archive, copy)
    loader = transformers.AutoModelForSeq2SeqLM if family == "seq2seq" else transformers.AutoModelForCausalLM
    loader.from_pretrained(archive, dtype=torch.float32).save_pretrained(copy)
    recorded = json.loads((copy / "parity.json").read_text())
    (copy / "parity.json").write_text(json.dumps(recorded | {"dtype": "float32"}))
    return copy


def difference(one: dict[int, float], other: dict[int, float]) -> float:
    """Largest relative difference of a step's loss; infinite when the steps are not the same."""
    if set(one) != set(other) or not one:
        return float("inf")
    return max(abs(one[step] - other[step]) / abs(other[step]) for step in one)


def _parity(found: dict[str, Any]) -> str:
    return f"parity within {found['parity']['largest_difference']:.1e} nats"


def check_jobs(machine: Machine, report: Report, pool: ThreadPoolExecutor, only: str) -> dict[str, Path]:
    """Losses of every job against the processor's; archives of jobs that the device trained long enough to answer."""
    # 4-bit training needs the GPU.
    jobs = [job for job in JOBS if only in " ".join(job[:3]) and (machine.device == "cuda" or job[1] != "qlora")]
    references: dict[tuple[str, str], Future[Outcome]] = {}
    for family, method, *_ in jobs:
        # What is the same arithmetic in full precision.
        like = {"qlora": "lora"}.get(method, method)
        if (family, like) not in references:
            references[family, like] = pool.submit(machine.job, family, like, "fp32", "off", "reference")
    running = [(job, pool.submit(machine.job, *job[:4], machine.device)) for job in jobs]
    resumed = pool.submit(machine.resumed) if KILLED_JOB in jobs else None
    taught = {family: pool.submit(machine.taught, family) for family in dict.fromkeys(job[0] for job in jobs)}
    whole: Outcome | None = None
    for (family, method, precision, checkpointing, tolerance), future in running:
        outcome, reference = future.result(), references[family, {"qlora": "lora"}.get(method, method)].result()
        what = f"{family} {method} {precision}{', recomputed' if checkpointing == 'on' else ''}"
        for one in (reference, outcome):
            if one.code:
                report.add(what, False, one.why)
                break
        else:
            apart = difference(outcome.losses, reference.losses)
            manifest = json.loads((outcome.base / "model" / "manifest.json").read_text())
            losses = f"loss {outcome.losses[1]:.4f} to {outcome.losses[STEPS]:.4f}"
            report.add(
                what, apart <= tolerance, f"{losses}, {apart:.1e} apart (at most {tolerance:g}); {_parity(manifest)}"
            )
            if (family, method, precision, checkpointing, tolerance) == KILLED_JOB:
                whole = outcome
    if resumed and whole:
        killed, rest = resumed.result()
        apart = difference(killed.losses | rest.losses, whole.losses)
        went_on = rest.code == 0 and "resumed from checkpoint" in rest.text and killed.code != 0
        figures = f"killed at step {max(killed.losses, default=0)}, {apart:.1e} apart from the job that was not"
        report.add("killed and started again", went_on and apart <= SAME, figures if went_on else rest.why)
    archives = {}
    for family, future in taught.items():
        outcome = future.result()
        archives[family] = outcome.base / "model"
        losses = [outcome.losses[step] for step in sorted(outcome.losses)] or [0.0]
        figures = outcome.why if outcome.code else f"loss {losses[0]:.4f} to {losses[-1]:.4f}"
        report.add(f"{family} taught to answer", outcome.code == 0, figures)
    return {family: archive for family, archive in archives.items() if archive.is_dir()}


def check_answers(machine: Machine, report: Report, pool: ThreadPoolExecutor, archives: dict[str, Path]) -> None:
    """Greedy answers of the device against the processor's."""
    copies = {family: in_fp32(archive, family) for family, archive in archives.items()}
    asked = {
        (family, device): pool.submit(machine.answers, copy, device)
        for family, copy in copies.items()
        for device in ("cpu", machine.device)
    }
    rounded = {family: pool.submit(machine.answers, archive, machine.device) for family, archive in archives.items()}
    served = {family: pool.submit(machine.served, copy) for family, copy in copies.items()}
    for family in copies:
        plain, found = asked[family, "cpu"].result(), asked[family, machine.device].result()
        what = f"{family} answers in fp32"
        if problem := plain.get("failed") or found.get("failed"):
            report.add(what, False, problem)
            continue
        same = found["tokens"] == plain["tokens"] and found["device"] == machine.device
        count = sum(map(len, plain["tokens"]))
        report.add(what, same, f"{count} greedy tokens, {len(set(plain['texts']))} different answers; {_parity(found)}")
        own = rounded[family].result()
        first = [[answer[0] for answer in each.get("tokens", [])] for each in (own, plain)]
        figures = own.get("failed") or f"first tokens as in fp32; {_parity(own)}"
        report.add(f"{family} answers as the archive is, in bf16", first[0] == first[1], figures)
        texts = served[family].result()
        report.add(
            f"{family} answers of serve.py, asked at once",
            texts.get("texts") == plain["texts"],
            texts.get("failed") or f"{len(texts['texts'])} answers, {texts['texts'][0][:40]!r} first",
        )


def main() -> int:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--together", type=int, default=min(12, os.cpu_count() or 1), help="processes at a time")
    parser.add_argument("--only", default="", help="jobs whose family, method and precision have this in them")
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answers:
        answer(arguments.answers)
        return 0
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no NVIDIA GPU: --device cpu tries the script out")
    report = Report()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.together) as pool:
        machine = Machine(Path(folder), arguments.device)
        archives = check_jobs(machine, report, pool, arguments.only)
        check_answers(machine, report, pool, archives)
    print(f"{report.failed} failed" if report.failed else "all passed")
    return min(report.failed, 100)


if __name__ == "__main__":
    sys.exit(main())
