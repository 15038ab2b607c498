"""Models this code cannot train are refused from their config.json, and those it can train are let through."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_jobs import JobMaker, run_job

import base as base_module
import supported
from base import Base
from failures import TrainingError
from memory import Shape
from structure import check_structure
from supported import DESCRIPTION, obstacle

SMALL = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
SMALL_T5 = {
    "vocab_size": 384, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip


def config_of(kind: str, **values: Any) -> dict[str, Any]:
    """What a model of transformers' own class has in its config.json."""
    config = transformers.AutoConfig.for_model(kind, **values).to_dict()
    known = transformers.models.auto.modeling_auto
    mapping = {**known.MODEL_MAPPING_NAMES, **known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    return {**config, "architectures": [mapping[kind]]}


@pytest.mark.parametrize(
    "kind",
    ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite", "olmo2", "smollm3"],
)
def test_decoders_built_like_llama_are_let_through(kind: str, tmp_path: Path) -> None:
    config = config_of(kind, **SMALL)
    assert not obstacle(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_structure(Base(tmp_path, "acme/model", "1", config), "auto")


def test_every_type_that_transformers_knows_is_known() -> None:
    types = set(transformers.CONFIG_MAPPING) - {"gpt-sw3"}  # GPT-2's sizes, which are refused
    kinds = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert len(types & set(kinds)) > 100
    assert types & set(kinds) <= supported._known_types()


@pytest.mark.parametrize("map_of", ["AutoConfig", "AutoModelForCausalLM"])
def test_code_beside_a_model_of_a_known_type_is_passed_over(map_of: str, tmp_path: Path) -> None:
    config = {**config_of("llama", **SMALL), "auto_map": {map_of: "modeling_own.Own"}}
    assert not obstacle(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_own.py").write_text("raise AssertionError('run')")
    check_structure(Base(tmp_path, "acme/model", "1", config), "auto")


def test_a_model_that_needs_code_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**config_of("llama", **SMALL), "model_type": "internlm2"}
    assert obstacle(config).startswith("it is of type 'internlm2', which the installed transformers does not know: put")
    mapped = {**config, "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"}}
    assert "brings code of its own (auto_map), which is not run: take the model as converted" in obstacle(mapped)
    # Without transformers the job is left to say it.
    supported._known_types.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert not obstacle(mapped)
    supported._known_types.cache_clear()


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_encoder_decoders_of_t5s_family_are_let_through(kind: str, tmp_path: Path) -> None:
    config = config_of(kind, **SMALL_T5)
    assert not obstacle(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_structure(Base(tmp_path, "acme/model", "1", config), "auto")


@pytest.mark.parametrize("kind", ["cohere2", "gemma2", "llama", "qwen3", "smollm3", "starcoder2"])
def test_weights_are_counted_once_where_a_kind_ties_them_without_saying_so(kind: str) -> None:
    config = config_of(kind, **SMALL)
    config.pop("tie_word_embeddings")
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **SMALL))
    assert len({id(network.get_output_embeddings().weight), id(network.get_input_embeddings().weight)}) == (
        1 if Shape.from_config(config).tied else 2
    )


