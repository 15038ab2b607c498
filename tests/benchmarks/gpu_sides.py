"""One side of train_gpu.py in a process of its own: trains case after case, each case's result is a line of JSON.

The base model (a known shape, random weights) is made once and kept in memory-backed storage where there is room, so
that loading it again takes seconds. Rows are random ids in bins of 2,048 tokens: one row fills a bin, or, `--mixed`,
several rows of various length do. Every side gets the same bins in the same steps.
"""

import argparse
import gc
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import train_rows
from train_sides import SEED, Clock, Side, clocked, training_arguments

LENGTH = 2048
SYSTEM = 64  # ids that all mixed rows begin with, as a chat template and a system prompt make them
RATE = 3e-4
WARM_UP = 2  # steps: kernels are compiled in the first, cuDNN plans in the second
RESULT = "result "  # begins the lines that train_gpu.py reads
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "qwen-2.5-7b": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
    },
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "flan-t5-large": {
        "vocab_size": 32128, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
    },
    "tiny": {
        "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip


def make_model(folder: Path, shape: str, layers: int = 0) -> Path:
    """The model of that shape in `folder`, with `layers` in place of its own number of layers. Made once."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if (folder / "config.json").is_file():
        return folder
    sizes = dict(SHAPES[shape])
    if "t5" in shape:
        family = transformers.T5ForConditionalGeneration
    else:
        family = transformers.Qwen2ForCausalLM if "qwen" in shape else transformers.LlamaForCausalLM
        sizes |= {"max_position_embeddings": 4096, "num_hidden_layers": layers or sizes["num_hidden_layers"]}
    config = family.config_class(**sizes)
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device()):
        model = family(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="4GB")
    del model
    empty_cache()
    return folder


def device() -> str:
    """`cuda` where there is a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def empty_cache() -> None:
    """Give the GPU's memory back and forget its peaks."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def make_bins(
    count: int, vocabulary: int, *, mixed: bool = False, has_source: bool = False, length: int = LENGTH
) -> list[list[Any]]:
    """Bins of rows, `length` tokens at most each.

    Mixed rows are log-normal, 128 to `length` tokens, half of each trained; their prompts begin alike. Rows with a source
    are an encoder-decoder's: half of each is read, half written.
    """
    from data import Row

    generator, lengths = np.random.default_rng(SEED), np.random.default_rng(SEED + 1)
    system = np.random.default_rng(SEED + 2).integers(3, vocabulary, SYSTEM)

    def row(size: int, prompt: int) -> Any:
        ids = generator.integers(3, vocabulary, size).astype(np.int32)
        if has_source:
            return Row(ids[size // 2 :], np.ones(size - size // 2, bool), ids[: size // 2], "random")
        ids[: min(SYSTEM, prompt)] = system[:prompt]
        return Row(ids, np.arange(size) >= prompt, None, "random")

    if not mixed:
        return [[row(length, 0)] for _ in range(count)]
    bins: list[list[Any]] = []
    while len(bins) < count:
        sizes = np.clip(lengths.lognormal(5.8, 0.9, 64), min(2 * SYSTEM, length), length).astype(int)
        # Best fit, longest first, over 64 rows at a time, as TRL's packing does.
        fresh: list[list[Any]] = []
        for size in sorted(map(int, sizes), reverse=True):
            roomy = [one for one in fresh if sum(map(len, one)) + size <= length]
            chosen = max(roomy, key=lambda one: sum(map(len, one)), default=None)
            if chosen is None:
                fresh.append(chosen := [])
            chosen.append(row(size, size // 2))
        bins += fresh[:-1]  # the last one is half empty
    return bins[:count]


def trainer_of(
    model: Path, method: str, steps: list[list[Any]], *, micro_batch_tokens: int = 0, checkpointing: str = "auto"
) -> tuple[Any, list[list[int]]]:
    """train.py's engine, loaded, and the row numbers of each step."""
    from base import Base
    from data import Channel
    from device import plan_memory
    from folders import Folders
    from hyperparameters import Hyperparameters
    from loading import load_model
    from trainer import Trainer

    channel = Channel([row for rows in steps for row in rows])
    settings = Hyperparameters(
        method=method, max_steps=len(steps), batch_tokens=max(sum(map(len, rows)) for rows in steps), learning_rate=RATE,
        lr_scheduler="constant", warmup_ratio=0.0, seed=SEED, micro_batch_tokens=micro_batch_tokens,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    base = Base(model, model.name, "random", json.loads((model / "config.json").read_text()))
    plan = plan_memory(base, settings, channel, 1)
    loaded = load_model(base, settings, recompute=plan.gradient_checkpointing)
    folders = Folders(Path(tempfile.gettempdir()) / "train-gpu-unused")
    trainer = Trainer(loaded, channel, None, settings, folders, micro_batch_tokens=plan.micro_batch_tokens)
    numbers = iter(range(len(channel.rows)))
    return trainer, [[next(numbers) for _ in rows] for rows in steps]


def ours(model: Path, method: str, steps: list[list[Any]]) -> tuple[str, Side]:
    """train.py's engine as its plan chooses."""
    trainer, numbers = trainer_of(model, method, steps)
    empty_cache()
    clock, losses = Clock(WARM_UP), []
    clock.mark()
    for step in numbers:
        trainer._step(step)
        clock.mark()
        losses.append(trainer.progress.last_loss)
    kept = "recomputed" if trainer.model.network.is_gradient_checkpointing else "kept"
    name = f"train.py, {trainer.micro_batch_tokens} tokens a pass, {kept}"
    return name, clock.side([sum(map(len, rows)) for rows in steps], losses)


def trl(model: Path, method: str, bins: list[list[Any]], per_step: int, case: str) -> tuple[str, Side]:
    """SFTTrainer with Liger's kernels and its own fused head. `case`: bins a pass, then c: checkpointing, f: flex."""
    import peft
    import torch
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    per_pass, checkpointing = int(case.rstrip("cf")), "c" in case
    mixed = len(bins) < sum(map(len, bins))
    options: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "attn_implementation": "flex_attention" if "f" in case else "sdpa",
    }
    if method == "qlora":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    network = transformers.AutoModelForCausalLM.from_pretrained(model, device_map={"": device()}, **options)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, len(bins) // per_step, bf16=True)
        config = SFTConfig(
            **{**arguments, "gradient_checkpointing": checkpointing, "learning_rate": RATE},
            per_device_train_batch_size=per_pass, gradient_accumulation_steps=per_step // per_pass, max_length=None,
            use_liger_kernel=device() == "cuda", packing=mixed, train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        torch.manual_seed(SEED)
        adapter = peft.LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=network, args=config, train_dataset=Dataset.from_list([packed(rows, with_lengths=mixed) for rows in bins]),
            peft_config=adapter, processing_class=plain_tokenizer(network.config.vocab_size),
        )  # fmt: skip
        empty_cache()
        side = clocked(trainer, tokens_of(bins, per_step), WARM_UP)
    kept = "recomputed" if checkpointing else "kept"
    return f"TRL + Liger, {per_pass * LENGTH} tokens a pass, {kept}{', flex' if 'f' in case else ''}", side


def tokens_of(bins: list[list[Any]], per_step: int) -> list[int]:
    """Real tokens of each step."""
    return [sum(len(row) for rows in bins[at : at + per_step] for row in rows) for at in range(0, len(bins), per_step)]


def vocabulary_of(model: Path) -> int:
    """How many tokens the model in the folder knows."""
    return json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]


