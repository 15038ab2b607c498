"""Unsloth as a side of train_gpu.py."""

import tempfile
from pathlib import Path
from typing import Any

import gpu_sides
from gpu_sides import LENGTH, RATE, TARGETS, WARM_UP
from train_sides import SEED, Side, clocked, training_arguments


def unsloth(model: Path, method: str, bins: list[list[Any]], per_step: int, case: str) -> tuple[str, Side]:
    """SFTTrainer as Unsloth patches it, with its model. `case`: bins a pass, then c: its own checkpointing."""
    from unsloth import FastLanguageModel  # isort: skip
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    per_pass, checkpointing = int(case.rstrip("c")), "c" in case
    if not (model / "tokenizer.json").is_file():
        gpu_sides.plain_tokenizer(gpu_sides.vocabulary_of(model)).save_pretrained(model)
    network, tokenizer = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=LENGTH, dtype=torch.bfloat16, load_in_4bit=method == "qlora", local_files_only=True
    )
    network = FastLanguageModel.get_peft_model(
        network, r=16, lora_alpha=32, lora_dropout=0, bias="none", target_modules=TARGETS, random_state=SEED,
        use_gradient_checkpointing="unsloth" if checkpointing else False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, len(bins) // per_step, bf16=True)
        config = SFTConfig(
            **{**arguments, "gradient_checkpointing": checkpointing, "learning_rate": RATE},
            per_device_train_batch_size=per_pass, gradient_accumulation_steps=per_step // per_pass, max_length=LENGTH,
            train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        trainer = SFTTrainer(
            model=network, processing_class=tokenizer, args=config,
            train_dataset=Dataset.from_list([gpu_sides.packed(rows) for rows in bins]),
        )  # fmt: skip
        gpu_sides.empty_cache()
        side = clocked(trainer, gpu_sides.tokens_of(bins, per_step), WARM_UP)
    kept = "its checkpointing" if checkpointing else "kept"
    return f"Unsloth, {per_pass * LENGTH} tokens a pass, {kept}", side
