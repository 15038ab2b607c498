"""A GPU at work: tokens per second, peak memory and MFU of LoRA and QLoRA, against TRL with Liger; memory against plan.

    python tests/benchmarks/train_gpu.py                 # Llama 2 7B's shape, random weights, rows of 2,048 tokens
    python tests/benchmarks/train_gpu.py --memory        # the memory model against 12 measured settings

Needs one NVIDIA GPU with bf16. MFU counts 4 operations a weight and token for adapters (forwards, and the gradient of
activations) and attention's own; recomputed activations are not counted. TRL (with liger-kernel and, for QLoRA,
bitsandbytes) is put into an environment of its own on first use.
"""

import argparse
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rival_env import rival_python
from train_sides import SEED, Side, clocked, print_side, run_side, table, training_arguments

LENGTH = 2048
VOCABULARY = 32000
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Dense bf16 peaks of the makers' data sheets, in FLOP/s, by a part of the device's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "L4": 121e12}


def make_model(folder: Path, layers: int) -> None:
    """Llama 2 7B's shape with random weights, made on the GPU."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.cpu().save_pretrained(folder, max_shard_size="4GB")


def rows(count: int) -> list[Any]:
    """Full rows of random ids, all of them trained on: the work is the same for every side."""
    from data import Row

    generator = np.random.default_rng(SEED)
    ids = generator.integers(3, VOCABULARY, (count, LENGTH)).astype(np.int32)
    return [Row(each, np.ones(LENGTH, bool), None, f"row {number}") for number, each in enumerate(ids)]


def ours(model: Path, method: str, steps: int, batch_rows: int, *, fixed: bool) -> Side:
    """train.py's engine. `fixed`: one pass a step and nothing computed again, instead of what the plan chooses."""
    import torch
    from train_sides import Clock

    from base import Base
    from data import Channel
    from folders import Folders
    from hyperparameters import Hyperparameters
    from model import load_model, plan_memory
    from trainer import Trainer

    clock, losses = Clock(), []

    class Timed(Trainer):
        def _step(self, numbers: list[int]) -> bool:
            torch.cuda.synchronize()
            if not clock.marks:
                clock.mark()
            done = super()._step(numbers)
            torch.cuda.synchronize()
            clock.mark()
            losses.append(self.progress.last_loss)
            return done

    chosen = {"micro_batch_tokens": batch_rows * LENGTH, "gradient_checkpointing": "off"} if fixed else {}
    settings = Hyperparameters(
        method=method, max_steps=steps, batch_tokens=batch_rows * LENGTH, max_length=LENGTH, learning_rate=3e-4,
        lr_scheduler="constant", warmup_ratio=0.0, seed=SEED, **chosen,
    )  # fmt: skip
    base = Base(model, "llama-2-7b-shape", "random", json.loads((model / "config.json").read_text()))
    channel = Channel(rows(steps * batch_rows))
    plan = plan_memory(base, settings, channel, 1)
    with tempfile.TemporaryDirectory() as name:
        loaded = load_model(base, settings, recompute=plan.gradient_checkpointing)
        torch.cuda.reset_peak_memory_stats()
        Timed(loaded, channel, None, settings, Folders(Path(name)), micro_batch_tokens=plan.micro_batch_tokens).run()
    return clock.side([batch_rows * LENGTH] * steps, losses)


def trl(model: Path, method: str, steps: int, batch_rows: int) -> Side:
    """SFTTrainer with Liger's kernels, one row at a time where the batch is cut."""
    import peft
    import torch
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    options: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    if method == "qlora":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    network = transformers.AutoModelForCausalLM.from_pretrained(model, **options)
    data = [{"input_ids": row.ids.tolist(), "labels": row.ids.tolist()} for row in rows(steps * batch_rows)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, steps, bf16=True) | {"gradient_checkpointing": True}
        config = SFTConfig(
            **arguments, per_device_train_batch_size=1, gradient_accumulation_steps=batch_rows, max_length=None,
            use_liger_kernel=True, train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=_plain_tokenizer(), pad_token="0")
        adapter = peft.LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=network, args=config, train_dataset=Dataset.from_list(data), peft_config=adapter,
            processing_class=tokenizer,
        )  # fmt: skip
        torch.cuda.reset_peak_memory_stats()
        return clocked(trainer, [batch_rows * LENGTH] * steps)


