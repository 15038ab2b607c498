"""LoRA training speed and memory: train.py against TRL's SFTTrainer on the same rows, model, adapter and steps.

    python tests/benchmarks/train_speed.py [--steps 4] [--tokens 1024] [--types fp32 bf16]

TRL runs packed (its collator gets each step's rows end to end, with their lengths), without recomputing activations, in
the type in which the processor multiplies matrices faster (both types where they are close), or in those that `--types`
asks for. Each side is a process of its own; the first step is not timed. The matrix limit is what the processor could
train if it did nothing but the model's own matrix products at the speed it reaches on them alone, in that type.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rival_env import rival_python
from train_rows import labels_of, planned_steps, step_tokens, write_channel
from train_sides import Side, clocked, precisions, print_side, run_side, table, train_py, training_arguments

MODEL = Path.home() / ".cache" / "llmtuner" / "models" / "smollm2-135m-instruct"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def trl(model: Path, steps: int, tokens: int, precision: str) -> Side:
    """SFTTrainer on the planned steps, one packed sequence each."""
    import peft
    import torch
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        write_channel(Path(folder), model)
        plan = planned_steps(model, "causal", steps, tokens, Path(folder) / "input" / "data" / "train")
        packed = [
            {
                "input_ids": [int(number) for row in rows for number in row.ids],
                "labels": [label for row in rows for label in labels_of(row)],
                "seq_lengths": [len(row) for row in rows],
            }
            for rows in plan
        ]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        torch.manual_seed(42)  # the adapter's first weights are those of train.py
        adapter = peft.LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
        config = SFTConfig(
            **training_arguments(folder, steps, bf16=precision == "bf16"),
            per_device_train_batch_size=1,
            max_length=None,
            packing=True,
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = SFTTrainer(
            model=peft.get_peft_model(network, adapter), args=config, train_dataset=Dataset.from_list(packed)
        )
        return clocked(trainer, step_tokens(plan))


def matrix_limit(model: Path, label_share: float, tokens: int, precision: str) -> float:
    """Tokens per second of the model's matrix products alone: forward, and the gradient of activations."""
    import torch

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, feed = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * (hidden // config["num_attention_heads"])
    block = [(hidden, hidden)] * 2 + [(kv, hidden)] * 2 + [(feed, hidden)] * 2 + [(hidden, feed)]
    products = [(tokens, *shape, config["num_hidden_layers"]) for shape in block]
    products.append((int(tokens * label_share), config["vocab_size"], hidden, 1))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    seconds = 0.0
    for shape in set(products):
        rows, outputs, inputs, times = shape
        x, w = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
        y = x @ w.t()
        best = min(_seconds(lambda x=x, w=w, y=y: (x @ w.t(), y @ w)) for _ in range(12))
        seconds += best * times * products.count(shape)
    return tokens / seconds


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Run every side one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--types", nargs="+", choices=("bf16", "fp32"), help="what TRL runs in")
    parser.add_argument("--side", choices=("train.py", "bf16", "fp32"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model, steps, tokens = arguments.model, arguments.steps, arguments.tokens
    if arguments.side and arguments.side != "train.py":
        print_side(trl(model, steps, tokens, arguments.side))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_channel(Path(folder), model)
        plan = planned_steps(model, "causal", steps, tokens, Path(folder) / "input" / "data" / "train")
    if arguments.side:
        print_side(train_py(model, step_tokens(plan), tokens))
        return
    share = sum(row.labels for rows in plan for row in rows) / sum(step_tokens(plan))
    faster = precisions()
    limit = matrix_limit(model, share, tokens, faster[0])
    common = ["--model", str(model), "--steps", str(steps), "--tokens", str(tokens)]
    sides = {"train.py": run_side(Path(sys.executable), __file__, "train.py", *common)}
    python = rival_python("trl")
    for precision in arguments.types or faster:
        sides[f"TRL SFTTrainer, {precision}"] = run_side(python, __file__, precision, *common)
    print(table(sides, limit))


if __name__ == "__main__":
    main()
