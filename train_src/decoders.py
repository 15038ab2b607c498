"""What answers tokens: a decoder holds a model's weights and moves the rows of a batch forward by a token.

Each row has a cache of its own, so that rows of any length share every matrix product, join and leave at any step, and
give the same answer in any company. `Decoder` is the contract; `ModuleDecoder` keeps it for every causal model that
transformers loads, a row at a time. llama.py and t5.py keep it for their families in joint steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from adapters import Adapter, Lora, Share, add_shares, bind
from linears import Linear, pack_linears
from prefixes import Prefixes

Shares = tuple[tuple[Adapter, float], ...]  # adapters of a row, each with its sign


@dataclass(eq=False)
class Row:
    """One answer in the making.

    `room` is the most tokens of prompt and answer; `done` counts those in the cache, `known` those of the prompt that
    came from an earlier one.
    """

    prompt_ids: list[int]
    room: int
    shares: Shares = ()
    done: int = 0
    known: int = 0
    cache: Any = field(default=None, repr=False)


class Decoder(Protocol):
    """A model that decodes. Logits and log-probabilities are fp32."""

    device: torch.device
    shapes: dict[str, tuple[int, int]]
    bytes_per_token: int
    prefixes: Prefixes  # what it remembers of prompts; stays empty where it cannot

    def bind(self, name: str, loras: Mapping[str, Lora]) -> Adapter:
        """The adapter in this decoder's form."""

    def prefill(self, row: Row) -> Tensor | None:
        """Read the next part of the prompt. Logits (vocabulary,) after its last token, None before."""

    def step(self, rows: Sequence[Row], tokens: Sequence[int]) -> Tensor:
        """Give each row its next token. Logits (rows, vocabulary)."""

    def logprobs(self, prompt_ids: list[int], tokens: list[int]) -> Tensor:
        """(tokens, vocabulary) log-probabilities, each token given the true ones before it."""


def shares_of(rows: Sequence[Row], device: torch.device) -> list[Share]:
    """The adapters of a batch, each once, with the rows that want it."""
    wanted: dict[tuple[int, float], tuple[Adapter, list[int]]] = {}
    for number, row in enumerate(rows):
        for adapter, sign in row.shares:
            wanted.setdefault((id(adapter), sign), (adapter, []))[1].append(number)
    return [
        Share(adapter, sign, None if len(numbers) == len(rows) else torch.tensor(numbers, device=device))
        for (_, sign), (adapter, numbers) in wanted.items()
    ]


def layer_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of each linear layer."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Linear)
    }


class HookedDecoder:
    """What decoders over transformers' own modules share: packed layers, and adapters added by hooks on them."""

    def __init__(self, model: Any, *, packs: bool = True) -> None:
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.shapes = layer_shapes(model)
        if packs:
            pack_linears(model)
        self.model = model
        self.shares: list[Share] = []
        self.prefixes = Prefixes(1)
        self._hooked: set[str] = set()

    def bind(self, name: str, loras: Mapping[str, Lora]) -> Adapter:
        """As Decoder says."""
        for layer in set(loras) - self._hooked:
            self.model.get_submodule(layer).register_forward_hook(self._hook(layer))
            self._hooked.add(layer)
        return Adapter(name, {layer: bind(lora, self.dtype, self.device) for layer, lora in loras.items()})

    def _hook(self, layer: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return add_shares(layer, inputs[0], output, self.shares) if self.shares else output

        return add


class ModuleDecoder(HookedDecoder):
    """Any causal model through its own forward pass, one row after another."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        row = Row([0], 1)
        self.prefill(row)
        # Seen and not reckoned: heads may differ from layer to layer, and some layers keep none of their own.
        kept = [tensor for layer in row.cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
        self.bytes_per_token = sum(tensor.nbytes for tensor in kept)

    @torch.inference_mode()
    def prefill(self, row: Row) -> Tensor | None:
        """As Decoder says; the whole prompt at once."""
        row.cache = DynamicCache(config=self.model.config)
        row.done = len(row.prompt_ids)
        return self._forward(row, row.prompt_ids)

    @torch.inference_mode()
    def step(self, rows: Sequence[Row], tokens: Sequence[int]) -> Tensor:
        """As Decoder says."""
        logits = []
        for row, token in zip(rows, tokens, strict=True):
            logits.append(self._forward(row, [token]))
            row.done += 1
        return torch.stack(logits)

    def _forward(self, row: Row, tokens: list[int]) -> Tensor:
        self.shares = shares_of([row], self.device)
        ids = torch.tensor([tokens], device=self.device)
        found = self.model(input_ids=ids, past_key_values=row.cache, use_cache=True, logits_to_keep=1)
        return found.logits[0, -1].float()

    @torch.inference_mode()
    def logprobs(self, prompt_ids: list[int], tokens: list[int]) -> Tensor:
        """As Decoder says."""
        self.shares = []
        ids = torch.tensor([[*prompt_ids, *tokens[:-1]]], device=self.device)
        logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=len(tokens)).logits[0]
        return torch.log_softmax(logits.float(), dim=-1)
