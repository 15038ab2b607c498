"""Every kind of model that is let through is trained and served as transformers computes it.

Rows end to end have the losses and gradients of each row alone (a leak from one into the next would pass without an
error), and an answer decoded token by token has the log-probabilities of one pass over all of it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from test_decoders import decoded, decoder_of, reference
from test_train_parts import load, rows_of
from tiny_jobs import ROWS, run_job, write_job
from tiny_models import make_tokenizer
from torch.nn import functional

import parity
from decoders import Row
from generation import answer_logprobs
from memory import Shape
from supported import obstacle

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SHAPE = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 512,
}  # fmt: skip
SHAPE_T5 = {
    "vocab_size": 384, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
WINDOW = {"sliding_window": 8}  # shorter than the rows


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


# Kind, and what a model of it may have. As many kinds as transformers has that supported.py lets through.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    kind: (kind, {})
    for kind in (
        "apertus", "arcee", "biogpt", "bitnet", "cohere", "diffllama", "ernie4_5", "gemma", "glm", "glm4", "gpt_neox",
        "helium", "hrm_text", "hunyuan_v1_dense", "hyperclovax", "jais2", "llama", "ministral3", "mt5",
        "nanochat", "nemotron", "olmo", "olmo2", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3",
        "stablelm", "starcoder2", "t5",
    )
} | {
    "cohere2": ("cohere2", WINDOW),
    "cwm": ("cwm", WINDOW),
    "exaone4": ("exaone4", WINDOW | TWO_KINDS),
    "gemma2, caps": ("gemma2", WINDOW | {"query_pre_attn_scalar": 16}),
    "gemma2, no caps": ("gemma2", WINDOW | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("gemma3_text", WINDOW | {"query_pre_attn_scalar": 16}),
    "gemma4": (
        "gemma4_text",  # its layers' heads differ
        WINDOW | TWO_KINDS | {"global_head_dim": 32, "hidden_size_per_layer_input": 0, "intermediate_size": 768},
    ),
    "granite": ("granite", {"logits_scaling": 3.0, "attention_multiplier": 0.1}),
    "granite_swa, sinks": ("granite_swa", WINDOW),
    "granite_swa, sinks in full layers": ("granite_swa", {"layer_types": ["full_attention"] * 2}),
    "llama, all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, dynamic": ("llama", rope("dynamic", factor=2.0)),
    "llama, gelu": ("llama", {"hidden_act": "gelu"}),
    "llama, half turned": ("llama", rope("default", partial_rotary_factor=0.5)),
    "llama, linear": ("llama", rope("linear", factor=2.0)),
    "llama, one key head": ("llama", {"num_key_value_heads": 1}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, wide heads": ("llama", {"head_dim": 32}),
    "llama, yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "minicpm3": ("minicpm3", LATENT | {"dim_model_base": 32}),
    "ministral": ("ministral", WINDOW),
    "mistral": ("mistral", WINDOW),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": 8}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.5}),
    "olmo3": ("olmo3", WINDOW),
    "qwen2, window": ("qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "t5, gated, untied": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "vaultgemma": ("vaultgemma", WINDOW | {"query_pre_attn_scalar": 16}),
    "youtu": ("youtu", LATENT),
}  # fmt: skip


def make(name: str, folder: Path) -> None:
    """A model with weights large enough for a cap, a window or another row to show."""
    kind, values = MODELS[name]
    known = transformers.CONFIG_MAPPING[kind]
    shape = SHAPE_T5 if kind in ("t5", "mt5") else {key: value for key, value in SHAPE.items() if hasattr(known, key)}
    config = transformers.AutoConfig.for_model(kind, **{**shape, **values})
    loader = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    network = enlarged(loader.from_config(config))
    assert not obstacle(network.config.to_dict())
    network.to(torch.bfloat16).save_pretrained(folder)


@torch.no_grad()
def enlarged(network: Any) -> Any:
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=1.3 * parameter.shape[1] ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def read(folder: Path, seq2seq: bool) -> Any:
    loader = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    return loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def alone(network: Any, row: Any) -> torch.Tensor:
    """Losses of one row as transformers computes it."""
    ids = torch.from_numpy(row.ids.astype(np.int64))
    if row.source_ids is None:
        logits = network(input_ids=ids[None], use_cache=False).logits[0, :-1]
        trained, ids = row.trained[1:], ids[1:]
    else:
        source = torch.from_numpy(row.source_ids.astype(np.int64))
        start = torch.tensor([network.config.decoder_start_token_id])
        logits = network(input_ids=source[None], decoder_input_ids=torch.cat([start, ids[:-1]])[None]).logits[0]
        trained = row.trained
    return functional.cross_entropy(logits.float(), ids, reduction="none")[torch.from_numpy(trained)]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_trained_and_answers_as_transformers_computes(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    model = load(tmp_path, lora_dropout=0.0, lora_r=4)
    seq2seq = model.family == "seq2seq"
    planned = Shape.from_config(json.loads((tmp_path / "config.json").read_text())).attention
    assert planned.replace("masked", "sdpa") == model.network.config._attn_implementation
    theirs = peft.get_peft_model(read(tmp_path, seq2seq), model.module.peft_config["default"]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    theirs.load_state_dict(model.module.state_dict())
    rows = rows_of([40, 9, 150, 31], [30, 50, 7, 90] if seq2seq else None)
    for row in rows[1:]:  # so that what all begin with is computed once
        row.ids[:8] = rows[0].ids[:8]

    model.network.eval()
    batch = model.batch(rows)
    losses, _ = model.losses(batch)
    losses.mean().backward()
    expected = torch.cat([alone(theirs, row) for row in rows])
    expected.mean().backward()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-3)
    gradients = dict(theirs.named_parameters())
    for parameter_name, parameter in model.named_parameters().items():
        own, other = parameter.grad, gradients[parameter_name].grad
        assert own is not None
        assert other is not None
        assert (own - other).norm() <= 1e-2 * other.norm() + 1e-6, parameter_name

    loader = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    decoder = decoder_of(loader.from_pretrained(tmp_path).eval())
    ids, tokens = rows[3].ids.tolist(), rows[1].ids.tolist()
    answer = reference(read(tmp_path, seq2seq), ids, tokens)
    stepped = decoded(decoder, [Row(ids, 80)], [tokens])[0].log_softmax(-1)
    torch.testing.assert_close(stepped, answer, atol=0.02, rtol=2e-3)
    torch.testing.assert_close(decoder.logprobs(ids, tokens), answer, atol=0.02, rtol=2e-3)
    assert decoder.bytes_per_token > 0


@pytest.mark.parametrize("name", ["gemma2, caps", "gemma4", "granite_swa, sinks", "llama, all biases"])
def test_a_job_ends_in_an_archive_that_answers_as_the_trained_model(name: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    make(name, model)
    make_tokenizer(model)
    job = write_job(tmp_path / "ml", model, ROWS[:12], max_steps=1, evaluation_samples=1, learning_rate=0.001)
    assert run_job(job) == 0
    assert (job / "model" / "manifest.json").is_file()


def test_a_token_that_one_pass_over_the_answer_would_not_choose_leads_nobody() -> None:
    # Beyond 32 tokens this model takes the positions of all of them otherwise.
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 32}
    values = {"original_max_position_embeddings": 32} | rope("longrope", factor=16.0, **factors)
    config = transformers.AutoConfig.for_model("phi3", **{**SHAPE, **values})
    network = enlarged(transformers.AutoModelForCausalLM.from_config(config)).eval()
    ids = rows_of([20])[0].ids.tolist()
    (probe,) = parity.record(network, "causal", [([], ids)], [])
    chosen = answer_logprobs(network, "causal", ids, probe["tokens"]).argmax(-1).tolist()
    is_chosen = [token == choice for token, choice in zip(probe["tokens"], chosen, strict=True)]
    assert [margin >= 0 for margin in probe["margins"]] == is_chosen
    assert not all(is_chosen)
