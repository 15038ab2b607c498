"""How much memory a fine-tune needs, from the model's config.json alone: pure arithmetic, no torch.

It chooses the size of a forward pass and whether activations are recomputed, and answers "does it fit" before a machine
is paid for: `python3 memory.py --config DIR/config.json --device-gb 24`.

What is counted, in bytes (h hidden size, f feed-forward size, q and kv widths of queries and keys, V vocabulary):

    weights       2 per base weight in bf16, 4 in fp32 and for full fine-tuning, 0.55 in 4-bit NF4 (with its scales)
    gradients     4 per trained weight
    optimizer     8 per trained weight (AdamW's two moments)
    activations   per token and layer what the backward pass reads again. With 2-byte values, for a Llama-like layer:
                  12h (two norms: the fp32 input and the result of each), 4q + 4kv (attention's inputs and output),
                  4f with an adapter (gate and up; lora_mlp.py computes the rest again), 8f otherwise (and the gate's
                  SiLU and their product), and the attention weights where they are kept: on CPU for
                  short rows, 2 bytes for each head and row length; 8 for T5, which drops some at random
    recomputed    with checkpointing only 2h per token and layer, plus one whole layer at a time
    head          one chunk of logits, 10 per entry (bf16 and fp32 copies and the gradient)
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
LOGIT_BYTES = 10
HEAD_CHUNK = {"cpu": 128, "cuda": 2048}  # labels that pass through the head at once
CPU_MICRO_TOKENS = 1024  # more leaves the processor's cache: slower (measured 446 tokens/s at 1,024, 285 at 4,096)
SHORT_ROW = 384  # attention.SHORT: longer rows take the kernel that keeps no attention weights
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

    def layer_bytes(self, mean_row: int, device: str, *, fused: bool) -> float:
        """Activation bytes per token of one layer; a cross-attending layer has half as much again.

        `fused`: the feed-forward block is lora_mlp.py's.
        """
        feed_forward = (8 if self.gated and not fused else 4) * self.feed_forward
        is_kept = device == "cpu" and (self.cross_layers or mean_row <= SHORT_ROW)
        kept_weights = (8 if self.cross_layers else 2) * self.heads * mean_row if is_kept else 0
        return 12 * self.hidden + 4 * self.query + 4 * self.key_value + feed_forward + kept_weights


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for."""

    weights: float
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
) -> Estimate:
    """Memory of one process. `shards`: over how many processes weights, gradients and optimizer are spread (FSDP)."""
    trained = shape.weights if method == "full" else shape.adapter_weights(lora_r)
    if method == "qlora":
        weights = 0.55 * shape.linear_weights + 2 * (shape.weights - shape.linear_weights)
    else:
        weights = (4 if method == "full" else bytes_per_weight) * shape.weights
    adapter = 0 if method == "full" else 4 * trained
    gathered = 0.0
    if shards > 1:
        # Full fine-tuning has fp32 weights and whole gradients of them.
        gathered = (8 if method == "full" else bytes_per_weight) * shape.gathered_weights
    scale = bytes_per_weight / 2
    fused = method in ("lora", "rslora") and not lora_dropout and not shape.cross_layers
    layer = shape.layer_bytes(mean_row, device, fused=fused) * scale
    depth = shape.layers + 1.5 * shape.cross_layers
    if checkpointing:
        activations = micro_batch_tokens * (2 * scale * shape.hidden * depth + 1.5 * layer)
    else:
        activations = micro_batch_tokens * layer * depth
    head = HEAD_CHUNK[device] * shape.vocabulary * LOGIT_BYTES
    subtotal = (weights + adapter + 12 * trained) / shards + activations + head + gathered
    fixed = CUDA_CONTEXT if device == "cuda" else CPU_PROCESS
    return Estimate(
        weights=(weights + adapter) / shards,
        gradients=4 * trained / shards,
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
