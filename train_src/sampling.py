"""Picking the next token of each row of a batch, each row by its own rules and its own chance."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_TEMPERATURE = 1e-5  # below, logits divided by it leave the range of a float: the likeliest token is taken


@dataclass(frozen=True)
class Sampling:
    """How to pick tokens and when to stop. Temperature 0 takes the likeliest token each time."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Chooser:
    """One row's rules, its chance (repeatable with a seed) and, where repetition costs, the tokens it has seen."""

    def __init__(self, sampling: Sampling, seen: Sequence[int]) -> None:
        self.sampling = sampling
        self.chance = random.Random(sampling.seed)  # noqa: S311 (answers, not secrets)
        self.seen = set(seen) if sampling.repetition_penalty != 1.0 else None


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[tuple[int, float]]:
    """The next token of each row of (rows, vocabulary), with its log-probability under the model as it is."""
    logprobs = torch.log_softmax(logits, -1)
    for row, chooser in enumerate(choosers):
        if chooser.seen:
            _penalise(logits[row], chooser.seen, chooser.sampling.repetition_penalty)
    tokens = logits.argmax(-1)
    drawn = [row for row, chooser in enumerate(choosers) if chooser.sampling.temperature >= LEAST_TEMPERATURE]
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [choosers[row] for row in drawn])
    picked = tokens.tolist()
    for token, chooser in zip(picked, choosers, strict=True):
        if chooser.seen is not None:
            chooser.seen.add(token)
    return list(zip(picked, logprobs.gather(1, tokens[:, None])[:, 0].tolist(), strict=True))


def _penalise(logits: Tensor, seen: set[int], factor: float) -> None:
    index = torch.tensor(sorted(seen), device=logits.device)
    values = logits[index]
    logits[index] = torch.where(values > 0, values / factor, values * factor)


def _draw(logits: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    """Tokens drawn from (rows, vocabulary): what top_k and top_p leave, at each row's temperature."""
    rules = [chooser.sampling for chooser in choosers]
    # A chance of exactly 1 would fall behind the last token.
    chances = torch.tensor([[chooser.chance.random()] for chooser in choosers], device=logits.device)
    values = logits / torch.tensor([[rule.temperature] for rule in rules], device=logits.device)
    if all(rule.top_p >= 1 and not 0 < rule.top_k < values.shape[1] for rule in rules):
        return _at(values.softmax(-1), chances)
    ordered, order = values.sort(dim=-1, descending=True, stable=True)
    for row, rule in enumerate(rules):
        if 0 < rule.top_k < ordered.shape[1]:
            ordered[row, rule.top_k :] = -math.inf
    shares = ordered.softmax(-1)
    before = shares.cumsum(-1) - shares
    shares[before >= torch.tensor([[rule.top_p] for rule in rules], device=logits.device)] = 0
    # The likeliest token stays whatever top_p says.
    shares[:, 0].clamp_(min=torch.finfo(shares.dtype).tiny)
    return order.gather(1, _at(shares, chances)[:, None])[:, 0]


def _at(shares: Tensor, chances: Tensor) -> Tensor:
    """For each row the first token whose cumulated share passes its chance of the whole."""
    sums = shares.double().cumsum(-1)
    found = torch.searchsorted(sums, chances.double() * sums[:, -1:], right=True)[:, 0]
    return found.clamp(max=shares.shape[1] - 1)
