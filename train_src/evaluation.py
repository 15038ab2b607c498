"""How good the model is on rows it does not train on: losses row by row, and a few answers to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data import Row
from encoding import Encoder
from group import Group
from metrics import perplexity
from model import TunedModel
from sampler import passes_of
from stopping import Stop

ANSWER_TOKENS = 96


@dataclass(frozen=True)
class Score:
    """Sums over the trained tokens of each row, in the order of the rows."""

    losses: list[float]
    correct: list[int]
    labels: list[int]

    @property
    def loss(self) -> float:
        """Mean loss per trained token."""
        return sum(self.losses) / max(sum(self.labels), 1)

    @property
    def token_accuracy(self) -> float:
        """Share of trained tokens that were the model's first choice."""
        return sum(self.correct) / max(sum(self.labels), 1)

    def summary(self) -> dict[str, float]:
        """The three figures of evaluation.json."""
        return {"loss": self.loss, "perplexity": perplexity(self.loss), "token_accuracy": self.token_accuracy}


class Interrupted(Exception):  # noqa: N818 (no error)
    """The job is to end: there is no time for the rest of the rows. All processes raise it together."""


def score(
    model: TunedModel, rows: Sequence[Row], micro_batch_tokens: int, group: Group, stop: Stop | None = None
) -> Score:
    """Evaluate the model as it is now, each process its share. The result keeps the order of `rows`.

    Raises Interrupted when `stop` is asked for. Processes that gather each other's weights go on to the end.
    """
    # Rows of like length go together, which wastes least padding where there is any.
    order = sorted(range(len(rows)), key=lambda number: (len(rows[number]), number))
    passes = passes_of(
        rows, order, micro_batch_tokens, group.rank, group.size, equal=model.sharded, is_padded=model.pads
    )
    merged = Score([0.0] * len(rows), [0] * len(rows), [row.labels for row in rows])
    shares = group.gather(_sums(model, rows, passes, None if model.sharded else stop))
    if any(share is None for share in shares):
        raise Interrupted
    for share in shares:
        for number, (loss, hits) in share.items():
            merged.losses[number], merged.correct[number] = loss, hits
    return merged


def _sums(
    model: TunedModel, rows: Sequence[Row], passes: Sequence[tuple[list[int], bool]], stop: Stop | None
) -> dict[int, tuple[float, int]] | None:
    """(sum of losses, right tokens) of each row in the passes that count; None when there was no time for all."""
    found: dict[int, tuple[float, int]] = {}
    with model.evaluating():
        for numbers, counts in passes:
            if stop and stop.asked:
                break
            batch = model.batch([rows[number] for number in numbers])
            per_label, right = model.losses(batch)
            owners = batch.owners.to(per_label.device)
            sums = torch.zeros(len(numbers), dtype=torch.float64, device=per_label.device)
            hits = torch.zeros(len(numbers), dtype=torch.int64, device=per_label.device)
            sums.index_add_(0, owners, per_label.double())
            hits.index_add_(0, owners, right.long())
            if counts:
                found |= dict(zip(numbers, zip(sums.tolist(), hits.tolist(), strict=True), strict=True))
    return None if stop and stop.asked else found


def answers(
    model: TunedModel,
    tokenizer: Any,
    encoder: Encoder,
    prompts: Sequence[list[dict[str, str]]],
    stop_ids: set[int],
    most_tokens: int,
) -> list[str]:
    """The greedy answer to each prompt (a conversation without its answer).

    As many are answered together as have `most_tokens` with their answers, padding counted; at least one.
    """
    ids = [encoder.prompt_ids(messages) for messages in prompts]
    found: list[str] = []
    with model.generating() as network:
        while len(found) < len(ids):
            batch = _next_prompts(ids[len(found) :], most_tokens)
            found += _answered(model, network, tokenizer, batch, stop_ids)
    return found


def _next_prompts(ids: list[list[int]], most_tokens: int) -> list[list[int]]:
    longest = 0
    for count, prompt in enumerate(ids):
        longest = max(longest, len(prompt) + ANSWER_TOKENS)
        if count and (count + 1) * longest > most_tokens:
            return ids[:count]
    return ids


def _answered(model: TunedModel, network: Any, tokenizer: Any, ids: list[list[int]], stop_ids: set[int]) -> list[str]:
    side = "right" if model.family == "seq2seq" else "left"
    batch = tokenizer.pad({"input_ids": ids}, padding=True, padding_side=side, return_tensors="pt").to(model.device)
    output = network.generate(
        **batch,
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    start = 0 if model.family == "seq2seq" else batch["input_ids"].shape[1]
    return [text.strip() for text in tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)]
