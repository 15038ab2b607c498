"""Rows of a batch: each has the answer it would have alone, from the same model that transformers computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from adapters import AdapterError, read_adapter
from decoders import Decoder, ModuleDecoder, Row, layer_shapes
from linears import WIDE_ROWS, Linear, row_counts
from llama import LlamaDecoder, is_llama_like
from t5 import T5Decoder

# PEFT asks models for a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama3": lambda: transformers.LlamaConfig(
        **SHAPE,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    ),
    "t5": lambda: transformers.T5Config(
        vocab_size=320, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
    "mt5": lambda: transformers.MT5Config(
        vocab_size=320, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
}


def make(name: str) -> Any:
    """A bf16 model with weights large enough that answers depend on them."""
    torch.manual_seed(3)
    config = CONFIGS[name]()
    loader = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = loader.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.to(torch.bfloat16).eval()


def decoder_of(model: Any) -> Decoder:
    if model.config.is_encoder_decoder:
        return T5Decoder(model)
    return LlamaDecoder(model, 1024) if is_llama_like(model.config) else ModuleDecoder(model)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(2, 320, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference(model: Any, prompt_ids: list[int], tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of transformers in fp32."""
    with torch.inference_mode():
        model = model.float()
        if model.config.is_encoder_decoder:
            start = model.config.decoder_start_token_id
            logits = model(
                input_ids=torch.tensor([prompt_ids]), decoder_input_ids=torch.tensor([[start, *tokens[:-1]]])
            ).logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*prompt_ids, *tokens[:-1]]])).logits[0, len(prompt_ids) - 1 :]
    return logits.log_softmax(-1)


def decoded(decoder: Decoder, rows: list[Row], tokens: list[list[int]]) -> torch.Tensor:
    """(rows, tokens, vocabulary) logits of rows that move together."""
    logits = []
    for row in rows:
        found = None
        while found is None:
            found = decoder.prefill(row)
        logits.append(found)
    steps = [torch.stack(logits)]
    for place in range(len(tokens[0]) - 1):
        steps.append(decoder.step(rows, [each[place] for each in tokens]))
    return torch.stack(steps, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_decoder_computes_what_transformers_does(name: str) -> None:
    decoder, ids, tokens = decoder_of(make(name)), prompt(20), prompt(6, 1)
    expected = reference(make(name), ids, tokens)
    torch.testing.assert_close(decoder.logprobs(ids, tokens), expected, atol=2e-3, rtol=0)
    stepped = decoded(decoder, [Row(ids, 40)], [tokens])[0].log_softmax(-1)
    torch.testing.assert_close(stepped, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_long_prompt_is_read_in_parts(name: str) -> None:
    decoder = decoder_of(make(name))
    ids, tokens = prompt(decoder.block + 77), prompt(4, 1)
    row = Row(ids, 400)
    assert decoder.prefill(row) is None
    stepped = decoded(decoder, [row], [tokens])[0].log_softmax(-1)
    torch.testing.assert_close(stepped, reference(make(name), ids, tokens), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_has_the_same_bits_in_any_company(name: str) -> None:
    decoder = decoder_of(make(name))
    tokens = [prompt(5, 90 + number) for number in range(7)]

    def rows() -> list[Row]:
        return [Row(prompt(5 + 9 * number, number), 120) for number in range(7)]

    together = decoded(decoder, rows(), tokens)
    for number, row in enumerate(rows()):
        assert torch.equal(decoded(decoder, [row], tokens[number : number + 1])[0], together[number])


def test_every_number_of_rows_multiplies_alike() -> None:
    linear = Linear(torch.randn(96, 1536).to(torch.bfloat16))
    assert linear.is_packed
    x = torch.randn(len(row_counts()) - 1, 1536)
    alone = torch.cat([linear(row[None]) for row in x])
    for count in range(1, len(x) + 1):
        assert torch.equal(linear(x[:count]), alone[:count])


def test_many_rows_are_multiplied_by_the_same_weight_in_fp32() -> None:
    weight, bias, x = torch.randn(96, 64).to(torch.bfloat16), torch.randn(96), torch.randn(WIDE_ROWS, 64)
    found = Linear(weight, bias, keeps_plain=True)(x)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight.float(), bias), atol=1e-5, rtol=1e-5)


@pytest.fixture
def save_adapter(tmp_path: Path) -> Callable[..., Path]:
    """A PEFT folder with random weights, and the merged model it belongs to."""

    def save(name: str, folder: str, **options: Any) -> Path:
        torch.manual_seed(sum(map(ord, folder)))
        task = "SEQ_2_SEQ_LM" if CONFIGS[name]().is_encoder_decoder else "CAUSAL_LM"
        config = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type=task, **options)
        model = peft.get_peft_model(make(name).float(), config)
        for layer, parameter in model.named_parameters():
            if "lora_B" in layer:
                parameter.data.normal_(std=0.05)
        model.save_pretrained(str(tmp_path / folder))
        model.merge_and_unload().save_pretrained(tmp_path / f"{folder}-merged")
        return tmp_path / folder

    return save


