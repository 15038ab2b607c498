"""Base models from their folders, with what is trained added."""

import warnings
from typing import Any

import peft
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

import attention
import t5_attention
from base import Base
from cpu_layers import use_cpu_layers
from device import choose_device, choose_dtype, device_bytes
from failures import TrainingError
from heap import keep_freed_memory
from hyperparameters import Hyperparameters
from lora_linear import speed_up
from lora_mlp import fuse
from memory import Shape, sees_all
from model import TunedModel
from replacements import apply_liger, use_native_gelu
from sharding import shard, turns
from structure import target_modules

ONE_THREAD_WEIGHTS = 10_000_000  # below, waiting for each other costs threads more than they gain


def load_tokenizer(base: Base) -> Any:
    """transformers' tokenizer of the base model, with a pad token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_sharded(base: Base, settings: Hyperparameters, *, recompute: bool) -> TunedModel:
    """The model with its weights spread over all processes. Few load it whole at a time: each host has one memory."""
    size = Shape.from_config(base.config).weights * (4 if settings.method == "full" else 2)
    device, model = choose_device(), None
    for is_mine in turns(size, device_bytes(torch.device("cpu"))):
        if is_mine:
            model = load_model(base, settings, recompute=recompute, device=torch.device("cpu"), computed_on=device)
            # Full weights are gathered in bf16: half the bytes to send, and no copies of all layers as autocast keeps.
            gathers_bf16 = settings.method == "full" and model.autocast
            model.autocast = model.autocast and not gathers_bf16
            shard(model.network, device, model.dtype if gathers_bf16 else None)
    assert model is not None
    return model


def load_model(
    base: Base,
    settings: Hyperparameters,
    *,
    recompute: bool = False,
    device: torch.device | None = None,
    computed_on: torch.device | None = None,
) -> TunedModel:
    """Load the base, add what is trained. The same seed gives the same first weights.

    `recompute` turns on gradient checkpointing. The weights are put on `device` (this process's own by default) and
    will be computed with on `computed_on`, where that is another.
    """
    device = device or choose_device()
    computed_on = computed_on or device
    if computed_on.type == "cpu":
        keep_freed_memory()
        if Shape.from_config(base.config).weights < ONE_THREAD_WEIGHTS:
            torch.set_num_threads(1)
    dtype = choose_dtype(settings.precision, computed_on)
    network = _load_network(base, settings, dtype, computed_on)
    apply_liger(network, computed_on)
    use_native_gelu(network)
    torch.manual_seed(settings.seed)
    plain = 0
    if settings.method == "full":
        module = network.requires_grad_(True).to(device)
    else:
        network.requires_grad_(False)
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.23 by an attribute's old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            module = peft.get_peft_model(network, _lora_config(network, base.family, settings))
        network.to(device)
        if computed_on.type == "cpu":
            use_cpu_layers(network)
        plain = speed_up(module)
        if plain == _adapted(module):
            fuse(module)
    if recompute:
        network.activation_checkpointing_enable({"use_reentrant": False})
    network.train()
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    # fp32 weights, or layers whose arithmetic is PEFT's own, are multiplied in bf16 through autocast.
    autocast = dtype == torch.bfloat16 and (settings.method == "full" or plain < _adapted(module))
    return TunedModel(module, network, base.family, computed_on, dtype, autocast, trained)


def _adapted(module: nn.Module) -> int:
    return sum(isinstance(layer, peft.tuners.lora.LoraLayer) for layer in module.modules())


def _load_network(base: Base, settings: Hyperparameters, dtype: torch.dtype, computed_on: torch.device) -> Any:
    loader: Any = transformers.AutoModelForSeq2SeqLM if base.family == "seq2seq" else transformers.AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": torch.float32 if settings.method == "full" else dtype}
    if settings.method == "qlora":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    attention.register()
    if base.family == "seq2seq" and computed_on.type == "cpu":
        options["attn_implementation"] = attention.NAME
    try:
        network, loaded = loader.from_pretrained(base.folder, output_loading_info=True, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"the base model {base.model_id} does not load: {error}; stage it again") from error
    if missing := sorted(loaded["missing_keys"]):
        # transformers gives them random values.
        raise TrainingError(
            f"the weights of {base.model_id} are incomplete: {len(missing)} are missing ({', '.join(missing[:3])}, ...): "
            "stage the model again"
        )
    if base.family == "seq2seq" and computed_on.type == "cpu":
        t5_attention.pack(network)
    elif base.family == "causal" and _is_plain_attention(network.config):
        network.set_attn_implementation(attention.NAME)
    return network


def _is_plain_attention(config: Any) -> bool:
    """Whether each layer's attention is causal attention and nothing more; others get transformers' own block masks."""
    # transformers chooses sdpa for all but those with caps or sinks.
    return config._attn_implementation == "sdpa" and sees_all(config.to_dict())


def _lora_config(network: Any, family: str, settings: Hyperparameters) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
        target_modules=target_modules(network, settings.target_modules),
        task_type="SEQ_2_SEQ_LM" if family == "seq2seq" else "CAUSAL_LM",
    )
