"""Base models small enough to train in a test: real architectures, random weights, a tokenizer trained on the spot."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = [
    "The quick brown fox answers a question about the weather in the town.",
    "What is the colour of the sky? The colour of the sky is blue.",
    "Thank you for your letter; we will send a new lamp to your house tomorrow.",
] * 20


def _bpe(special_tokens: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[AddedToken(token, special=True) for token in special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def make_tokenizer(folder: Path, template: str | None = CHAT_TEMPLATE) -> None:
    """A byte-level tokenizer with turn markers, as a model folder holds it."""
    _bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def tiny_t5_tokenizer(folder: Path) -> None:
    """A tokenizer that closes every text with </s>, as T5's does."""
    tokenizer = _bpe(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "TokenizersBackend",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@functools.cache
def _made(family: str) -> Path:
    import torch
    import transformers

    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{family}-"))
    torch.manual_seed(0)
    if family == "causal":
        make_tokenizer(folder)
        config = transformers.LlamaConfig(
            vocab_size=384,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        tiny_t5_tokenizer(folder)
        config = transformers.T5Config(
            vocab_size=384,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
        model = transformers.T5ForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def tiny_model(folder: Path, family: str = "causal") -> Path:
    """A complete base model (about 0.2 M weights) in a new folder."""
    shutil.copytree(_made(family), folder, dirs_exist_ok=True)
    return folder
