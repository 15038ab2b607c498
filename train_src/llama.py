"""Decoding for Llama-like models (Llama, Mistral, Qwen2, Qwen3, SmolLM2) with little between the matrix products.

The weights are those of transformers' model, laid out for decoding: query, key and value in one product, gate and up in
another, the halves of each head woven together so that a rotation by position is one complex multiplication. A row's
keys and values are written into a cache of their own that is reserved once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adapters import Adapter, Lora, Share, add_shares, bind
from decoders import Row, layer_shapes, shares_of
from linears import Linear, padded_rows
from llama_layer import Layer, Norm, Turn, attend_rows, scripted
from prefixes import Prefixes

# Of a prompt in one step; the rows that are answering wait for so long at most. A GPU needs more to be busy.
PREFILL_TOKENS = {"cpu": 128, "cuda": 256}
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
LARGEST_COPY = 2_000_000_000  # bytes of layers that are kept in fp32 beside the packed ones, for reading prompts
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def is_llama_like(config: Any) -> bool:
    """Whether LlamaDecoder computes what transformers does for this configuration."""
    rope = getattr(config, "rope_parameters", None) or {}
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    slides = layers != {"full_attention"} or (config.model_type == "mistral" and config.sliding_window is not None)
    return (
        config.model_type in MODEL_TYPES
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in STATIC_ROPE
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and not slides
    )


class LlamaDecoder:
    """As decoders.Decoder says. The model it is made of is empty afterwards."""

    def __init__(self, model: Any, context: int) -> None:
        config = model.config
        self.device = model.device
        self.weight_dtype = model.dtype
        self.shapes = layer_shapes(model)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self.keeps_plain = _layer_bytes(model) <= LARGEST_COPY
        self.head = Linear(model.lm_head.weight.detach())
        self.dtype = torch.float32 if self.head.is_packed else self.weight_dtype
        self.embeddings = model.model.embed_tokens.weight.detach()
        self.norm = self._norm(model.model.norm.weight)
        self._weave = torch.arange(self.head_size).view(2, -1).t().reshape(-1)
        self.layers = [self._laid_out(layer) for layer in model.model.layers]
        self.scripted = [scripted(layer) for layer in self.layers]
        self.turns = _turns(model.model.rotary_emb, context)
        self.block = PREFILL_TOKENS["cpu" if self.device.type == "cpu" else "cuda"]
        self.prefixes = Prefixes(self.block)
        self.bytes_per_token = 2 * len(self.layers) * self.kv_heads * self.head_size * self.dtype.itemsize

    def _laid_out(self, layer: Any) -> Layer:
        """The layer in this decoder's form. transformers' own gives up its weights: two of a model would not fit."""
        laid_out = self._layer(layer)
        layer.to("meta")
        return laid_out

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        query, key = (self._woven(part, count) for part, count in self._rotated(attention))
        value = (attention.v_proj.weight, attention.v_proj.bias)
        parts = [query, key, value]
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        query_norm, key_norm = [None if norm is None else self._norm(norm.weight[self._weave]) for norm in norms]
        return Layer(
            attention_norm=self._norm(layer.input_layernorm.weight),
            qkv=self._linear(*_side_by_side(parts)),
            turn=Turn(self.heads, self.kv_heads, self.head_size, self.dtype, query_norm, key_norm),
            out=self._linear(attention.o_proj.weight, attention.o_proj.bias),
            mlp_norm=self._norm(layer.post_attention_layernorm.weight),
            gate_up=self._linear(*_side_by_side([(part.weight, part.bias) for part in (mlp.gate_proj, mlp.up_proj)])),
            down=self._linear(mlp.down_proj.weight, mlp.down_proj.bias),
        )

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return Linear(weight.detach(), None if bias is None else bias.detach(), keeps_plain=self.keeps_plain)

    def _norm(self, weight: Tensor) -> Norm:
        return Norm(weight, self.eps, self.dtype)

    def _rotated(self, attention: Any) -> tuple[tuple[Any, int], tuple[Any, int]]:
        return (attention.q_proj, self.heads), (attention.k_proj, self.kv_heads)

    def _woven(self, linear: Any, heads: int) -> tuple[Tensor, Tensor | None]:
        bias = linear.bias
        return self._weave_rows(linear.weight, heads), None if bias is None else self._weave_rows(bias, heads)

    def _weave_rows(self, values: Tensor, heads: int) -> Tensor:
        """The output rows of a projection with the two halves of each head woven together."""
        return values.unflatten(0, (heads, self.head_size))[:, self._weave].flatten(0, 1)

    def bind(self, name: str, loras: Mapping[str, Lora]) -> Adapter:
        """As Decoder says."""
        fused: dict[str, tuple[Linear, Linear, float]] = {}
        for number in range(len(self.layers)):
            prefix = f"model.layers.{number}."
            for layer, parts in _FUSED.items():
                found = [(part, loras.get(prefix + part)) for part in parts]
                if any(lora for _, lora in found):
                    fused[f"{number}.{layer}"] = bind(self._fuse(prefix, found), self.weight_dtype, self.device)
        return Adapter(name, fused)

    def _fuse(self, prefix: str, parts: list[tuple[str, Lora | None]]) -> Lora:
        """Adapters of projections that are one product here: their inputs stacked, their outputs side by side."""
        downs, ups = [], []
        for part, lora in parts:
            up = torch.zeros(self.shapes[prefix + part][0], 0)
            if lora is not None:
                heads = {"self_attn.q_proj": self.heads, "self_attn.k_proj": self.kv_heads}.get(part)
                up = lora.up if heads is None else self._weave_rows(lora.up, heads)
                downs.append(lora.down)
            ups.append(up)
        return Lora(torch.cat(downs), torch.block_diag(*ups))

    @torch.inference_mode()
    def prefill(self, row: Row) -> Tensor | None:
        """As Decoder says, a block at a time; where the cuts are depends on the prompt alone."""
        if row.cache is None:
            self._reserve(row)
            self._recall(row)
        ids = row.prompt_ids[row.done : row.done + self.block]
        is_last = row.done + len(ids) == len(row.prompt_ids)
        hidden = self._read(row, ids, shares_of([row], self.device), only_last=True)
        if not is_last:
            return None
        self.prefixes.keep(row.shares, row.prompt_ids, row.cache)
        return self._logits(hidden)[0]

    def _recall(self, row: Row) -> None:
        """Put into the cache what is known of how the prompt begins."""
        for block in self.prefixes.find(row.shares, row.prompt_ids):
            row.cache[:, :, :, row.done : row.done + self.block] = block
            row.done += self.block
        row.known = row.done

    @torch.inference_mode()
    def logprobs(self, prompt_ids: list[int], tokens: list[int]) -> Tensor:
        """As Decoder says."""
        ids = [*prompt_ids, *tokens[:-1]]
        row = Row(ids, len(ids))
        self._reserve(row)
        parts = [self._read(row, ids[at : at + self.block], []) for at in range(0, len(ids), self.block)]
        return torch.log_softmax(self._logits(torch.cat(parts)[-len(tokens) :]), dim=-1)

    def _reserve(self, row: Row) -> None:
        shape = (len(self.layers), 2, self.kv_heads, row.room, self.head_size)
        row.cache = torch.empty(shape, dtype=self.dtype, device=self.device)

    def _read(self, row: Row, ids: list[int], shares: list[Share], *, only_last: bool = False) -> Tensor:
        """Put tokens into a row's cache. (tokens, hidden) before the head, or (1, hidden) of the last token."""
        start, end = row.done, row.done + len(ids)
        mask = None
        if start:
            places = torch.arange(end, device=self.device)
            mask = places[None] <= places[start:, None]

        def attend(layer: int, query: Tensor, pairs: Tensor) -> Tensor:
            cache = row.cache[layer]
            cache[:, :, start:end] = pairs.permute(1, 2, 0, 3)
            keys, values = cache[:, None, :, :end]
            if len(query) == 1:
                # The last token sees all. The heads that share keys are rows of one query.
                grouped = query.view(1, self.kv_heads, -1, self.head_size)
                return functional.scaled_dot_product_attention(grouped, keys, values).reshape(1, -1)
            found = functional.scaled_dot_product_attention(
                query.transpose(0, 1)[None], keys, values, mask, is_causal=mask is None, enable_gqa=True
            )
            return found[0].transpose(0, 1).flatten(1)

        hidden = self._layers(self._embed(ids), self.turns[start:end, None], shares, attend, only_last=only_last)
        row.done = end
        return hidden

    @torch.inference_mode()
    def step(self, rows: Sequence[Row], tokens: Sequence[int]) -> Tensor:
        """As Decoder says."""
        # The last row is repeated until the products need no padding of their own.
        more = padded_rows(len(rows)) - len(rows) if self.head.is_packed else 0
        places = [row.done for row in rows]
        slots = _by_layer([row.cache[:, :, :, row.done] for row in rows])
        keys, values = (_by_layer([row.cache[:, part, None, :, : row.done + 1] for row in rows]) for part in (0, 1))

        def attend(layer: int, query: Tensor, pairs: Tensor) -> Tensor:
            return attend_rows(query, pairs, slots[layer], keys[layer], values[layer])

        hidden = self._embed([*tokens] + [tokens[-1]] * more)
        turns = self.turns[places + places[-1:] * more][:, None]
        shares = shares_of(rows, self.device)
        if shares or None in self.scripted:
            hidden = self._layers(hidden, turns, shares, attend)
        else:
            for number, layer in enumerate(self.scripted):
                hidden = layer(hidden, turns, slots[number], keys[number], values[number])
        for row in rows:
            row.done += 1
        return self._logits(hidden)[: len(rows)]

    def _embed(self, ids: Sequence[int]) -> Tensor:
        return functional.embedding(torch.tensor(ids, device=self.device), self.embeddings).to(self.dtype)

    def _layers(
        self, hidden: Tensor, turns: Tensor, shares: list[Share], attend: Any, *, only_last: bool = False
    ) -> Tensor:
        """All layers for some tokens. `attend(layer, query, pairs)` keeps keys and values and gives the attention.

        `only_last`: of the last layer only the last token's result is wanted; the others end with keys and values.
        """
        for number, layer in enumerate(self.layers):
            x = layer.attention_norm(hidden)
            query, pairs = layer.turn(self._product(f"{number}.qkv", layer.qkv, x, shares), turns)
            if only_last and number == len(self.layers) - 1:
                query, hidden = query[-1:], hidden[-1:]
            x = attend(number, query, pairs)
            hidden = hidden.add_(self._product(f"{number}.out", layer.out, x, shares))
            x = layer.mlp_norm(hidden)
            gate, up = self._product(f"{number}.gate_up", layer.gate_up, x, shares).chunk(2, -1)
            x = functional.silu(gate).mul_(up)
            hidden = hidden.add_(self._product(f"{number}.down", layer.down, x, shares))
        return hidden

    def _product(self, name: str, linear: Linear, x: Tensor, shares: list[Share]) -> Tensor:
        output = linear(x)
        return add_shares(name, x, output, shares) if shares else output

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.head(self.norm(hidden)).float()


_FUSED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def _side_by_side(parts: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one product in place of several of the same input; all have a bias, or none has."""
    weights, biases = zip(*parts, strict=True)
    return torch.cat(weights), None if biases[0] is None else torch.cat(biases)


def _by_layer(views: Sequence[Tensor]) -> list[list[Tensor]]:
    """Of each layer what each row has, from each row's for all layers."""
    return [list(each) for each in zip(*(view.unbind(0) for view in views), strict=True)]


def _layer_bytes(model: Any) -> int:
    """What the layers take in fp32."""
    return sum(4 * parameter.numel() for parameter in model.model.layers.parameters())


def _turns(rotary: Any, context: int) -> Tensor:
    """(context, head size / 2) complex rotations of each place."""
    frequencies = rotary.inv_freq.float()
    angles = torch.outer(torch.arange(context, device=frequencies.device).float(), frequencies)
    return torch.polar(torch.full_like(angles, rotary.attention_scaling), angles)
