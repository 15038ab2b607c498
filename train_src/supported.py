"""Which base models this code can train, decided from config.json alone, before torch or any weight is loaded.

Whoever asks before a job is started reads this same file.

Decoders of text with attention in every layer and one feed-forward block each (Llama and what is built like it), and
T5's family of encoder-decoders. Everything else would fail late, or worse: train on something else than was asked for
(recurrent layers carry state from one packed row into the next, expert layers would get no adapter). Code that comes
with a model is never run: its type must be one of transformers' own.
"""

import functools
import importlib.util
import runpy
from pathlib import Path
from typing import Any

# What a job reads of a model besides its weights, and where a model of several weight files lists them.
DESCRIPTION = ("*.json", "*.jinja", "tokenizer.model")
INDEX = "model.safetensors.index.json"
SUPPORTED = (
    "supported are text decoders built like Llama (Llama, Mistral, Qwen2 and 3, Gemma, Phi-3, SmolLM and others) and "
    "encoder-decoders of T5's family (T5, FLAN-T5, mT5)"
)
LONGEST_UNKNOWN = 2048  # tokens of a row of a model that does not say what it can read
T5_FAMILY = ("t5", "mt5")
T5_SIZES = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size", "decoder_start_token_id")
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
RECURRENT = ("conv_", "mamba_", "ssm_", "lru_", "rwkv", "linear_attn", "linear_num_", "linear_conv", "state_size")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
OTHER_SENSES = ("vision_config", "audio_config", "image_token_id")


def weight_files(index: dict[str, Any]) -> list[str]:
    """The files that transformers will read, by INDEX's content; some models have all weights a second time beside them."""
    return sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]


def longest_row(config: dict[str, Any]) -> int:
    """Tokens that the model can read."""
    text = config.get("text_config") or config
    known = [text.get(name) for name in ("max_position_embeddings", "n_positions", "max_sequence_length")]
    return min([value for value in known if value] or [LONGEST_UNKNOWN])


def obstacle(config: dict[str, Any]) -> str:
    """What stands in the way of training this model; empty when nothing does."""
    kind = config.get("model_type", "")
    if config.get("quantization_config"):
        scheme = config["quantization_config"].get("quant_method", "some way")
        return f"its weights are quantised already ({scheme}), take the original (method qlora quantises by itself)"
    if config.get("is_encoder_decoder"):
        return _missing(config, T5_SIZES) if kind in T5_FAMILY else f"it is an encoder-decoder of type {kind!r}"
    if "type_vocab_size" in config:
        return f"it is of type {kind!r}, an encoder: it reads a text in both directions"
    senses = [name for name in OTHER_SENSES if config.get(name)]
    if senses:
        return f"it is of type {kind!r}, which reads more than text ({senses[0]})"
    state = next((name for name in config if name.startswith(RECURRENT)), None)
    other = sorted(set(config.get("layer_types") or ()) - ATTENTION_LAYERS)
    if state or other:
        return f"it is of type {kind!r} with layers that are no attention ({state or ', '.join(other)})"
    experts = next((name for name in EXPERTS if (config.get(name) or 0) > 1), None)
    if experts:
        return f"it is of type {kind!r} with {config[experts]} experts in each layer ({experts})"
    if missing := _missing(config, SIZES):
        return missing
    architecture = (config.get("architectures") or [""])[0]
    if architecture and not architecture.endswith("ForCausalLM"):
        return f"it is a {architecture}, which is no decoder"
    return _unknown(config)


def _unknown(config: dict[str, Any]) -> str:
    """A known type is built by transformers' own code, whatever code comes with the model (auto_map)."""
    kind, known = config.get("model_type", ""), _known_types()
    if not known or kind in known:
        return ""
    if config.get("auto_map"):
        return (
            f"it is of type {kind!r}, which transformers does not know, and brings code of its own (auto_map), which is "
            "not run: take the model as converted to a type that transformers knows, often named -hf or -llama"
        )
    return (
        f"it is of type {kind!r}, which the installed transformers does not know: put model_type right in its "
        "config.json, or update transformers where a newer one knows it"
    )


@functools.cache
def _known_types() -> frozenset[str]:
    """Every model_type of the installed transformers; none where it cannot be asked.

    The list is read from its file alone: to import transformers, which loads torch, would take seconds.
    """
    spec = importlib.util.find_spec("transformers")
    listing = Path(spec.origin).parent / "models" / "auto" / "auto_mappings.py" if spec and spec.origin else None
    if listing is None or not listing.is_file():
        return frozenset()
    return frozenset(runpy.run_path(str(listing)).get("CONFIG_MAPPING_NAMES", ()))


def _missing(config: dict[str, Any], names: tuple[str, ...]) -> str:
    # Gemma 3n has a list of feed-forward sizes.
    absent = [name for name in names if not isinstance(config.get(name), int)]
    kind = config.get("model_type", "")
    return f"its config.json (type {kind!r}) gives no number for {', '.join(absent)}" if absent else ""
