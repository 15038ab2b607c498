"""The model archive: what a training job leaves in /opt/ml/model, and the check that it is what was trained.

At the root a Hugging Face model with the adapter merged in (bf16 safetensors), tokenizer, chat template and generation
settings; `adapter/` as PEFT saves it; `code/` with the server; evaluation.json, parity.json, README.md; manifest.json
last, with the SHA-256 of every file. Nothing in it is a pickle.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer

import attention
import parity
from encoding import Encoder
from failures import TrainingError
from generation import context_length, has_gpu_room
from lora_linear import dense, is_four_bit

CODE = (
    "serve.py",
    "inference.py",
    "protocol.py",
    "batching.py",
    "generation.py",
    "decoders.py",
    "llama.py",
    "llama_layer.py",
    "t5.py",
    "linears.py",
    "threads.py",
    "adapters.py",
    "sampling.py",
    "textstream.py",
    "parity.py",
    "prefixes.py",
    "encoding.py",
    "chat_template.py",
    "conversations.py",
    "requirements.txt",
)
FORMAT = 1


def write_archive(
    model_dir: Path,
    *,
    model: Any,
    tokenizer: Any,
    base_info: dict[str, str],
    hyperparameters: dict[str, Any],
    metrics: dict[str, Any],
    dataset_sha256: str,
    stop_ids: Sequence[int],
    probes: Sequence[list[dict[str, str]]],
    evaluation: dict[str, Any] | None = None,
    recorded: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the archive of a trained PEFT model (or plain one) and check it. Returns the manifest.

    `recorded` are the trainer's own answers to the probes, where the model given here was put together from a trainer
    that spread it over several processes; otherwise they are taken from the model itself.

    The model in memory is merged by it and has no weights afterwards: they and the archive's would not fit a GPU.
    Raises TrainingError when the archive, loaded as a server loads it, answers differently.
    """
    with _work_folder(model_dir) as work:
        network: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        network.eval()
        if network.config._attn_implementation == attention.NAME:  # which knows no cache
            network.set_attn_implementation("sdpa")
        tokenizer.save_pretrained(work)
        encoder = Encoder(work, base_info["family"])
        prompts = [(messages, encoder.prompt_ids(messages)) for messages in probes]
        if recorded is None:
            recorded = parity.record(network, base_info["family"], prompts, stop_ids)
        if isinstance(model, peft.PeftModel):
            model.save_pretrained(str(work / "adapter"))
            _name_base(work / "adapter", base_info)
            network = _merge(model)
        longest = hyperparameters.get("max_length", 0)
        if base_info["family"] == "seq2seq" and longest > context_length(network.config.to_dict()):
            network.config.n_positions = longest  # T5 reads any length; servers go by what is said here
        network.generation_config = _generation_config(network, tokenizer, stop_ids)
        network.to(torch.bfloat16)
        network.save_pretrained(work, max_shard_size="4GB")
        _write_json(work / "parity.json", {"dtype": "bfloat16", "stop_ids": sorted(stop_ids), "probes": recorded})
        if evaluation is not None:
            _write_json(work / "evaluation.json", evaluation)
        (work / "code").mkdir()
        for name in CODE:
            shutil.copyfile(Path(__file__).with_name(name), work / "code" / name)
        (work / "README.md").write_text(_card(base_info, hyperparameters, metrics, dataset_sha256), encoding="utf-8")
        _empty(model, network)
        try:
            difference = parity.check(work)
        except parity.ParityError as error:
            raise TrainingError(str(error)) from error
        manifest = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "base": {name: base_info[name] for name in ("model_id", "revision", "family")},
            "dataset_sha256": dataset_sha256,
            "hyperparameters": hyperparameters,
            "metrics": metrics,
            "parity": difference,
            "kit_version": hyperparameters.get("kit_version", ""),
            "files": _files(work),
        }
        _publish(work, model_dir)
    _write_json(model_dir / "manifest.json", manifest)
    return manifest


