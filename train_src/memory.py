"""How much memory a fine-tune needs, from the model's config.json alone: pure arithmetic, no torch.

It chooses the size of a forward pass and whether activations are recomputed. Whoever asks "does it fit" before a
machine is paid for reads this same file.

What is counted, in bytes (h hidden size, f feed-forward size, q and kv widths of queries and keys, V vocabulary):

    weights       2 per base weight in bf16, 4 in fp32 and for full fine-tuning, 0.55 in 4-bit NF4 (with its scales)
    gradients     4 per trained weight
    optimizer     8 per trained weight (AdamW's two moments)
    copies        2 per linear weight where fp32 weights are multiplied in bf16 (full fine-tuning) and not spread; one
                  layer's weights where they are made from 4 bits
    activations   per token and layer what the backward pass reads again; `Job.layer_bytes` says what that is. Where
                  transformers computes the attention, each token also meets all tokens of its pass: `Job.matrix_bytes`
    recomputed    with checkpointing only each layer's input, and one whole layer at a time
    head          on a GPU one chunk of logits, 6 per entry (bf16 and fp32), what enters the head, and its gradient
                  where it is trained
    gathered      only where the weights are spread over the processes: two layers and the embeddings, made whole
    other         the device's own: CUDA context and libraries, and the allocator's waste
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

GB = 1e9
SAFE_SHARE = 0.9  # of the device's memory
ALLOCATOR_WASTE = 0.05
CUDA_CONTEXT = 0.9 * GB
CPU_PROCESS = 0.6 * GB  # Python, PyTorch and transformers themselves
FOUR_BIT_BYTES = 0.55
LOGIT_BYTES = 6
BLOCK = 192  # queries that a CPU's attention takes at once (cpu_attention.py)
MOST_KEPT = 4  # weights that it keeps for each number of the queries: of documents of some 400 tokens, at heads of 64
HEAD_CHUNK = 2048  # labels that pass through the head at once on a GPU
CPU_MICRO_TOKENS = 1024  # more leaves the processor's cache: slower (measured 446 tokens/s at 1,024, 285 at 4,096)
TARGET_SHARE = 0.5  # of an encoder-decoder's tokens that are the decoder's, where the rows are not known
TIED = ("cohere", "ernie4_5", "gemma", "smollm3", "starcoder2", "vaultgemma")  # without config.json saying so
GPU_MICRO_TOKENS = 16384  # a GPU is saturated by then
EAGER = ("gemma2", "granite_swa", "vaultgemma")  # transformers computes their attention in single steps


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer.

    Attributes:
        cross_layers: decoder layers that also look at an encoder's output.
        attention: of a decoder: `packed` as attention.py computes it; by transformers `masked`, through PyTorch's kernels,
            where layers see a window only, or `eager`, in single steps.
    """

    hidden: int
    feed_forward: int
    query: int
    key_value: int
    heads: int
    layers: int
    cross_layers: int
    vocabulary: int
    gated: bool
    tied: bool
    dropout: bool = False
    attention: str = "packed"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Shape":
        """Read Llama-like (`hidden_size`, ...) and T5-like (`d_model`, ...) configurations."""
        config = config.get("text_config") or config
        if "d_kv" in config:
            width = config["num_heads"] * config["d_kv"]
            return cls(
                hidden=config["d_model"],
                feed_forward=config["d_ff"],
                query=width,
                key_value=width,
                heads=config["num_heads"],
                layers=config["num_layers"],
                cross_layers=config.get("num_decoder_layers") or config["num_layers"],  # early ones of T5 do not say
                vocabulary=config["vocab_size"],
                gated=str(config.get("feed_forward_proj", "")).startswith("gated"),
                tied=config.get("tie_word_embeddings", True),
                dropout=bool(config.get("dropout_rate", 0.1)),
            )
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            hidden=config["hidden_size"],
            feed_forward=config["intermediate_size"],
            query=heads * size,
            key_value=(config.get("num_key_value_heads") or heads) * size,
            heads=heads,
            layers=config["num_hidden_layers"],
            cross_layers=0,
            vocabulary=config["vocab_size"],
            gated=True,
            tied=config.get("tie_word_embeddings", str(config.get("model_type")).startswith(TIED)),
            attention=_attention(config),
        )

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers inside the transformer's blocks."""
        attention = self.hidden * (2 * self.query + 2 * self.key_value)
        feed_forward = (3 if self.gated else 2) * self.hidden * self.feed_forward
        return self.layers * (attention + feed_forward) + self.cross_layers * (2 * attention + feed_forward)

    @property
    def weights(self) -> int:
        """All weights."""
        norms = self.hidden * (2 * self.layers + 3 * self.cross_layers + 1 + bool(self.cross_layers))
        return self.linear_weights + norms + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def gathered_weights(self) -> int:
        """Weights that are whole at a time while the rest is spread: two layers, embeddings and head."""
        layers = self.layers + self.cross_layers
        return 2 * self.linear_weights // layers + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter_weights(self, r: int) -> int:
        """Weights of a rank-r adapter on every linear layer."""
        attention = r * (4 * self.hidden + 2 * self.query + 2 * self.key_value)
        feed_forward = r * (3 if self.gated else 2) * (self.hidden + self.feed_forward)
        return self.layers * (attention + feed_forward) + self.cross_layers * (2 * attention + feed_forward)


