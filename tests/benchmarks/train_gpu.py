"""A GPU at work: tokens per second, peak memory and MFU of LoRA and QLoRA, against TRL with Liger; memory against plan.

    python tests/benchmarks/train_gpu.py                 # Llama 2 7B's shape, random weights, rows of 2,048 tokens
    python tests/benchmarks/train_gpu.py --mixed         # rows of various length, packed on both sides, real tokens
    python tests/benchmarks/train_gpu.py --memory        # the memory model against measured settings
    python tests/benchmarks/train_gpu.py --profile       # where the GPU's time of one of train.py's steps goes
    python tests/benchmarks/train_gpu.py --shape tiny    # everything in small, on any processor, to try it out

Needs one NVIDIA GPU with bf16. TRL (with liger-kernel and bitsandbytes) is put into an environment of its own on first
use, unless this one has it. TRL runs as each of `--trl` says, and its best is what counts: bins of 2,048 tokens a pass,
`c` for recomputed activations, `f` for flex attention. `--sides train.py,trl,unsloth` adds Unsloth. All sides train the
same bins in the same steps; the first two steps are not timed.

MFU counts 4 operations a weight and token for adapters (forwards, and the gradient of activations) and attention's own,
against the data sheet; recomputed activations are not counted. Beside it stands the share of what a large matrix
product reaches on this very card.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_sides
from gpu_sides import LENGTH, RESULT, SHAPES
from rival_env import rival_python
from train_sides import CURVE_TOLERANCE, Side

HERE = Path(__file__).parent
PACKAGES = ("trl", "liger-kernel", "bitsandbytes")
UNSLOTH_FOLDER = "LLMTUNER_BENCH_UNSLOTH"  # where `pip install --target` put it, if not where pip finds it itself
SHARED_MEMORY = Path("/dev/shm")
ROOM = 40e9  # bytes that must be free where the model is kept
# Dense bf16 peaks of the makers' data sheets, in FLOP/s, by a part of the device's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "L4": 121e12}


def flops_per_token(config: dict[str, Any], mean_context: float) -> float:
    """Operations a trained token of an adapter's base takes; `mean_context` is how many tokens it looks back at, twice."""
    from memory import Shape

    shape = Shape.from_config(config)
    weights = shape.linear_weights + shape.vocabulary * shape.hidden
    # Two products over half of the square, forwards and twice backwards.
    return 4 * weights + shape.layers * 3 * 2 * mean_context * shape.query