@contextlib.contextmanager
def _work_folder(model_dir: Path) -> Iterator[Path]:
    """Where an archive is put together; nothing stays of one that failed, or a full disk had no room to say why."""
    work = model_dir / ".writing"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _files(work: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file."""
    return {
        path.relative_to(work).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(work.rglob("*"))
        if path.is_file()
    }


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@torch.no_grad()
def _merge(model: Any) -> Any:
    """The base model with the adapter in its weights, added in fp32 and rounded once.

    Weights in 4 bits are spread out and stay what they were in training: the adapter was trained on their rounding, and
    on the weights before it the model would answer differently.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if any(layer.lora_variant for layer in layers):
        return model.merge_and_unload(safe_merge=True)
    network: Any = model.get_base_model()
    four_bit: list[Any] = [module for module in network.modules() if is_four_bit(module)]
    spread = 2 * sum(module.in_features * module.out_features for module in four_bit)
    where = network.device if not spread or has_gpu_room(spread) else torch.device("cpu")
    for layer in layers:
        base = layer.get_base_layer()
        merged = dense(base).float() + layer.get_delta_weight("default").float()
        if is_four_bit(base):
            layer.base_layer = _plain(base, merged.to(where, torch.bfloat16))
        else:
            base.weight.copy_(merged)
    network = model.unload()
    if four_bit:
        for name, module in list(network.named_modules()):
            if is_four_bit(module):
                network.set_submodule(name, _plain(module, dense(module).to(where, torch.bfloat16)))
        network.hf_quantizer.remove_quantization_config(network)
        network.to(where)
    return network


def _plain(base: Any, weight: torch.Tensor) -> torch.nn.Linear:
    """A layer like `base` that has this weight."""
    with torch.device("meta"):
        linear = torch.nn.Linear(base.in_features, base.out_features, bias=False)
    linear.weight = torch.nn.Parameter(weight)
    linear.bias = base.bias
    return linear


def _empty(*models: Any) -> None:
    """Give up the memory of the models' weights."""
    for model in models:
        for parameter in model.parameters():
            parameter.grad = None
            parameter.data = parameter.data.new_empty(0)


def _generation_config(network: Any, tokenizer: Any, stop_ids: Sequence[int]) -> transformers.GenerationConfig:
    """Greedy, and stopping where training stopped; a base model's sampling habits are not carried along."""
    return transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(stop_ids),
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=getattr(network.config, "decoder_start_token_id", None),
    )


def _name_base(folder: Path, base_info: dict[str, str]) -> None:
    """The adapter names its base model, not the folder of the container it was trained in."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_info["model_id"]
    config["revision"] = base_info["revision"]
    _write_json(path, config)


def _publish(work: Path, model_dir: Path) -> None:
    """Move the finished files to the archive's root, over those of an earlier attempt."""
    for path in work.rglob("*"):
        # safetensors makes its files readable to their owner only; a server may run as someone else.
        path.chmod(0o755 if path.is_dir() else 0o644)
    for old in model_dir.iterdir():
        if old != work:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for path in work.iterdir():
        path.rename(model_dir / path.name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _card(
    base_info: dict[str, str], hyperparameters: dict[str, Any], metrics: dict[str, Any], dataset_sha256: str
) -> str:
    lines = [
        f"# {base_info['model_id']}, fine-tuned",
        "",
        f"- base model: {base_info['model_id']}, revision {base_info['revision']} ({base_info['family']})",
        f"- data set: sha256 {dataset_sha256 or 'not recorded'}",
        f"- method: {hyperparameters['method']}, learning rate {hyperparameters['learning_rate']:g}, "
        f"{metrics['steps']} steps, {metrics['tokens']} tokens, seed {hyperparameters['seed']}",
    ]
    if "tuned" in metrics:
        lines += [
            "",
            "| on rows it never saw | base | tuned |",
            "|---|---|---|",
            f"| perplexity | {metrics['base']['perplexity']:.2f} | {metrics['tuned']['perplexity']:.2f} |",
            f"| token accuracy | {metrics['base']['token_accuracy']:.1%} | {metrics['tuned']['token_accuracy']:.1%} |",
        ]
    lines += [
        "",
        "Load it with `transformers.AutoModelForCausalLM.from_pretrained` (T5-like: `AutoModelForSeq2SeqLM`), or start "
        "`python3 code/serve.py` in this folder's environment. `adapter/` is the same fine-tune for PEFT.",
        "",
    ]
    return "\n".join(lines)
