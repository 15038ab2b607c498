"""What train_gpu.py --memory runs: the memory model's expectation against the measured peak, setting after setting.

Measured is what PyTorch's allocator handed out (`used`) and what it held of the GPU (`reserved`) in two steps of one
pass, after loading. The expectation is memory.py's, less the CUDA context, of which the allocator knows nothing; it is
held against what was reserved, since that is what must fit.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gpu_sides
from gpu_sides import LENGTH

# shape, layers (0: its own), method, rows of 2,048 tokens in a pass, activations recomputed
SETTINGS = [
    ("llama-2-7b", 4, "lora", 1, False),
    ("llama-2-7b", 4, "lora", 8, False),
    ("llama-2-7b", 4, "qlora", 4, False),
    ("llama-2-7b", 4, "dora", 4, False),
    ("llama-2-7b", 4, "full", 4, False),
    ("llama-2-7b", 16, "lora", 4, False),
    ("llama-2-7b", 16, "lora", 8, True),
    ("llama-2-7b", 16, "qlora", 8, True),
    ("llama-3.2-1b", 0, "lora", 4, False),
    ("llama-3.2-1b", 0, "full", 4, False),
    ("llama-3.2-1b", 0, "full", 8, True),
    ("qwen-2.5-7b", 8, "lora", 4, False),
    ("qwen-2.5-7b", 8, "qlora", 4, False),
    ("smollm2-135m", 0, "lora", 8, False),
    ("smollm2-135m", 0, "full", 8, False),
    ("flan-t5-large", 0, "lora", 4, False),
    ("flan-t5-large", 0, "full", 4, True),
]
TRIED_OUT = [("tiny", 0, "lora", 2, False), ("tiny", 0, "full", 2, True)]


def measured(model: Path, method: str, rows: int, *, recompute: bool) -> tuple[float, float, float]:
    """(GB after loading, most GB in use, most GB reserved)."""
    import torch

    bins = gpu_sides.make_bins(2 * rows, gpu_sides.vocabulary_of(model), has_source="t5" in model.name)
    steps = [[row for one in bins[at : at + rows] for row in one] for at in (0, rows)]
    trainer, numbers = gpu_sides.trainer_of(
        model, method, steps, micro_batch_tokens=rows * LENGTH, checkpointing="on" if recompute else "off"
    )
    gpu_sides.empty_cache()
    loaded = torch.cuda.memory_allocated() / 1e9
    for step in numbers:
        trainer._step(step)
    return loaded, torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9


def expected(config: dict[str, Any], method: str, rows: int, *, recompute: bool) -> tuple[float, float]:
    """(GB of weights with their adapters, GB of everything)."""
    from memory import CUDA_CONTEXT, GB, Job, Shape

    job = Job(Shape.from_config(config), method=method, mean_row=LENGTH)
    found = job.estimate(rows * LENGTH, checkpointing=recompute, accumulates=False)
    return found.weights / GB, (found.total - CUDA_CONTEXT) / GB


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", required=True)
    arguments, _ = parser.parse_known_args()
    settings = TRIED_OUT if arguments.shape == "tiny" else SETTINGS
    if gpu_sides.device() == "cpu" and settings is SETTINGS:
        raise SystemExit("--memory needs an NVIDIA GPU, and this machine has none")
    print(
        f"{'shape':14}{'layers':>7}{'method':>7}{'rows':>5}{'activations':>13}"
        f"{'loaded: expected GB':>20}{'found':>7}{'peak: expected GB':>19}{'used':>7}{'reserved':>10}{'off by':>8}"
    )
    worst = 0.0
    for shape, layers, method, rows, recompute in settings:
        model = gpu_sides.make_model(arguments.folder / f"{shape}-{layers}", shape, layers)
        config = json.loads((model / "config.json").read_text())
        weights, total = expected(config, method, rows, recompute=recompute)
        start = (
            f"{shape:14}{config.get('num_hidden_layers') or config['num_layers']:>7}{method:>7}{rows:>5}{'recomputed' if recompute else 'kept':>13}"
            f"{weights:>20.2f}"
        )
        try:
            loaded, used, reserved = measured(model, method, rows, recompute=recompute)
        except Exception as error:  # noqa: BLE001 (the other settings are still worth their time)
            print(f"{start}  {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)
            worst = float("inf")
        else:
            off = total / reserved - 1 if reserved else 0.0
            worst = max(worst, abs(off))
            print(f"{start}{loaded:>7.2f}{total:>19.2f}{used:>7.2f}{reserved:>10.2f}{off:>8.1%}", flush=True)
        gpu_sides.empty_cache()
    print(f"largest difference {worst:.1%} (goal 10%)")


if __name__ == "__main__":
    main()
