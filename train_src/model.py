"""The model that is trained: the rows of a pass as it takes them, and their losses.

The head is applied only where there is a label: a replaced `forward` of the output layer picks those positions, so it
works for every model transformers loads, whatever the model does before its head (T5 scales) or after it (Gemma caps).
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor, nn

import attention
from batches import LEAST_SPARED, Batch, causal_batch, packed_seq2seq_batch, seq2seq_batch
from data import Row
from label_loss import label_losses, logit_losses
from sharding import is_sharded, reshard

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
