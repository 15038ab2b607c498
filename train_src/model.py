"""The model that is trained: base weights, adapter, precision, and the loss of a batch.

The head is applied only where there is a label: a replaced `forward` of the output layer picks those positions, so it
works for every model transformers loads, whatever the model does before its head (T5 scales) or after it (Gemma caps).
"""

import contextlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

import attention
import t5_attention
from base import Base
from batches import LEAST_SPARED, Batch, causal_batch, packed_seq2seq_batch, seq2seq_batch
from cpu_layers import use_cpu_layers
from data import Channel, Row
from failures import TrainingError
from heap import keep_freed_memory
from hyperparameters import Hyperparameters
from label_loss import label_losses, logit_losses
from lora_linear import speed_up
from lora_mlp import fuse
from memory import CUDA_CONTEXT, GB, Job, Plan, Shape, fitting
from replacements import apply_liger, use_native_gelu
from sharding import is_sharded, reshard, shard, turns
from structure import target_modules

ONE_THREAD_WEIGHTS = 10_000_000  # below, waiting for each other costs threads more than they gain
# Settings by which a model changes its logits after the head; then the loss must be taken from the model's own output.
CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass
class TunedModel:
    """A model with its adapter. `module` is what is saved: the PEFT model, or the plain one for full fine-tuning."""

    module: Any
    network: Any
    family: str
    device: torch.device
    dtype: torch.dtype
    autocast: bool
    trained_names: list[str]

    def __post_init__(self) -> None:
        self._head = self.network.get_output_embeddings()
        self._plain_head = self._head.forward
        self._labels: tuple[Tensor, Tensor] | None = None
        self._result: tuple[Tensor, Tensor] | None = None
        config = self.network.config.get_text_config()
        self._keeps_logits = not any(getattr(config, name, None) not in (None, 0, 1.0) for name in CHANGED_LOGITS)
        self._head.forward = self._head_forward
        self._packs = self.network.config._attn_implementation == attention.NAME

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a share of the weights."""
        return is_sharded(self.network)

    @property
    def pads(self) -> bool:
        """Whether a batch is padded to its longest row."""
        return self.family == "seq2seq" and not self._packs

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes, in a fixed order."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer changes, by name."""
        parameters = dict(self.module.named_parameters())
        return {name: parameters[name] for name in self.trained_names}

    def batch(self, rows: list[Row]) -> Batch:
        """The rows as one forward pass of this model."""
        if self.family == "causal":
            least_spared = 0.0 if self.device.type == "cpu" else LEAST_SPARED
            return causal_batch(rows, share=self._packs, least_spared=least_spared)
        config = self.network.config
        if self.pads:
            return seq2seq_batch(rows, pad_id=config.pad_token_id or 0, start_id=config.decoder_start_token_id)
        return packed_seq2seq_batch(rows, start_id=config.decoder_start_token_id)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss in fp32, whether the label was the likeliest token) for each label of the batch."""
        attention.set_documents(batch.lengths, batch.shared, batch.source_lengths)
        positions, labels = (each.to(self.device, non_blocking=True) for each in (batch.positions, batch.labels))
        self._labels = positions, labels
        try:
            with self._precision():
                output = self.network(**batch.model_inputs(self.device), use_cache=False)
            if self._result is not None:
                return self._result
            return logit_losses(output.logits[0], labels)
        finally:
            self._labels = self._result = None

    @contextlib.contextmanager
    def base(self) -> Any:
        """Inside, the model answers as the base model does (adapter off)."""
        if isinstance(self.module, peft.PeftModel):
            with self.module.disable_adapter():
                yield
        else:
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Any:
        """Inside, losses are those of the model as it is: no dropout, no gradients."""
        self.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.network.train()
            reshard(self.network)

    @contextlib.contextmanager
    def generating(self) -> Any:
        """Inside, `network.generate` works on ordinary padded batches."""
        attention.set_documents(())
        trained_with = self.network.config._attn_implementation
        self.network.eval()
        if trained_with == attention.NAME:
            self.network.set_attn_implementation("sdpa")
        try:
            with torch.inference_mode(), self._precision():
                yield self.network
        finally:
            self.network.set_attn_implementation(trained_with)
            self.network.train()
            reshard(self.network)

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def _head_forward(self, hidden: Tensor) -> Tensor:
        if self._labels is None:
            return self._plain_head(hidden)
        positions, labels = self._labels
        picked = hidden.reshape(-1, hidden.shape[-1])[positions]
        if not self._keeps_logits:
            return self._plain_head(picked)[None]
        self._result = label_losses(picked.to(self._head.weight.dtype), self._head.weight, labels, self._head.bias)
        return picked[None]


def choose_device() -> torch.device:
    """The GPU of this process where there is one, the CPU otherwise."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.distributed.get_node_local_rank(0))


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it natively, fp32 otherwise; fp16 never (T5 overflows in it)."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32


def load_tokenizer(base: Base) -> Any:
    """transformers' tokenizer of the base model, with a pad token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def plan_memory(base: Base, settings: Hyperparameters, train: Channel, processes: int) -> Plan:
    """Pass size and recomputation for this machine. Raises TrainingError when the model cannot fit."""
    device = choose_device()
    lengths = [len(row) for row in train.rows]
    job = Job(
        Shape.from_config(base.config),
        method=settings.method,
        lora_r=settings.lora_r,
        lora_dropout=settings.lora_dropout,
        bytes_per_weight=2 if choose_dtype(settings.precision, device) == torch.bfloat16 else 4,
        device=device.type,
        mean_row=sum(length * length for length in lengths) // sum(lengths),
        target_share=sum(len(row.ids) for row in train.rows) / sum(lengths),
    )
    plans = list(
        job.plans(
            longest_row=max(lengths),
            batch_tokens=max(1, settings.batch_tokens // processes),
            micro_batch_tokens=settings.micro_batch_tokens,
            checkpointing={"auto": None, "on": True, "off": False}[settings.gradient_checkpointing],
            processes=processes,
            sharded={"auto": None, "on": processes > 1, "off": False}[settings.sharding],
        )
    )
    available = _device_bytes(device) / (_local_processes() if device.type == "cpu" else 1)
    plan = fitting(plans, available)
    if plan is None:
        least = min(each.estimate.total for each in plans)
        raise TrainingError(
            f"{base.model_id} ({job.shape.weights / 1e9:.2f} billion weights) does not fit: {settings.method} with rows "
            f"of {max(lengths)} tokens needs about {least / GB:.0f} GB, this {device.type} has "
            f"{available / GB:.0f} GB: use a larger instance, method qlora, or a smaller max_length"
        )
    return plan


def _device_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        # Other programs may have some of it; what this one has taken already is its context, which the plan counts.
        free, total = torch.cuda.mem_get_info(device)
        return min(total, free + CUDA_CONTEXT)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(memory, int(text)) if text.isdigit() else memory


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def load_sharded(base: Base, settings: Hyperparameters, *, recompute: bool) -> TunedModel:
    """The model with its weights spread over all processes. Few load it whole at a time: each host has one memory."""
    size = Shape.from_config(base.config).weights * (4 if settings.method == "full" else 2)
    device, model = choose_device(), None
    for is_mine in turns(size, _device_bytes(torch.device("cpu"))):
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
    if config._attn_implementation != "sdpa":  # transformers chooses it for all but those with caps or sinks
        return False
    has_window = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return not has_window and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}


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
