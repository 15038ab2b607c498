"""How much memory a fine-tune needs, from the model's config.json alone: pure arithmetic, no torch.

It chooses the size of a forward pass and whether activations are recomputed, and answers "does it fit" before a machine
is paid for: `python3 memory.py --config DIR/config.json --device-gb 24`.

What is counted, in bytes (h hidden size, f feed-forward size, q and kv widths of queries and keys, V vocabulary):

    weights       2 per base weight in bf16, 4 in fp32 and for full fine-tuning, 0.55 in 4-bit NF4 (with its scales)
    gradients     4 per trained weight
    optimizer     8 per trained weight (AdamW's two moments)
    copies        2 per linear weight where fp32 weights are multiplied in bf16 (full fine-tuning) and not spread; one
                  layer's weights where they are made from 4 bits
    activations   per token and layer what the backward pass reads again; `Shape.layer_bytes` says what that is
    recomputed    with checkpointing only each layer's input, and one whole layer at a time
    head          on a GPU one chunk of logits, 6 per entry (bf16 and fp32), what enters the head, and its gradient where
                  it is trained
    gathered      only where the weights are spread over the processes: two layers and the embeddings, made whole
    other         the device's own: CUDA context and libraries, and the allocator's waste
"""

import argparse
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GB = 1e9
SAFE_SHARE = 0.9  # of the device's memory
ALLOCATOR_WASTE = 0.05
CUDA_CONTEXT = 0.9 * GB
CPU_PROCESS = 0.6 * GB  # Python, PyTorch and transformers themselves
LOGIT_BYTES = 6
HEAD_CHUNK = 2048  # labels that pass through the head at once on a GPU
CPU_MICRO_TOKENS = 1024  # more leaves the processor's cache: slower (measured 446 tokens/s at 1,024, 285 at 4,096)
TARGET_SHARE = 0.5  # of an encoder-decoder's tokens that are the decoder's, where the rows are not known
GPU_MICRO_TOKENS = 16384  # a GPU is saturated by then


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer. `cross_layers` are decoder layers that also look at an encoder's output."""

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

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Shape":
        """Read Llama-like (`hidden_size`, ...) and T5-like (`d_model`, ...) configurations."""
        config = config.get("text_config") or config
        if "d_model" in config and "num_decoder_layers" in config:
            width = config["num_heads"] * config["d_kv"]
            return cls(
                hidden=config["d_model"],
                feed_forward=config["d_ff"],
                query=width,
                key_value=width,
                heads=config["num_heads"],
                layers=config["num_layers"],
                cross_layers=config["num_decoder_layers"],
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
            tied=config.get("tie_word_embeddings", False),
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

    def layer_bytes(self, method: str, value: float, r: int, device: str, *, lora_dropout: bool) -> float:
        """Activation bytes per token of one layer without its attention weights, `value` bytes for each number.

        For each norm its input, in fp32 (a GPU's kernel keeps it as it is), and its result; queries, keys, values and attention's output; of the
        feed-forward block the gate and the up layer's results where lora_mlp.py computes the rest again, else their
        activation and product as well. Where the model drops at random, what was dropped. DoRA and dropout before the
        adapter are PEFT's own arithmetic, which keeps more for each output or input of a linear layer. Full
        fine-tuning keeps what the norms' own gradients need, and in bf16 a copy of each norm's result for each layer
        that reads it.
        """
        is_fused = method in ("lora", "rslora", "qlora") and not lora_dropout and not self.cross_layers
        has_kernels = device == "cuda" and not self.cross_layers
        norms: float
        if method == "full":
            norms = ((18 if has_kernels else 26) if value == 2 else (16 if has_kernels else 24)) * self.hidden
        else:
            norms = 2 * ((value if has_kernels else 4) + value) * self.hidden
        attention = 2 * value * (self.query + self.key_value)
        feed_forward = (2 if is_fused else 4 if self.gated else 2) * value * self.feed_forward
        dropped = value * (2 * self.hidden + self.feed_forward) if self.dropout else 0
        if self.cross_layers and value == 2:  # T5's last product and all it is added to are fp32
            feed_forward += 4 * self.feed_forward + 2 * self.hidden
        outputs = self.query + 2 * self.key_value + 2 * self.hidden + (2 if self.gated else 1) * self.feed_forward
        inputs = 5 * self.hidden + self.query + self.feed_forward
        adapter: float = 0 if method == "full" else 7 * value * r
        if method == "dora":
            adapter += (value + 4) * outputs
        if lora_dropout and method != "full":
            adapter += (2 * value + 1) * inputs
        return norms + attention + feed_forward + dropped + adapter

    def token_bytes(
        self,
        method: str,
        value: float,
        r: int,
        device: str,
        mean_row: float,
        target_share: float,
        *,
        lora_dropout: bool,
    ) -> tuple[float, float]:
        """(activation bytes per token of all layers, of the largest one), averaged over the tokens of both halves.

        A token of an encoder-decoder passes one of its two halves. The decoder's layers also keep their look at the
        encoder: one more norm, queries, output, and the keys and values of the encoder's tokens.
        """
        layer = self.layer_bytes(method, value, r, device, lora_dropout=lora_dropout)
        if not self.cross_layers:
            return self.layers * layer, layer
        source_row, target_row = mean_row * (1 - target_share), mean_row * target_share
        # On CPU attention keeps its weights and, where it drops at random, which ones (row_attention.py).
        kept = (5 if self.dropout else 4) * self.heads if device == "cpu" else 0
        look = (4 + value) * self.hidden + 2 * value * self.query + (value * self.hidden if self.dropout else 0)
        encoder = layer + kept * source_row
        decoder = layer + look + kept * (target_row + source_row)
        cross = 2 * value * self.key_value * (1 - target_share)
        total = (1 - target_share) * self.layers * encoder + self.cross_layers * (target_share * decoder + cross)
        return total, max((1 - target_share) * encoder, target_share * decoder)

    def boundary_bytes(self, value: float, target_share: float) -> float:
        """Bytes per token of all layers' inputs, which recomputation keeps."""
        depth = self.layers * (1 - target_share) + self.cross_layers if self.cross_layers else self.layers
        return value * self.hidden * depth


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


def estimate(
    shape: Shape,
    *,
    method: str,
    lora_r: int,
    micro_batch_tokens: int,
    checkpointing: bool,
    bytes_per_weight: float = 2,
    mean_row: int = 256,
    device: str = "cuda",
    shards: int = 1,
    lora_dropout: float = 0.0,
    target_share: float = TARGET_SHARE,
    accumulates: bool = True,
) -> Estimate:
    """Memory of one process. `shards`: over how many processes weights, gradients and optimizer are spread (FSDP).

    `accumulates`: a step has several passes, so that all gradients are there while a pass has its activations. In a
    single pass gradients come as activations go.
    """
    trained = shape.weights if method == "full" else shape.adapter_weights(lora_r)
    if method == "qlora":
        weights = 0.55 * shape.linear_weights + 2 * (shape.weights - shape.linear_weights)
    else:
        weights = (4 if method == "full" else bytes_per_weight) * shape.weights
    adapter = 0 if method == "full" else 4 * trained
    gathered = 0.0
    if shards > 1:
        # Full fine-tuning has whole gradients as well, and what they are summed in.
        gathered = (8 if method == "full" else bytes_per_weight) * shape.gathered_weights
    value = bytes_per_weight
    copies = 2 * shape.linear_weights if method == "full" and value == 2 and shards == 1 else 0
    if method == "qlora":
        copies = 2 * shape.hidden * shape.feed_forward
    layers, largest = shape.token_bytes(
        method, value, lora_r, device, mean_row, target_share, lora_dropout=lora_dropout > 0
    )
    stream = 4 if method == "full" else value  # bytes of what layers hand on
    if checkpointing:
        layers = shape.boundary_bytes(stream, target_share) + largest
    activations, head = micro_batch_tokens * layers, 0.0
    if device == "cuda":
        # Either the head is at work, or after it a feed-forward block on its way back.
        head = HEAD_CHUNK * shape.vocabulary * LOGIT_BYTES + micro_batch_tokens * 4 * stream * shape.hidden
        if method == "full" and shards == 1:
            head += (4 + (value == 2) * 2) * shape.vocabulary * shape.hidden
        activations += max(0, micro_batch_tokens * value * (3 * shape.feed_forward + 2 * shape.hidden) - head)
    else:
        # The last norm, and what one layer's way back holds for a moment.
        activations += micro_batch_tokens * (
            (4 + value) * shape.hidden + 2 * value * (shape.feed_forward + shape.hidden)
        )
    gradients = 4 * trained / shards
    if not accumulates:
        gradients = max(0.0, gradients - activations - head)
    subtotal = (weights + adapter + 8 * trained) / shards + gradients + copies + activations + head + gathered
    fixed = CUDA_CONTEXT if device == "cuda" else CPU_PROCESS
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


def choose(
    shape: Shape,
    *,
    device: str,
    device_bytes: float,
    longest_row: int,
    batch_tokens: int,
    method: str = "lora",
    lora_r: int = 16,
    bytes_per_weight: float = 2,
    mean_row: int = 256,
    checkpointing: bool | None = None,
    micro_batch_tokens: int = 0,
    processes: int = 1,
    sharded: bool | None = None,
    lora_dropout: float = 0.0,
    target_share: float = TARGET_SHARE,
) -> Plan | None:
    """The fastest way that fits, or None.

    Recomputing costs a third more time, so it comes after smaller passes; spreading the weights over the processes
    sends all of them over the network for every pass, so it comes last. `checkpointing`, `sharded` and
    `micro_batch_tokens` are fixed where the user said so. A pass is never smaller than the longest row, which cannot
    be split.
    """
    most = min(CPU_MICRO_TOKENS if device == "cpu" else GPU_MICRO_TOKENS, batch_tokens)
    sizes = [micro_batch_tokens] if micro_batch_tokens else [most, most // 2, most // 4, most // 8]
    sizes = list(dict.fromkeys(max(size, 1) for size in sizes))
    spreads = [False, True] if sharded is None and processes > 1 and method != "qlora" else [bool(sharded)]
    recomputes = [False, True] if checkpointing is None else [checkpointing]
    for spread, recompute, size in itertools.product(spreads, recomputes, sizes):
        needed = estimate(
            shape,
            method=method,
            lora_r=lora_r,
            micro_batch_tokens=max(size, longest_row),
            checkpointing=recompute,
            bytes_per_weight=bytes_per_weight,
            mean_row=mean_row,
            device=device,
            shards=processes if spread else 1,
            lora_dropout=lora_dropout,
            target_share=target_share,
            accumulates=max(size, longest_row) < batch_tokens,
        )
        if needed.total <= SAFE_SHARE * device_bytes:
            return Plan(size, recompute, needed, spread)
    return None


def main() -> int:
    """Print the plan and the estimate as JSON; exit code 1 when nothing fits."""
    parser = argparse.ArgumentParser(description="Does a fine-tune fit into a device?")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--device-gb", required=True, type=float)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--longest-row", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--processes", type=int, default=1, help="GPUs of the whole job")
    arguments = parser.parse_args()
    shape = Shape.from_config(json.loads(arguments.config.read_text(encoding="utf-8")))
    plan = choose(
        shape,
        device=arguments.device,
        device_bytes=arguments.device_gb * GB,
        longest_row=arguments.longest_row,
        batch_tokens=arguments.batch_tokens,
        method=arguments.method,
        lora_r=arguments.lora_r,
        processes=arguments.processes,
    )
    if plan is None:
        print(json.dumps({"fits": False, "weights": shape.weights}))
        return 1
    parts = {name: round(value / GB, 3) for name, value in vars(plan.estimate).items()}
    answer = {
        "fits": True,
        "micro_batch_tokens": plan.micro_batch_tokens,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "sharded": plan.sharded,
        "total_gb": round(plan.estimate.total / GB, 3),
        "parts_gb": parts,
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