def test_an_early_t5_that_does_not_count_its_decoder_layers_is_let_through(tmp_path: Path) -> None:
    config = config_of("t5", **SMALL_T5)
    del config["num_decoder_layers"]
    assert not obstacle(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_structure(Base(tmp_path, "acme/model", "1", config), "auto")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("umt5", "it is an encoder-decoder of type 'umt5'"),
        ("bart", "it is an encoder-decoder of type 'bart'"),
        ("longt5", "it is an encoder-decoder of type 'longt5'"),
        ("switch_transformers", "it is an encoder-decoder of type 'switch_transformers'"),
        ("t5", r"its config.json \(type 't5'\) gives no number for decoder_start_token_id"),
        ("gpt2", r"its config.json \(type 'gpt2'\) gives no number for hidden_size"),
        ("opt", r"its config.json \(type 'opt'\) gives no number for intermediate_size"),
        ("gemma3n_text", r"its config.json \(type 'gemma3n_text'\) gives no number for intermediate_size"),
        ("bert", "it is of type 'bert', an encoder: it reads a text in both directions"),
        ("roberta", "it is of type 'roberta', an encoder: it reads a text in both directions"),
        ("mixtral", r"with 8 experts in each layer \(num_local_experts\)"),
        ("qwen3_moe", "experts in each layer"),
        ("deepseek_v3", "experts in each layer"),
        ("mamba", r"layers that are no attention \(state_size\)"),
        ("falcon_h1", r"layers that are no attention \(mamba_"),
        ("jamba", r"layers that are no attention \(mamba_"),
        ("recurrent_gemma", r"layers that are no attention \(lru_width\)"),
        ("qwen3_next", "layers that are no attention"),
        ("lfm2", r"layers that are no attention \(conv_"),
        ("gemma3", r"reads more than text"),
    ],
)
def test_models_built_otherwise_are_refused_with_what_stands_in_the_way(kind: str, reason: str) -> None:
    assert re.search(reason, obstacle(config_of(kind)))


def test_weights_that_are_quantised_already_are_refused() -> None:
    config = {**config_of("llama", **SMALL), "quantization_config": {"quant_method": "gptq"}}
    assert "quantised already (gptq), take the original" in obstacle(config)


def test_a_decoder_with_another_head_is_refused() -> None:
    config = {**config_of("llama", **SMALL), "architectures": ["LlamaForSequenceClassification"]}
    assert obstacle(config) == "it is a LlamaForSequenceClassification, which is no decoder"


def test_a_model_with_more_weights_than_its_sizes_say_is_refused(tmp_path: Path) -> None:
    config = config_of("llama", **SMALL)
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 512}))
    with pytest.raises(TrainingError, match=r"it has 1\d\d,\d\d\d weights, a model of its sizes"):
        check_structure(Base(tmp_path, "acme/model", "1", config), "auto")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "umt5"}, "tiny cannot be trained: it is an encoder-decoder of type 'umt5'"),
        (
            {"model_type": "unheard-of"},
            "tiny cannot be trained: it is of type 'unheard-of', which the installed transformers does not",
        ),
    ],
)
def test_a_job_with_such_a_model_ends_before_its_weights_are_touched(
    make_job: JobMaker, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    job = make_job(model_id="tiny", kind="seq2seq" if changes["model_type"] == "umt5" else "causal")
    channel = job / "input" / "data" / "model"
    model = shutil.copytree(channel.resolve(), tmp_path / "model")
    channel.unlink()
    channel.symlink_to(model)
    (model / "model.safetensors").write_bytes(b"never read")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))
    assert run_job(job) == 1
    assert reason in (job / "output" / "failure").read_text()


def test_a_model_of_the_hub_is_refused_before_its_weights_are_fetched(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = make_job(model_id="acme/bart")
    (job / "input" / "data" / "model").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config_of("bart")))
    fetched: list[tuple[str, ...]] = []

    def download(_model: str, _revision: str, patterns: tuple[str, ...]) -> Path:
        fetched.append(patterns)
        return tmp_path

    monkeypatch.setattr(base_module, "_download", download)
    assert run_job(job) == 1
    assert fetched == [DESCRIPTION]
    assert (job / "output" / "failure").read_text().startswith("acme/bart cannot be trained")


def test_checking_the_structure_allocates_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("llama", **{**SMALL, "vocab_size": 2_000_000, "hidden_size": 8192, "num_hidden_layers": 80})
    (tmp_path / "config.json").write_text(json.dumps(config))
    made: list[torch.device] = []
    init = torch.nn.Linear.__init__

    def remembering(self: torch.nn.Linear, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        made.append(self.weight.device)

    monkeypatch.setattr(torch.nn.Linear, "__init__", remembering)
    check_structure(Base(tmp_path, "acme/model", "1", config), "auto")
    assert set(made) == {torch.device("meta")}
