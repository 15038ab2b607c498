"""What train_gpu.py --profile runs: the GPU's time of one training step by what it was spent on, and the longest kernels.

The step's own time is taken from steps without the profiler, which slows the processor down: what the kernels do not
fill of it is idle time. Without a GPU the processor's operations stand in for kernels.
"""

import argparse
import collections
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_sides
from gpu_sides import WARM_UP

ADAPTER_WIDTH = 64  # a matrix product with a side this small is the adapter's
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::linear")
PRODUCT_KERNELS = ("gemm", "nvjet", "xmma", "cutlass", "splitk")
PLAIN_STEPS = 3
KERNELS = 9


def kind_of(operation: str, shapes: Any, kernel: str) -> str:
    """What a kernel does, from its name and the operation that launched it with inputs of those shapes."""
    names = f"{operation} {kernel}".lower()
    if any(word in names for word in ("flash", "fmha", "attention", "varlen", "sdpa")):
        return "attention"
    if any(word in names for word in ("adam", "foreach", "multi_tensor")):
        return "optimizer and clipping"
    if operation in PRODUCTS or any(word in kernel.lower() for word in PRODUCT_KERNELS):
        sides = [side for shape in shapes or () if len(shape) >= 2 for side in shape[-2:]]
        return "adapter-size products" if sides and min(sides) <= ADAPTER_WIDTH else "matrix products"
    if any(word in names for word in ("dequant", "4bit", "kquant")):
        return "4-bit weights unpacked"
    if any(word in names for word in ("rms", "norm", "rope", "rotary")):
        return "norms and rotary positions"
    if any(word in names for word in ("memcpy", "memset", "copy")):
        return "copies and casts"
    if any(word in names for word in ("softmax", "gather", "scatter", "amax", "cross_entropy")):
        return "loss"
    return "other elementwise"


def kernels_of(events: Any) -> Iterator[tuple[str, str, float]]:
    """(kind, kernel, ms) of everything that ran. The time of a kernel that no operation launched is counted apart."""
    apart = 0.0
    for event in events:
        if event.is_user_annotation:  # spans the kernels of others
            continue
        if event.device_type.name == "CUDA":
            apart += event.time_range.elapsed_us() / 1e3
        launched = [(kernel.name, kernel.duration) for kernel in event.kernels]
        if gpu_sides.device() == "cpu":
            launched = [(event.name, event.self_cpu_time_total)]
        for name, microseconds in launched:
            apart -= microseconds / 1e3
            yield kind_of(event.name, event.input_shapes, name), name, microseconds / 1e3
    if apart > 0.01:
        yield "launched by no operation", "", apart


def report(model: Path, method: str, rows: int, *, mixed: bool) -> None:
    """Print the table of one method."""
    from torch.profiler import ProfilerActivity, profile

    bins = gpu_sides.make_bins((WARM_UP + PLAIN_STEPS + 1) * rows, gpu_sides.vocabulary_of(model), mixed=mixed)
    steps = [[row for one in bins[at : at + rows] for row in one] for at in range(0, len(bins), rows)]
    trainer, numbers = gpu_sides.trainer_of(model, method, steps)
    for step in numbers[:WARM_UP]:
        trainer._step(step)
    synchronize()
    started = time.perf_counter()
    for step in numbers[WARM_UP:-1]:
        trainer._step(step)
    synchronize()
    whole = 1e3 * (time.perf_counter() - started) / PLAIN_STEPS
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (gpu_sides.device() == "cuda")
    with profile(activities=activities, record_shapes=True) as profiler:
        trainer._step(numbers[-1])
        synchronize()
    kinds: collections.Counter[str] = collections.Counter()
    launches: collections.Counter[str] = collections.Counter()
    longest: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for kind, name, milliseconds in kernels_of(profiler.events()):
        kinds[kind] += milliseconds
        launches[kind] += 1
        longest[f"{kind[:22]:23}{name[:90]}"] += milliseconds
        counts[f"{kind[:22]:23}{name[:90]}"] += 1
    tokens = sum(map(len, steps[-1]))
    print(f"\n{method}: a step of {tokens} tokens, passes of {trainer.micro_batch_tokens}, takes {whole:.1f} ms")
    for kind, milliseconds in kinds.most_common():
        print(f"{kind:30}{milliseconds:>10.2f} ms{milliseconds / whole:>8.1%}{launches[kind]:>8} launches")
    idle = max(0.0, whole - sum(kinds.values()))
    print(f"{'idle':30}{idle:>10.2f} ms{idle / whole:>8.1%}")
    for name, milliseconds in longest.most_common(KERNELS):
        print(f"{milliseconds:>10.2f} ms{counts[name]:>6} x  {name}")


def synchronize() -> None:
    """Wait until the GPU has done all it was told."""
    import torch

    if gpu_sides.device() == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """One table a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--methods", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--mixed", action="store_true")
    arguments = parser.parse_args()
    if gpu_sides.device() == "cpu" and arguments.shape != "tiny":
        raise SystemExit("--profile needs an NVIDIA GPU, and this machine has none: --shape tiny tries it out")
    model = gpu_sides.make_model(arguments.folder / "model", arguments.shape, arguments.layers)
    for method in arguments.methods.split(","):
        report(model, method, arguments.rows, mixed=arguments.mixed)
        gpu_sides.empty_cache()


if __name__ == "__main__":
    main()