def interpreter(side: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """The Python a side runs in, and its environment. Unsloth pins older packages than the others use."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if side != "unsloth":
        return rival_python(*PACKAGES), environment
    environment |= {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_LOCATION": str(folder / "unsloth")}
    if own := os.environ.get(UNSLOTH_FOLDER):
        return Path(sys.executable), environment | {"PYTHONPATH": own}
    return rival_python("unsloth", constrained=False), environment


def results(side: str, arguments: argparse.Namespace, model: Path, cases: str) -> Iterator[dict[str, Any]]:
    """What that side's process tells, line by line as it comes."""
    python, environment = interpreter(side, model.parent)
    command = [str(python), "-W", "ignore", str(HERE / "gpu_sides.py"), "--side", side]
    command += ["--model", str(model), "--shape", arguments.shape, "--layers", str(arguments.layers)]
    command += ["--methods", arguments.methods, "--cases", cases]
    command += ["--steps", str(arguments.steps), "--rows", str(arguments.rows)] + ["--mixed"] * arguments.mixed
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(RESULT):
                yield json.loads(line.removeprefix(RESULT))
            elif not line.startswith("{'"):  # transformers' own log of each step
                print(f"  {side}: {line.rstrip()[:200]}", flush=True)
    if child.returncode:
        print(f"{side} ended with exit code {child.returncode}", flush=True)


def speed(arguments: argparse.Namespace, model: Path) -> None:
    """Every side, every method; each result as it comes, then the tables."""
    cases = {"train.py": "plan", "trl": arguments.trl, "unsloth": arguments.unsloth}
    card: dict[str, Any] = {}
    found: dict[str, dict[str, Side]] = {method: {} for method in arguments.methods.split(",")}
    for side in arguments.sides.split(","):
        for result in results(side, arguments, model, cases[side]):
            if "device" in result:
                card = card or result
            elif "failed" in result:
                print(f"{result['method']}: {result['name']} failed: {result['failed']}", flush=True)
            else:
                one = found[result["method"]][result["name"]] = Side(**result["side"])
                print(f"{result['method']}: {result['name']}: {one.tokens_per_second:.0f} tokens/s", flush=True)
    if not card:
        raise SystemExit("no side could start")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    bins = gpu_sides.make_bins(arguments.rows * arguments.steps, 1000, mixed=arguments.mixed)
    lengths = [len(row) for rows in bins for row in rows]
    operations = flops_per_token(config, sum(length * length for length in lengths) / sum(lengths))
    print(
        f"\n{card['device']}, a large matrix product reaches {card['matrix_flops'] / 1e12:.0f} TFLOP/s\n"
        f"{arguments.shape}, {config['num_hidden_layers']} layers, {len(lengths)} rows of {min(lengths)} to {max(lengths)} "
        f"tokens, {arguments.rows * LENGTH} tokens a step at most"
    )
    for method, sides in found.items():
        print(f"\n{method}\n{table(sides, operations, card)}")


def table(sides: dict[str, Side], operations: float, card: dict[str, Any]) -> str:
    """Speed, memory and losses side by side; the first side is the one the others are compared with."""
    if not sides:
        return "nothing was measured"
    peak = next((value for part, value in PEAKS.items() if part in card["device"]), None)
    ours = next(iter(sides.values()))
    lines = [
        f"{'':48}{'tokens/s':>9}{'ours is':>9}{'MFU':>7}{'of card':>9}{'peak GB':>9}{'ours is':>9}{'loss':>9}{'curve':>8}"
    ]
    for name, side in sides.items():
        apart = max(abs(one - other) / other for one, other in zip(ours.losses, side.losses, strict=True))
        reached = side.tokens_per_second * operations
        lines.append(
            f"{name:48}{side.tokens_per_second:>9.0f}{ours.tokens_per_second / side.tokens_per_second:>8.2f}x"
            f"{format(reached / peak, '.1%') if peak else '?':>7}{reached / card['matrix_flops']:>9.1%}{side.peak_gb:>9.2f}"
            f"{ours.peak_gb / side.peak_gb:>8.2f}x{side.losses[-1]:>9.4f}{apart:>8.2%}"
            f"{'' if apart <= CURVE_TOLERANCE else ' (!)'}"
        )
    for rival in ("TRL", "Unsloth"):
        rivals = {name: side for name, side in sides.items() if name.startswith(rival) and side is not ours}
        if rivals:
            best = max(rivals, key=lambda name: rivals[name].tokens_per_second)
            gain = ours.tokens_per_second / rivals[best].tokens_per_second
            lines.append(f"train.py is {gain:.2f}x as fast as the best of {rival} ({best})")
    return "\n".join(lines)


def model_folder() -> Path:
    """A new folder for the base models, in memory where there is room."""
    has_room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM
    return Path(tempfile.mkdtemp(prefix="train-gpu-", dir=SHARED_MEMORY if has_room else None))


def main() -> None:
    """Speed by default, memory or a profile when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-2-7b")
    parser.add_argument("--layers", type=int, default=0, help="0: as many as the shape has")
    parser.add_argument("--methods", default="lora,qlora")
    parser.add_argument(
        "--sides", default="train.py,trl", help="of train.py, trl, unsloth; the others are compared with the first"
    )
    parser.add_argument("--trl", default="2,4,8c", help="ways of TRL to try: bins a pass, then c and f")
    parser.add_argument("--unsloth", default="2,8c", help="ways of Unsloth to try, likewise")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8, help=f"bins of {LENGTH} tokens a step")
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as train.py does; for every side
    folder = model_folder()
    try:
        if arguments.memory or arguments.profile:
            script = "gpu_memory.py" if arguments.memory else "gpu_profile.py"
            options = ["--folder", str(folder), "--shape", arguments.shape, "--layers", str(arguments.layers)]
            options += ["--methods", arguments.methods, "--rows", str(arguments.rows)] + ["--mixed"] * arguments.mixed
            command = [str(rival_python(*PACKAGES)), "-W", "ignore", str(HERE / script), *options]
            sys.exit(subprocess.run(command, check=False).returncode)
        speed(arguments, folder / "model")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
