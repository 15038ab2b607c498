"""What a training job can be told, parsed and checked in one place.

SageMaker hands every value over as a string; `Hyperparameters.from_strings` turns them into numbers and names all wrong
ones at once. The kit's settings use the same names and defaults; a test keeps the two equal.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from failures import TrainingError


def _choice(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


def _number(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class Hyperparameters:
    """Settings of one fine-tune. Lengths and batches are in tokens, steps are optimizer steps."""

    model_id: str = ""
    model_revision: str = ""  # a commit on the Hugging Face Hub, or what the staged copy is known by
    family: str = _choice("auto", "auto", "causal", "seq2seq")
    method: str = _choice("lora", "lora", "rslora", "dora", "qlora", "full")
    epochs: float = _number(1.0, 0.001, 1000)
    max_steps: int = _number(0, 0, 10_000_000)  # 0: as many as the epochs need
    learning_rate: float = _number(2e-4, 1e-8, 1.0)
    lr_scheduler: str = _choice("cosine", "cosine", "linear", "constant")
    warmup_ratio: float = _number(0.03, 0.0, 0.9)
    weight_decay: float = _number(0.0, 0.0, 1.0)
    max_grad_norm: float = _number(1.0, 0.0, 1000.0)  # 0: no clipping
    lora_r: int = _number(16, 1, 1024)
    lora_alpha: float = _number(32, 0.001, 10_000)
    lora_dropout: float = _number(0.0, 0.0, 0.9)
    target_modules: str = "auto"  # or names separated by commas
    max_length: int = _number(0, 0, 1_000_000)  # 0: what the model can read, at most 2048
    batch_tokens: int = _number(4096, 16, 100_000_000)  # tokens of one optimizer step, over all devices
    micro_batch_tokens: int = _number(0, 0, 10_000_000)  # tokens of one forward pass; 0: chosen from memory
    precision: str = _choice("auto", "auto", "bf16", "fp32")
    gradient_checkpointing: str = _choice("auto", "auto", "on", "off")
    sharding: str = _choice("auto", "auto", "on", "off")  # weights spread over the processes; auto: where they must be
    long_rows: str = _choice("cut", "cut", "drop", "stop")
    eval_steps: int = _number(0, 0, 10_000_000)  # 0: about ten times in a job
    save_steps: int = _number(0, 0, 10_000_000)  # 0: about every five minutes and at the end
    log_steps: int = _number(0, 0, 10_000_000)  # 0: at most about two hundred lines
    early_stopping_patience: int = _number(0, 0, 1000)  # evaluations without improvement; 0: never stop early
    seed: int = _number(42, 0, 2**31 - 1)
    evaluation_samples: int = _number(3, 0, 100)
    dataset_sha256: str = ""
    kit_version: str = ""
    run_name: str = ""

    @classmethod
    def from_strings(cls, values: dict[str, Any]) -> "Hyperparameters":
        """Parse and check. Raises TrainingError that lists every unknown name and every bad value."""
        fields = {each.name: each for each in dataclasses.fields(cls)}
        problems = [
            f"{name} is not a hyperparameter (known: {', '.join(fields)})" for name in values if name not in fields
        ]
        parsed: dict[str, Any] = {}
        for name, value in values.items():
            if name in fields:
                try:
                    parsed[name] = _parsed(fields[name], str(value))
                except ValueError as error:
                    problems.append(str(error))
        if not parsed.get("target_modules", "auto").strip(" ,"):
            problems.append("target_modules is empty, it must be auto or names of layers separated by commas")
        if problems:
            raise TrainingError("wrong hyperparameters: " + "; ".join(problems))
        return cls(**parsed)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they go into the manifest."""
        return dataclasses.asdict(self)


def _parsed(definition: dataclasses.Field[Any], text: str) -> Any:
    # SageMaker's own toolkits wrap strings in JSON quotes; both spellings mean the same.
    text = text.strip().strip('"')
    name, choices, limits = definition.name, definition.metadata.get("choices"), definition.metadata.get("range")
    if choices and text not in choices:
        raise ValueError(f"{name} is {text!r}, it can be {', '.join(choices)}")
    if not limits:
        return text
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, it must be a number") from None
    low, high = limits
    if not low <= number <= high:
        raise ValueError(f"{name} is {text}, it must be from {low:g} to {high:g}")
    if definition.type is not int:
        return number
    if number != int(number):
        raise ValueError(f"{name} is {text}, it must be a whole number")
    return int(number)
