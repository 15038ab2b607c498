"""Decoding for T5-like models: the encoder reads a prompt once, the rows of the decoder move forward together.

Layers are transformers' own modules; what is done here is the attention of rows that are at different places, each over
a cache of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from decoders import HookedDecoder, Row, shares_of


class T5Decoder(HookedDecoder):
    """As decoders.Decoder says."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config = model.config
        self.blocks = list(model.decoder.block)
        self.heads, self.head_size = config.num_heads, config.d_kv
        self.start = config.decoder_start_token_id
        # Tied weights of T5 want the last hidden state scaled; newer variants say so themselves.
        self.scale = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
        self.bytes_per_token = 4 * len(self.blocks) * self.heads * self.head_size * 4

    @torch.inference_mode()
    def prefill(self, row: Row) -> Tensor:
        """As Decoder says: encode the prompt, and decode the start token."""
        self.shares = shares_of([row], self.device)
        encoded = self.model.encoder(input_ids=torch.tensor([row.prompt_ids], device=self.device)).last_hidden_state
        crossed = []
        for block in self.blocks:
            attention = block.layer[1].EncDecAttention
            crossed.append((self._heads(attention.k(encoded)), self._heads(attention.v(encoded))))
        room = row.room - len(row.prompt_ids) + 1
        own = torch.empty(
            (len(self.blocks), 2, self.heads, room, self.head_size), dtype=encoded.dtype, device=self.device
        )
        row.cache = (own, crossed)
        return self.step([row], [self.start])[0]

    def _heads(self, x: Tensor) -> Tensor:
        """(1, tokens, inner) -> (1, heads, tokens, head size)."""
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)

    @torch.inference_mode()
    def step(self, rows: Sequence[Row], tokens: Sequence[int]) -> Tensor:
        """As Decoder says."""
        self.shares = shares_of(rows, self.device)
        decoder = self.model.decoder
        hidden = decoder.embed_tokens(torch.tensor(tokens, device=self.device)[:, None])
        first = self.blocks[0].layer[0].SelfAttention
        # The bias of a place depends on its distance only, and on no other row.
        biases = [first.compute_bias(1, row.done + 1, past_seen_tokens=row.done) for row in rows]
        for number, block in enumerate(self.blocks):
            own, cross, feed = block.layer
            x = own.layer_norm(hidden)
            hidden = hidden + self._attend_own(own.SelfAttention, number, x, rows, biases)
            x = cross.layer_norm(hidden)
            hidden = hidden + self._attend_prompt(cross.EncDecAttention, number, x, rows)
            hidden = feed(hidden)
        for row in rows:
            row.done += 1
        return self._logits(decoder.final_layer_norm(hidden))[:, 0].float()

    def _attend_own(self, attention: Any, number: int, x: Tensor, rows: Sequence[Row], biases: list[Tensor]) -> Tensor:
        queries, keys, values = (self._heads(part(x)) for part in (attention.q, attention.k, attention.v))
        found = []
        for index, (row, bias) in enumerate(zip(rows, biases, strict=True)):
            cache = row.cache[0][number]
            cache[0, :, row.done] = keys[index, :, 0]
            cache[1, :, row.done] = values[index, :, 0]
            past = cache[:, None, :, : row.done + 1]
            found.append(
                functional.scaled_dot_product_attention(queries[index][None], past[0], past[1], bias, scale=1.0)
            )
        return attention.o(torch.cat(found).transpose(1, 2).flatten(2))

    def _attend_prompt(self, attention: Any, number: int, x: Tensor, rows: Sequence[Row]) -> Tensor:
        queries = self._heads(attention.q(x))
        found = []
        for index, row in enumerate(rows):
            keys, values = row.cache[1][number]
            found.append(functional.scaled_dot_product_attention(queries[index][None], keys, values, scale=1.0))
        return attention.o(torch.cat(found).transpose(1, 2).flatten(2))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden * self.scale)

    @torch.inference_mode()
    def logprobs(self, prompt_ids: list[int], tokens: list[int]) -> Tensor:
        """As Decoder says, step by step as an answer is made."""
        row = Row(prompt_ids, len(prompt_ids) + len(tokens))
        logits = [self.prefill(row)]
        logits += [self.step([row], [token])[0] for token in tokens[:-1]]
        return torch.log_softmax(torch.stack(logits), dim=-1)
