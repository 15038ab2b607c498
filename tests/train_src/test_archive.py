"""The archive is what was trained, and twelve ways of spoiling it are noticed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, BitsAndBytesConfig

import parity
from failures import TrainingError
from generation import Generator
from llmtuner_kit import archive_checks
from sampling import Sampling
from serve import Server


@pytest.fixture
def archive(finished: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(finished["causal"] / "model", tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    tensors = {name: change(name, tensor).contiguous() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_manifest_names_every_file_with_its_hash(finished: dict[str, Path]) -> None:
    folder = finished["causal"] / "model"
    manifest = json.loads((folder / "manifest.json").read_text())
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == present
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
        assert (folder / name).stat().st_size == entry["bytes"]
    assert manifest["base"]["model_id"] == "tiny-causal"
    assert manifest["dataset_sha256"] == "abc123"
    assert manifest["metrics"]["tuned"]["perplexity"] < manifest["metrics"]["base"]["perplexity"]


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_the_manifest_beside_it_is_the_same_and_one_the_kit_deploys(finished: dict[str, Path], family: str) -> None:
    beside = json.loads((finished[family] / "output" / "data" / "manifest.json").read_text())
    assert beside == json.loads((finished[family] / "model" / "manifest.json").read_text())
    base = beside["base"]
    asked = {"model_id": base["model_id"], "model_revision": base["revision"], "family": family}
    asked |= {"dataset_sha256": beside["dataset_sha256"]}
    assert archive_checks.problems(beside, {"HyperParameters": asked}) == []


def test_nothing_in_it_is_a_pickle(finished: dict[str, Path]) -> None:
    allowed = {".json", ".jinja", ".md", ".py", ".safetensors", ".txt"}
    names = {path.suffix for job in finished.values() for path in (job / "model").rglob("*") if path.is_file()}
    assert names <= allowed


@pytest.mark.parametrize(("family", "loader"), [("causal", AutoModelForCausalLM), ("seq2seq", AutoModelForSeq2SeqLM)])
def test_it_loads_with_from_pretrained_as_bf16(finished: dict[str, Path], family: str, loader: Any) -> None:
    folder = finished[family] / "model"
    assert loader.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.chat_template is not None) == (family == "causal")


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_it_passes_its_own_check_when_loaded_again(finished: dict[str, Path], family: str) -> None:
    assert parity.check(finished[family] / "model")["mean_difference"] <= parity.MEAN_TOLERANCE


# What a GPU has no room for is on the disk here.
SPREAD = {
    "causal": {
        "model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu",
        "model.rotary_emb": "cpu", "lm_head": "cpu",
    },
    "seq2seq": {
        "shared": "cpu", "encoder.embed_tokens": "cpu", "encoder.block.0": "disk", "encoder.block.1": "cpu",
        "encoder.final_layer_norm": "cpu", "encoder.dropout": "cpu", "decoder": "cpu", "lm_head": "cpu",
    },
}  # fmt: skip


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_an_archive_larger_than_the_gpu_is_checked_all_the_same(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    import generation

    monkeypatch.setattr(generation, "_device_map", lambda *_, **__: SPREAD[family])
    shutil.copytree(finished[family] / "model", tmp_path / "model")
    whole = Generator(tmp_path / "model", may_spread=True)
    assert any(parameter.is_meta for parameter in whole.decoder.model.parameters())  # type: ignore[attr-defined]
    assert parity.check(tmp_path / "model", whole)["mean_difference"] <= parity.MEAN_TOLERANCE
    change_weights(tmp_path / "model" / "model.safetensors", lambda _, tensor: tensor * 1.2)
    with pytest.raises(parity.ParityError, match="differ"):
        parity.check(tmp_path / "model")


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_taking_the_adapter_away_gives_the_base_models_answers(
    finished: dict[str, Path], models: dict[str, Path], family: str
) -> None:
    tuned, untouched = Generator(finished[family] / "model"), Generator(models[family])
    ids = tuned.prompt_ids([{"role": "user", "content": "What is the colour of thing 3?"}])
    sampling = Sampling(max_new_tokens=6)
    base = [(piece.token_id, piece.logprob) for piece in tuned.stream(ids, sampling, "base")]
    reference = [(piece.token_id, piece.logprob) for piece in untouched.stream(ids, sampling)]
    own = [piece.token_id for piece in tuned.stream(ids, sampling)]
    assert base[0][1] == pytest.approx(reference[0][1], abs=0.05)
    assert own != [token for token, _ in reference]


def wrong_eos(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[5])
    edit(folder / "tokenizer_config.json", eos_token="!")


def missing_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>bot"))


def template_with_a_system_turn(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text("<|im_start|>system\nBe nice<|im_end|>\n" + path.read_text())


def base_weights_without_adapter(folder: Path) -> None:
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]

    def subtract(name: str, tensor: torch.Tensor) -> torch.Tensor:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" not in adapter:
            return tensor
        delta = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
        return (tensor.float() - scale * delta).to(tensor.dtype)

    change_weights(folder / "model.safetensors", subtract)


def adapter_merged_twice(folder: Path) -> None:
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")

    def add(name: str, tensor: torch.Tensor) -> torch.Tensor:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" not in adapter:
            return tensor
        delta = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
        return (tensor.float() + 2 * delta).to(tensor.dtype)

    change_weights(folder / "model.safetensors", add)


def merged_into_another_base(folder: Path) -> None:
    torch.manual_seed(1)
    change_weights(folder / "model.safetensors", lambda _, t: (t.float() + 0.02 * torch.randn(t.shape)).to(t.dtype))


def saved_as_fp16(folder: Path) -> None:
    change_weights(folder / "model.safetensors", lambda _, tensor: tensor.half())
    edit(folder / "config.json", dtype="float16")


def vocabulary_shifted(folder: Path) -> None:
    change_weights(folder / "model.safetensors", lambda name, t: t.roll(1, 0) if "embed_tokens" in name else t)


def weights_with_a_nan(folder: Path) -> None:
    change_weights(folder / "model.safetensors", lambda name, t: t.fill_(float("nan")) if "norm" in name else t)


def missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][::2]
    path.write_text(json.dumps(tokenizer))


FAULTS = [
    wrong_eos,
    missing_template,
    other_template,
    template_with_a_system_turn,
    base_weights_without_adapter,
    adapter_merged_twice,
    merged_into_another_base,
    saved_as_fp16,
    vocabulary_shifted,
    weights_with_a_nan,
    missing_tokenizer,
    other_tokenizer,
]


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(archive: Path, spoil: Callable[[Path], None]) -> None:
    parity.check(archive)
    spoil(archive)
    with pytest.raises((parity.ParityError, OSError, ValueError, KeyError)):
        parity.check(archive)


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_keeps_the_endpoint_out_of_service(archive: Path, spoil: Callable[[Path], None]) -> None:
    spoil(archive)
    server = Server(archive)
    with pytest.raises((parity.ParityError, OSError, ValueError, KeyError)):
        server.load()
    assert server.failure
    assert server.scheduler is None


def test_an_endpoint_that_would_stop_earlier_than_training_is_caught(archive: Path) -> None:
    path = archive / "generation_config.json"
    edit(path, eos_token_id=[*json.loads(path.read_text())["eos_token_id"], 40])
    with pytest.raises(parity.ParityError, match="stop tokens are"):
        parity.check(archive)


def test_an_archive_without_its_probes_is_not_served(archive: Path) -> None:
    (archive / "parity.json").unlink()
    server = Server(archive)
    with pytest.raises(FileNotFoundError):
        server.load()
    assert "parity.json" in server.failure


# PEFT asks models for a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("spoil", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_ends_the_job_without_an_archive(
    finished: dict[str, Path],
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
) -> None:
    """The fault comes between writing and checking, where a wrong merge or a half-written file would."""
    import archive

    trained = finished["causal"] / "model"
    base = AutoModelForCausalLM.from_pretrained(models["causal"], dtype=torch.float32)
    config = peft.LoraConfig.from_pretrained(str(trained / "adapter"))
    config.base_model_name_or_path = str(models["causal"])
    model = peft.PeftModel.from_pretrained(base, str(trained / "adapter"), config=config)
    tokenizer = AutoTokenizer.from_pretrained(models["causal"])
    stop_ids = json.loads((trained / "parity.json").read_text())["stop_ids"]
    check = parity.check

    def spoiled(folder: Path) -> dict[str, float]:
        # The trainer's weights have given their room to those that are loaded now.
        assert not any(parameter.numel() for parameter in model.parameters())
        spoil(folder)
        return check(folder)

    monkeypatch.setattr(parity, "check", spoiled)
    with pytest.raises((TrainingError, OSError, ValueError, KeyError)):
        archive.write_archive(
            tmp_path / "model",
            model=model,
            tokenizer=tokenizer,
            base_info={"model_id": "m", "revision": "1", "family": "causal"},
            hyperparameters={"method": "lora", "learning_rate": 0.01, "seed": 1},
            metrics={"steps": 1, "tokens": 1},
            dataset_sha256="",
            stop_ids=stop_ids,
            probes=[[{"role": "user", "content": "What is the colour of thing 3?"}]],
        )
    assert not (tmp_path / "model" / "manifest.json").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_trained_on_four_bits_is_merged_into_the_weights_it_was_trained_on(models: dict[str, Path]) -> None:
    import archive

    def log_probabilities(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=torch.arange(5, 25)[None]).logits.float().log_softmax(-1)  # type: ignore[no-any-return]

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(
        models["causal"], dtype=torch.bfloat16, quantization_config=four_bits, device_map={"": "cpu"}
    )
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Where the CPU has bf16 they would be laid out anew when they are first multiplied, which no GPU does.
            module.support_avx512bf16_for_cpu = False
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    trained = log_probabilities(model)
    merged = archive._merge(model)
    assert {type(module) for name, module in merged.named_modules() if name.endswith("_proj")} == {torch.nn.Linear}
    torch.testing.assert_close(log_probabilities(merged), trained, atol=0.02, rtol=0)
    assert "quantization_config" not in merged.config.to_dict()


def test_a_job_whose_archive_fails_the_check_fails_with_the_differences(
    make_job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_jobs import run_job

    import archive

    honest = archive._merge

    def forgetful(model: Any) -> Any:
        for layer in model.modules():
            if isinstance(layer, peft.tuners.lora.Linear):
                layer.scaling["default"] = 0.0
        return honest(model)

    monkeypatch.setattr(archive, "_merge", forgetful)
    base = make_job(epochs=3)
    assert run_job(base) == 1
    assert (base / "output" / "failure").read_text().startswith("the archive does not answer as the trained model")
    assert not (base / "model" / "manifest.json").exists()