def _plain_tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0"))


def utilisation(side: Side, layers: int) -> float:
    """Model FLOPs utilisation of adapter training, from the data sheet's peak."""
    import torch

    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    if peak is None:
        raise SystemExit(f"no bf16 peak known for {name}: add it to PEAKS")
    weights = layers * (4 * 4096 * 4096 + 3 * 4096 * 11008) + VOCABULARY * 4096
    # Two products over half of the square, forwards and twice backwards.
    attention = layers * 3 * 2 * LENGTH * 4096
    return side.tokens_per_second * (4 * weights + attention) / peak


def speed(arguments: argparse.Namespace, model: Path) -> None:
    """Both methods, both sides."""
    python = rival_python("trl", "liger-kernel", "bitsandbytes")
    for method in ("lora", "qlora"):
        common = ["--model", str(model), "--method", method, "--steps", str(arguments.steps)]
        common += ["--rows", str(arguments.rows), "--layers", str(arguments.layers)]
        sides = {
            "train.py": run_side(python, __file__, "train.py", *common),
            "TRL + Liger": run_side(python, __file__, "trl", *common),
        }
        print(f"\n{method}, {arguments.layers} layers, rows of {LENGTH} tokens")
        print(table(sides))
        for name, side in sides.items():
            print(f"{name:24}MFU {utilisation(side, arguments.layers):.1%}")


def memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Expected against measured peak for 12 settings: depth, method, and tokens of a step."""
    from memory import GB, Shape, estimate

    python = rival_python("trl", "liger-kernel", "bitsandbytes")  # bitsandbytes is what qlora is measured with
    worst = 0.0
    print(f"{'layers':>6}{'method':>8}{'rows':>6}{'expected GB':>13}{'measured GB':>13}{'off by':>9}")
    for layers, method, count in itertools.product((4, 16), ("lora", "qlora", "full"), (1, 4)):
        model = folder / f"layers-{layers}"
        if not model.is_dir():
            make_model(model, layers)
        common = ["--model", str(model), "--method", method, "--steps", "2", "--rows", str(count), "--memory"]
        side = run_side(python, __file__, "train.py", *common)
        shape = Shape.from_config(json.loads((model / "config.json").read_text()))
        found = estimate(
            shape, method=method, lora_r=16, micro_batch_tokens=count * LENGTH, checkpointing=False, mean_row=LENGTH
        )
        # What the allocator counts has no part in the CUDA context.
        expected = found.total / GB - 0.9
        worst = max(worst, abs(expected / side.peak_gb - 1))
        print(
            f"{layers:>6}{method:>8}{count:>6}{expected:>13.2f}{side.peak_gb:>13.2f}{expected / side.peak_gb - 1:>9.1%}"
        )
    print(f"largest difference {worst:.1%} (goal 10%)")


def main() -> None:
    """Speed by default, memory when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rows", type=int, default=8, help="rows of 2,048 tokens a step")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--method", default="lora", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("train.py", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "train.py":
        print_side(ours(arguments.model, arguments.method, arguments.steps, arguments.rows, fixed=arguments.memory))
        return
    if arguments.side:
        print_side(trl(arguments.model, arguments.method, arguments.steps, arguments.rows))
        return
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU, and this machine has none")
    folder = Path(tempfile.mkdtemp(prefix="train-gpu-"))
    try:
        if arguments.memory:
            memory(arguments, folder)
        else:
            make_model(folder / "model", arguments.layers)
            speed(arguments, folder / "model")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
