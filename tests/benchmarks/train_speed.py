"""Training speed and memory: train.py against TRL's SFTTrainer, the same rows, model, adapter and tokens a step.

    python tests/benchmarks/train_speed.py --model ~/.cache/llmtuner/models/smollm2-135m-instruct \
        --trl-python /path/to/an/environment/with/trl/bin/python --steps 8

TRL runs in its best configuration for a CPU: packing, bf16, no recomputation of activations. Each side is a process of
its own; the first step is not counted. On a machine with a GPU the same command compares the two there.
"""

import argparse
import csv
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TICKETS = ROOT / "notebooks" / "samples" / "support-tickets" / "tickets.csv"
LEARNING_RATE = 1e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rows() -> list[dict[str, str]]:
    """The support-ticket sample as instruction rows."""
    with TICKETS.open(encoding="utf-8", newline="") as file:
        return [{"instruction": each["ticket"], "output": each["reply"]} for each in csv.DictReader(file)]


def run_ours(model: Path, steps: int, tokens: int) -> dict[str, float]:
    """train.py on a base folder of its own, read through its metric lines."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        data = base / "input" / "data" / "train"
        data.mkdir(parents=True)
        (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
        (base / "input" / "data" / "model").symlink_to(model.resolve())
        config = base / "input" / "config"
        config.mkdir()
        settings = {"max_steps": steps, "batch_tokens": tokens, "learning_rate": LEARNING_RATE, "log_steps": 1}
        (config / "hyperparameters.json").write_text(json.dumps({n: str(v) for n, v in settings.items()}))
        done = subprocess.run(
            [sys.executable, str(ROOT / "train_src" / "train.py")],
            env={**os.environ, "SAGEMAKER_BASE_DIR": name},
            capture_output=True,
            text=True,
            check=True,
        )
    lines = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in done.stdout.splitlines() if "train_loss=" in line]
    seen = 0
    seconds = counted = 0.0
    for number, line in enumerate(lines):
        own = int(line["tokens"]) - seen
        seen += own
        if number:
            counted += own
            seconds += own / float(line["tokens_per_second"])
    return {
        "tokens_per_second": counted / seconds,
        "peak_gb": float(lines[-1]["memory_gb"]),
        "first_loss": float(lines[0]["train_loss"]),
        "last_loss": float(lines[-1]["train_loss"]),
    }


def run_trl(model: Path, steps: int, tokens: int) -> dict[str, float]:
    """The child process that runs SFTTrainer."""
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    marks: list[float] = []
    losses: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["instruction"]}],
                "completion": [{"role": "assistant", "content": row["output"]}],
            }
            for row in rows()
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            max_length=tokens,
            packing=True,
            completion_only_loss=True,
            bf16=True,
            model_init_kwargs={"dtype": "bfloat16"},
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=42,
        )
        adapter = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=str(model), args=config, train_dataset=data, peft_config=adapter, callbacks=[Clock()]
        )
        lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
        trainer.train()
    # Packed rows are nearly full, so the mean length is what each step held.
    real = sum(lengths) / len(lengths)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e9
    return {
        "tokens_per_second": real * (len(marks) - 1) / (marks[-1] - marks[0]),
        "peak_gb": peak,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def main() -> None:
    """Run both sides one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--trl-python", type=Path, help="python of an environment that has trl")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--side", choices=("both", "trl"), default="both", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "trl":
        print(json.dumps(run_trl(arguments.model, arguments.steps, arguments.tokens)))
        return
    table = {"train.py": run_ours(arguments.model, arguments.steps, arguments.tokens)}
    if arguments.trl_python:
        command = [str(arguments.trl_python), __file__, "--side", "trl", "--model", str(arguments.model)]
        command += ["--steps", str(arguments.steps), "--tokens", str(arguments.tokens)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        table["TRL SFTTrainer"] = json.loads(done.stdout.splitlines()[-1])
    print(f"{'':16}{'tokens/s':>10}{'peak GB':>10}{'first loss':>12}{'last loss':>11}")
    for name, values in table.items():
        print(
            f"{name:16}{values['tokens_per_second']:>10.0f}{values['peak_gb']:>10.2f}"
            f"{values['first_loss']:>12.3f}{values['last_loss']:>11.3f}"
        )


if __name__ == "__main__":
    main()