def _attention(config: dict[str, Any]) -> str:
    if config.get("model_type") in EAGER:
        return "eager"
    return "packed" if sees_all(config) else "masked"


def sees_all(config: dict[str, Any]) -> bool:
    """Whether each layer of a decoder looks at all tokens before, and none at a window of them only."""
    has_window = config.get("sliding_window") is not None and config.get("use_sliding_window", True)
    return not has_window and set(config.get("layer_types") or ()) <= {"full_attention"}


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for."""

    weights: float
    copies: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    gathered: float
    other: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Plan:
    """How to run a job on a device."""

    micro_batch_tokens: int
    gradient_checkpointing: bool
    estimate: Estimate
    sharded: bool = False


@dataclass(frozen=True)
class Job:
    """What is trained how, and on what kind of device.

    Attributes:
        bytes_per_weight: of the type that is computed with: 2 for bf16, 4 for fp32.
        device: "cuda" or "cpu".
        mean_row: tokens of the row that a token is in, on average.
        target_share: of an encoder-decoder's tokens, how many are the decoder's.
    """

    shape: Shape
    method: str = "lora"
    lora_r: int = 16
    lora_dropout: float = 0.0
    bytes_per_weight: float = 2
    device: str = "cuda"
    mean_row: float = 256
    target_share: float = TARGET_SHARE

    @property
    def is_full(self) -> bool:
        """Whether the base model's own weights are trained."""
        return self.method == "full"

    @property
    def trained_weights(self) -> int:
        """Weights that have a gradient."""
        return self.shape.weights if self.is_full else self.shape.adapter_weights(self.lora_r)

    @property
    def stream(self) -> float:
        """Bytes of each number that layers hand on."""
        return 4 if self.is_full else self.bytes_per_weight

    @property
    def norm_bytes(self) -> float:
        """Activation bytes per token of a frozen norm: input and result, and on a GPU of T5's bf16 input a copy in fp32."""
        is_copied = self.device == "cuda" and self.shape.cross_layers > 0 and self.bytes_per_weight == 2
        return (2 * self.bytes_per_weight + (4 if is_copied else 0)) * self.shape.hidden

    @cached_property
    def layer_bytes(self) -> float:
        """Activation bytes per token of one layer without its attention weights.

        For each norm its input and its result; queries, keys, values and attention's output; of the feed-forward block
        the gate and the up layer's results where lora_mlp.py computes the rest again, else their activation and product
        as well. Where the model drops at random, what was dropped. DoRA and dropout before the adapter are PEFT's own
        arithmetic, which keeps more for each output or input of a linear layer. Full fine-tuning keeps what the norms'
        own gradients need, and in bf16 a copy of each norm's result for each layer that reads it.
        """
        shape, value = self.shape, self.bytes_per_weight
        is_fused = self.method in ("lora", "rslora", "qlora") and not self.lora_dropout and not shape.cross_layers
        has_kernels = self.device == "cuda" and not shape.cross_layers
        norms: float
        if self.is_full:
            norms = ((18 if has_kernels else 26) if value == 2 else (16 if has_kernels else 24)) * shape.hidden
        else:
            norms = 2 * self.norm_bytes
        attention = 2 * value * (shape.query + shape.key_value)
        feed_forward = (2 if is_fused else 4 if shape.gated else 2) * value * shape.feed_forward
        dropped = value * (2 * shape.hidden + shape.feed_forward) if shape.dropout else 0
        outputs = shape.query + 2 * shape.key_value + 2 * shape.hidden + (2 if shape.gated else 1) * shape.feed_forward
        inputs = 5 * shape.hidden + shape.query + shape.feed_forward
        adapter: float = 0 if self.is_full else 7 * value * self.lora_r
        if self.method == "dora":
            adapter += (value + 4) * outputs
        if self.lora_dropout and not self.is_full:
            adapter += (2 * value + 1) * inputs
        weights: float = 0
        # As cpu_attention.py keeps them.
        if self.device == "cpu" and value == 4 and not shape.cross_layers and shape.attention == "packed":
            weights = shape.heads * min(self.mean_row, (self.mean_row + BLOCK) / 2)
            weights = weights if weights <= MOST_KEPT * shape.query else 0
        return norms + attention + value * weights + feed_forward + dropped + adapter

    def matrix_bytes(self, pass_tokens: int) -> tuple[float, float]:
        """(activation bytes per token that a layer keeps, that are there once) of attention that is transformers' own.

        A layer keeps keys and values repeated for each head, and of the matrix of all tokens of a pass its own copy of
        the mask, or for each head the weights in two types or before and after a cap. Once there are the mask itself, or
        the gradients of one layer's weights.
        """
        shape, value = self.shape, self.bytes_per_weight
        if shape.attention == "packed":
            return 0.0, 0.0
        repeated = 2 * value * (shape.query - shape.key_value)
        if shape.attention == "masked":
            return repeated + value * pass_tokens, pass_tokens
        return repeated + 8 * shape.heads * pass_tokens, 4 * shape.heads * pass_tokens

    @cached_property
    def token_bytes(self) -> tuple[float, float]:
        """(activation bytes per token of all layers, of the largest one), averaged over the tokens of both halves.

        A token of an encoder-decoder passes one of its two halves. The decoder's layers also keep their look at the
        encoder: one more norm, queries, output, and the keys and values of the encoder's tokens.
        """
        shape, value, target_share = self.shape, self.bytes_per_weight, self.target_share
        if not shape.cross_layers:
            return shape.layers * self.layer_bytes, self.layer_bytes
        source_row, target_row = self.mean_row * (1 - target_share), self.mean_row * target_share
        # On CPU attention keeps its weights and, where it drops at random, which ones (row_attention.py).
        kept = (5 if shape.dropout else 4) * shape.heads if self.device == "cpu" else 0
        look = self.norm_bytes + 2 * value * shape.query + (value * shape.hidden if shape.dropout else 0)
        encoder = self.layer_bytes + kept * source_row
        decoder = self.layer_bytes + look + kept * (target_row + source_row)
        cross = 2 * value * shape.key_value * (1 - target_share)
        total = (1 - target_share) * shape.layers * encoder + shape.cross_layers * (target_share * decoder + cross)
        return total, max((1 - target_share) * encoder, target_share * decoder)

    def pass_bytes(self, micro_batch_tokens: int, *, checkpointing: bool, shards: int) -> tuple[float, float]:
        """(bytes of what the backward pass reads again, of what is at work at the head) of one pass."""
        shape, value = self.shape, self.bytes_per_weight
        layers, largest = self.token_bytes
        kept, once = self.matrix_bytes(micro_batch_tokens)
        layers, largest = layers + shape.layers * kept + once, largest + kept + once
        if checkpointing:
            depth: float = shape.layers
            if shape.cross_layers:
                depth = shape.layers * (1 - self.target_share) + shape.cross_layers
            layers = self.stream * shape.hidden * depth + largest
        if self.device == "cpu":
            # The last norm, and what one layer's way back holds for a moment.
            passing = self.norm_bytes + 2 * value * (shape.feed_forward + shape.hidden)
            return micro_batch_tokens * (layers + passing), 0.0
        # Either the head is at work, or after it a feed-forward block on its way back.
        head = HEAD_CHUNK * shape.vocabulary * LOGIT_BYTES + micro_batch_tokens * 4 * self.stream * shape.hidden
        if self.is_full and shards == 1:
            head += (4 + (value == 2) * 2) * shape.vocabulary * shape.hidden
        passing = micro_batch_tokens * value * (3 * shape.feed_forward + 2 * shape.hidden)
        return micro_batch_tokens * layers + max(0, passing - head), head

    def estimate(
        self, micro_batch_tokens: int, *, checkpointing: bool, shards: int = 1, accumulates: bool = True
    ) -> Estimate:
        """Memory of one process.

        `shards`: over how many processes weights, gradients and optimizer are spread (FSDP). `accumulates`: a step has
        several passes, so that all gradients are there while a pass has its activations; in a single pass gradients
        come as activations go.
        """
        shape, value, trained = self.shape, self.bytes_per_weight, self.trained_weights
        if self.method == "qlora":
            weights = FOUR_BIT_BYTES * shape.linear_weights + 2 * (shape.weights - shape.linear_weights)
        else:
            weights = self.stream * shape.weights
        adapter = 0 if self.is_full else 4 * trained
        gathered = 0.0
        if shards > 1:
            # Full fine-tuning has whole gradients as well, and what they are summed in.
            gathered = (8 if self.is_full else value) * shape.gathered_weights
        copies = 2 * shape.linear_weights if self.is_full and value == 2 and shards == 1 else 0
        if self.method == "qlora":
            copies = 2 * shape.hidden * shape.feed_forward
        activations, head = self.pass_bytes(micro_batch_tokens, checkpointing=checkpointing, shards=shards)
        gradients = 4 * trained / shards
        if not accumulates:
            gradients = max(0.0, gradients - activations - head)
        subtotal = (weights + adapter + 8 * trained) / shards + gradients + copies + activations + head + gathered
        fixed = CUDA_CONTEXT if self.device == "cuda" else CPU_PROCESS
        return Estimate(
            weights=(weights + adapter) / shards,
            copies=copies,
            gradients=gradients,
            optimizer=8 * trained / shards,
            activations=activations,
            head=head,
            gathered=gathered,
            other=fixed + ALLOCATOR_WASTE * subtotal,
        )

    def plans(
        self,
        *,
        longest_row: int,
        batch_tokens: int,
        micro_batch_tokens: int = 0,
        checkpointing: bool | None = None,
        processes: int = 1,
        sharded: bool | None = None,
    ) -> Iterator[Plan]:
        """The ways to run it, the fastest first.

        Recomputing costs a third more time, so it comes after smaller passes; spreading the weights over the processes
        sends all of them over the network for every pass, so it comes last. `micro_batch_tokens`, `checkpointing` and
        `sharded` are fixed where the user said so. A pass is never smaller than the longest row, which cannot be split.

        Args:
            batch_tokens: tokens of a step that are this process's.
            processes: how many of them the job has.
        """
        most = min(CPU_MICRO_TOKENS if self.device == "cpu" else GPU_MICRO_TOKENS, batch_tokens)
        sizes = [micro_batch_tokens] if micro_batch_tokens else [most, most // 2, most // 4, most // 8]
        spreads = [False, True] if sharded is None and processes > 1 and self.method != "qlora" else [bool(sharded)]
        recomputes = [False, True] if checkpointing is None else [checkpointing]
        for spread, recompute, size in itertools.product(spreads, recomputes, dict.fromkeys(max(1, n) for n in sizes)):
            tokens = max(size, longest_row)
            needed = self.estimate(
                tokens, checkpointing=recompute, shards=processes if spread else 1, accumulates=tokens < batch_tokens
            )
            yield Plan(size, recompute, needed, spread)


def fitting(plans: Iterable[Plan], device_bytes: float) -> Plan | None:
    """The first that fits a device of so many bytes with a tenth to spare."""
    return next((plan for plan in plans if plan.estimate.total <= SAFE_SHARE * device_bytes), None)
