"""LoRA training speed of a FLAN-T5-like model: train.py against transformers' Seq2SeqTrainer with padding.

    python tests/benchmarks/train_seq2seq_speed.py [--steps 4] [--tokens 1024]

The model has random weights, FLAN-T5's architecture, about 135 million weights, and no dropout, so that the losses of
both sides can be compared. Rows, steps, adapter and learning rate are the same; Seq2SeqTrainer gets each step's rows as
one padded batch. Each side is a process of its own; the first step is not timed.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from train_rows import labels_of, planned_steps, step_tokens, write_channel
from train_sides import Side, clocked, precisions, print_side, run_side, table, train_py, training_arguments

TARGETS = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]


def make_model(folder: Path, tokenizer: Path) -> None:
    """FLAN-T5's architecture around another model's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=49152,
        d_model=640,
        d_kv=64,
        d_ff=1536,
        num_layers=10,
        num_heads=10,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )
    transformers.T5ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def seq2seq_trainer(model: Path, plan: list[list[Any]], precision: str) -> Side:
    """Seq2SeqTrainer on the planned steps."""
    import peft
    import torch
    import transformers

    rows = [row for step in plan for row in step]
    data = [{"input_ids": row.source_ids.tolist(), "labels": labels_of(row)} for row in rows]
    numbers = iter(range(len(rows)))
    batches = [[next(numbers) for _ in step] for step in plan]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(model, dtype=dtype)
    torch.manual_seed(42)  # the adapter's first weights are those of train.py
    adapter = peft.LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="SEQ_2_SEQ_LM")
    network = peft.get_peft_model(network, adapter)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    class InSteps(transformers.Seq2SeqTrainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(data, batch_sampler=batches, collate_fn=self.data_collator)

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.Seq2SeqTrainingArguments(
            **training_arguments(folder, len(plan), bf16=precision == "bf16"), remove_unused_columns=False
        )
        collator = transformers.DataCollatorForSeq2Seq(tokenizer, network)
        return clocked(
            InSteps(model=network, args=arguments, train_dataset=data, data_collator=collator), step_tokens(plan)
        )


def main() -> None:
    """Run both sides one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=Path.home() / ".cache/llmtuner/models/smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("train.py", "bf16", "fp32"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = arguments.model or Path(name) / "model"
        if not arguments.model:
            make_model(model, arguments.tokenizer)
        write_channel(Path(name) / "data", model)
        channel = Path(name) / "data" / "input" / "data" / "train"
        plan = planned_steps(model, "seq2seq", arguments.steps, arguments.tokens, channel)
        if arguments.side == "train.py":
            print_side(train_py(model, step_tokens(plan), arguments.tokens))
        elif arguments.side:
            print_side(seq2seq_trainer(model, plan, arguments.side))
        else:
            common = ["--model", str(model), "--steps", str(arguments.steps), "--tokens", str(arguments.tokens)]
            python = Path(sys.executable)
            sides = {"train.py": run_side(python, __file__, "train.py", *common)}
            for precision in precisions():
                sides[f"Seq2SeqTrainer, {precision}"] = run_side(python, __file__, precision, *common)
            print(table(sides))


if __name__ == "__main__":
    main()