@pytest.mark.parametrize(
    ("name", "length"), [("llama", 12), ("llama", WIDE_ROWS), ("qwen3", 12), ("gpt_neox", 12), ("t5", 12)]
)
def test_rows_of_several_adapters_share_a_batch(name: str, length: int, save_adapter: Callable[..., Path]) -> None:
    folders = [save_adapter(name, "one"), save_adapter(name, "two", use_rslora=True)]
    decoder, ids, tokens = decoder_of(make(name)), prompt(length), prompt(4, 1)
    one, two = (decoder.bind(folder.name, read_adapter(folder, decoder.shapes)) for folder in folders)
    wanted = [(), ((one, 1.0),), ((two, 1.0),), ((one, 1.0), (one, -1.0))]
    found = decoded(decoder, [Row(ids, length + 8, shares) for shares in wanted], [tokens] * 4).log_softmax(-1)
    plain = reference(make(name), ids, tokens)
    loader = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
    for row, folder in enumerate(folders, 1):
        merged = loader.from_pretrained(folder.with_name(f"{folder.name}-merged"), dtype=torch.float32)
        expected = reference(merged, ids, tokens)
        torch.testing.assert_close(found[row], expected, atol=5e-3, rtol=0)
        assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(found[0], plain, atol=5e-3, rtol=0)
    torch.testing.assert_close(found[3], plain, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_row_has_the_same_bits_beside_an_adapter(name: str, save_adapter: Callable[..., Path]) -> None:
    decoder, tokens = decoder_of(make(name)), [prompt(5, number) for number in range(3)]
    adapter = decoder.bind("one", read_adapter(save_adapter(name, "one"), decoder.shapes))
    alone = decoded(decoder, [Row(prompt(9), 20)], tokens[:1])[0]
    beside = decoded(decoder, [Row(prompt(9), 20), *(Row(prompt(9), 20, ((adapter, 1.0),)) for _ in "ab")], tokens)
    assert torch.equal(beside[0], alone)
    assert not torch.equal(decoded(decoder, [Row(prompt(9), 20, ((adapter, 1.0),))], tokens[:1])[0], alone)


def test_an_adapter_of_another_kind_or_base_is_refused(save_adapter: Callable[..., Path], tmp_path: Path) -> None:
    shapes = layer_shapes(make("llama"))
    with pytest.raises(AdapterError, match=r"needs adapter_config\.json and adapter_model\.safetensors"):
        read_adapter(tmp_path, shapes)
    with pytest.raises(AdapterError, match="DORA, only plain LoRA"):
        read_adapter(save_adapter("llama", "dora", use_dora=True), shapes)
    with pytest.raises(AdapterError, match="tuned from another base"):
        read_adapter(save_adapter("gpt_neox", "other"), shapes)


def test_a_model_without_room_on_its_gpu_is_refused_by_servers_and_spread_for_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import generation

    free = 14_000_000_000
    for name, found in (("is_available", True), ("mem_get_info", (free, 2 * free)), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    fitting = free - generation.WORKING_BYTES
    assert generation._device_map(fitting, may_spread=False) == {"": torch.device("cuda", 0)}
    assert generation._device_map(fitting + 1, may_spread=True) == "auto"
    with pytest.raises(
        MemoryError, match=r"take 13\.0 GB, and 14\.0 GB of this GPU are free: use an instance with a larger"
    ):
        generation._device_map(fitting + 1, may_spread=False)