def packed(rows: list[Any], *, with_lengths: bool = False) -> dict[str, list[int]]:
    """A bin as transformers' trainers take it; with the rows' lengths they keep the rows from seeing each other."""
    entry = {
        "input_ids": [int(number) for row in rows for number in row.ids],
        "labels": [label for row in rows for label in train_rows.labels_of(row)],
    }
    return entry | ({"seq_lengths": [len(row) for row in rows]} if with_lengths else {})


def plain_tokenizer(vocabulary: int) -> Any:
    """Something to pad with: the rows are ids already."""
    import transformers
    from tokenizers import Tokenizer, models

    words = models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token="0")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="0", eos_token="1")


def use_fastest_attention(heads: int, size: int) -> str:
    """Let `scaled_dot_product_attention` use what is fastest on this GPU at this shape, flash or cuDNN; says which."""
    import torch

    if device() == "cpu":
        return "the processor's"
    shape = (4, heads, LENGTH, size)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    def choose(name: str) -> None:
        torch.backends.cuda.enable_flash_sdp(name == "flash")
        torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")

    seconds = {}
    for name in ("flash", "cudnn"):
        choose(name)
        seconds[name] = seconds_of(attend)
    best = min(seconds, key=lambda name: seconds[name])
    choose(best)
    return f"{best} ({', '.join(f'{name} {value * 1e3:.2f} ms' for name, value in seconds.items())} both ways)"


