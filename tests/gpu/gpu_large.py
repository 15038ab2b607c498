"""Whole jobs of a model that a GPU holds once: they train, end in time when told to, and their archives are checked.

    python tests/gpu/gpu_large.py                 # Llama 2 7B's shape, random weights; the exit code counts failed checks
    python tests/gpu/gpu_large.py --shape tiny    # the same in small, on any processor, to try the script out

The GPU is made as small as the case wants it: a process beside the job takes the rest of its memory. `stopped` has an
A10G's, and gets SIGTERM in training: SageMaker would kill it 120 s later. `larger` has less than the archive takes.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("train_src", "tests/train_src", "tests/benchmarks")]

from gpu_check import Report, run_job  # noqa: E402
from gpu_sides import SHAPES, device, make_model  # noqa: E402
from tiny_jobs import write_job  # noqa: E402
from tiny_models import make_tokenizer  # noqa: E402
from train_gpu import model_folder  # noqa: E402

GRACE = 120  # seconds from SIGTERM to SIGKILL in a SageMaker training job
A10G = 23.8e9  # bytes that an A10G has, of the 24 GB on its label
ROWS = [
    {"instruction": f"What is the colour of thing {n}?", "input": "", "output": f"Thing {n} is blue. " * (20 + n % 40)}
    for n in range(64)
]
CROWD = """
import sys, torch
keep = torch.empty(torch.cuda.mem_get_info()[0] - int(sys.argv[1]), dtype=torch.uint8, device="cuda")
print("taken", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Case:
    """A job, and the GPU it is given: so many bytes, and so many times the weights' own in bf16."""

    name: str
    method: str
    steps: int
    gpu_bytes: float
    gpu_weights: float = 0
    stop_at: str = ""  # a line of the job's that is followed by SIGTERM


CASES = [
    Case("stopped", "lora", 1000, A10G, stop_at="metric step=3 "),
    Case("larger", "qlora", 3, 0.7e9, gpu_weights=1),
]


@contextlib.contextmanager
def smaller_gpu(free: float) -> Iterator[None]:
    """Inside, no more than `free` bytes of the GPU are to be had."""
    if device() == "cpu":
        yield
        return
    crowd = subprocess.Popen(
        [sys.executable, "-c", CROWD, str(int(free))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert crowd.stdout is not None
    assert crowd.stdin is not None
    try:
        assert crowd.stdout.readline() == "taken\n", "the GPU has less memory than this case is about"
        yield
    finally:
        crowd.stdin.close()
        crowd.wait()


def check(case: Case, model: Path, jobs: Path, report: Report) -> None:
    """Run one case in a folder of `jobs` and say how it went."""
    base = write_job(
        jobs / case.name, model, ROWS, method=case.method if device() == "cuda" else "lora", max_steps=case.steps, log_steps=1,
        batch_tokens=4096, max_length=512, learning_rate=0.0003, evaluation_samples=2,
    )  # fmt: skip
    room = case.gpu_bytes + case.gpu_weights * sum(path.stat().st_size for path in model.glob("*.safetensors"))
    with smaller_gpu(room):
        environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(base), "PYTHONWARNINGS": "ignore"}
        code, text, took = run_job(environment, case.stop_at)
    print("\n".join(f"    {line}" for line in text.splitlines() if not line.startswith("metric")), flush=True)
    what = f"{case.name}: {case.method} in {room / 1e9:.1f} GB"
    manifest = base / "model" / "manifest.json"
    if code or not manifest.is_file():
        report.add(what, False, f"exit code {code}")
        return
    told = json.loads(manifest.read_text())
    written = float(re.findall(r"archive written in ([0-9.]+) s", text)[0])
    figures = (
        f"{told['metrics']['steps']} steps, archive of {sum(each['bytes'] for each in told['files'].values()) / 1e9:.1f} "
        f"GB in {written:.0f} s, parity within {told['parity']['largest_difference']:.1e} nats"
    )
    passed = True
    if case.stop_at:
        figures += f", ended {took:.0f} s after SIGTERM (at most {GRACE})"
        passed = took <= GRACE and not told["metrics"]["finished"]
    report.add(what, passed, figures)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-2-7b")
    parser.add_argument("--layers", type=int, default=0, help="0: as many as the shape has")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="this one only")
    arguments = parser.parse_args()
    if device() == "cpu" and arguments.shape != "tiny":
        raise SystemExit("this check needs an NVIDIA GPU, and this machine has none: --shape tiny tries it out")
    folder, report = model_folder(), Report()
    try:
        model = make_model(folder / "model", arguments.shape, arguments.layers)
        make_tokenizer(model)
        for case in CASES:
            if arguments.case in (None, case.name):
                with tempfile.TemporaryDirectory() as jobs:  # archives are written to a disk, as on AWS
                    check(case, model, Path(jobs), report)
    finally:
        shutil.rmtree(folder)
    return report.failed


if __name__ == "__main__":
    sys.exit(main())