def seconds_of(work: Any, repeats: int = 10) -> float:
    """Mean seconds of a call on the GPU, after three that are not counted."""
    import torch

    for _ in range(3):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def matrix_flops() -> float:
    """FLOP/s of one large bf16 product, random numbers: what this card gives at its best."""
    import torch

    if device() == "cpu":
        return 1e11
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds_of(lambda: a @ b)


def main() -> None:
    """Run the asked cases; a case that does not fit, or breaks, is told as such and the next one runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=("train.py", "trl", "unsloth"), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--methods", required=True)
    parser.add_argument("--cases", default="plan")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--mixed", action="store_true")
    arguments = parser.parse_args()
    if arguments.side == "unsloth":
        import unsloth  # noqa: F401 (it must come before transformers)
    import torch

    if device() == "cpu" and arguments.shape != "tiny":
        raise SystemExit("this benchmark needs an NVIDIA GPU, and this machine has none: --shape tiny tries it out")
    make_model(arguments.model, arguments.shape, arguments.layers)
    sizes = SHAPES[arguments.shape]
    bins = make_bins(arguments.steps * arguments.rows, sizes["vocab_size"], mixed=arguments.mixed)
    name = torch.cuda.get_device_name() if device() == "cuda" else "CPU"
    tell({"device": name, "matrix_flops": matrix_flops()})
    if arguments.side != "train.py":
        heads = sizes["num_attention_heads"]
        print("attention:", use_fastest_attention(heads, sizes["hidden_size"] // heads), flush=True)
    for method in arguments.methods.split(","):
        for case in arguments.cases.split(","):
            result: dict[str, Any] = {"method": method, "name": f"{arguments.side} {case}"}
            try:
                result["name"], side = run_case(arguments, method, case, bins)
                result["side"] = asdict(side)
            except Exception as error:  # noqa: BLE001 (the other cases are still worth their time)
                result["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
            tell(result)
            empty_cache()


def tell(result: dict[str, Any]) -> None:
    """Hand a result to train_gpu.py."""
    print(RESULT + json.dumps(result), flush=True)


def run_case(arguments: argparse.Namespace, method: str, case: str, bins: list[list[Any]]) -> tuple[str, Side]:
    """One trained case: (what it is called, what it reached)."""
    per_step = arguments.rows
    if arguments.side == "train.py":
        steps = [[row for rows in bins[at : at + per_step] for row in rows] for at in range(0, len(bins), per_step)]
        return ours(arguments.model, method, steps)
    if arguments.side == "trl":
        return trl(arguments.model, method, bins, per_step, case)
    if arguments.mixed:
        raise SystemExit("Unsloth has no side with --mixed: compare it on whole rows")
    from gpu_unsloth import unsloth

    return unsloth(arguments.model, method, bins, per_step, case)


if __name__ == "__main__":
    main()
