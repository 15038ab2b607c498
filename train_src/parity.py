"""Does a model archive answer as the trained model did? Probes recorded by the trainer, checked wherever it is loaded.

The trainer writes, for a few prompts, the ids of the prompt, its own greedy answer and the log-probability of every
token of it. Whoever loads the archive computes the same under the archive's template, weights and stop tokens. Merging
an adapter into bf16 weights moves log-probabilities a little (SmolLM2-135M: 0.04 on average, 0.16 at most), so they may
differ by the tolerances below; the likeliest token must be the same wherever the trainer's first choice led the second
by more than `MARGIN`. An adapter merged twice or not at all moves the same probes by 0.26 to 0.56 on average.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from generation import Generator, answer_logprobs

PROBE_TOKENS = 24
MEAN_TOLERANCE = 0.12  # nats, mean over the tokens of a probe
LARGEST_TOLERANCE = 1.0  # nats, any token
MARGIN = 0.5  # nats


class ParityError(Exception):
    """The archive does not answer as the trained model did; the text lists every difference."""


@torch.inference_mode()
def record(
    network: Any, family: str, prompts: Sequence[tuple[list[dict[str, str]], list[int]]], stop_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Probes of the model as it is in memory. `prompts` are conversations with their ids."""
    probes = []
    for messages, prompt_ids in prompts:
        ids = torch.tensor([prompt_ids], device=network.device)
        answer = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                max_new_tokens=PROBE_TOKENS,
                do_sample=False,
                eos_token_id=list(stop_ids),
                pad_token_id=min(stop_ids, default=0),
                decoder_start_token_id=getattr(network.config, "decoder_start_token_id", None),
            ),
        )[0].tolist()
        tokens = answer[1:] if family == "seq2seq" else answer[len(prompt_ids) :]
        # All of them once more in one pass, without the cache: what the check will compute.
        logprobs = answer_logprobs(network, family, prompt_ids, tokens)
        index = torch.tensor(tokens, device=logprobs.device)[:, None]
        own, others = logprobs.gather(1, index)[:, 0], logprobs.scatter(1, index, -torch.inf).amax(-1)
        probes.append(
            {
                "messages": messages,
                "prompt_ids": prompt_ids,
                "tokens": tokens,
                "logprobs": [round(value, 5) for value in own.tolist()],
                "margins": [round(value, 5) for value in (own - others).tolist()],
            }
        )
    return probes


def check(folder: Path, generator: Generator | None = None) -> dict[str, float]:
    """Load the archive as a server does and compare. Returns the differences; raises ParityError when they matter."""
    recorded = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    generator = generator or Generator(folder, may_spread=True)
    problems = []
    if set(recorded["stop_ids"]) != generator.stop_ids:
        problems.append(f"stop tokens are {sorted(generator.stop_ids)}, trained were {recorded['stop_ids']}")
    if generator.dtype != recorded["dtype"]:
        problems.append(f"weights are {generator.dtype}, the archive was written in {recorded['dtype']}")
    worst = mean = 0.0
    for number, probe in enumerate(recorded["probes"], 1):
        if generator.prompt_ids(probe["messages"]) != probe["prompt_ids"]:
            problems.append(f"probe {number}: the chat template or tokenizer gives other prompt ids than in training")
            continue
        logprobs = generator.logprobs(probe["prompt_ids"], probe["tokens"])
        own = logprobs.gather(1, torch.tensor(probe["tokens"], device=logprobs.device)[:, None])[:, 0].cpu()
        differences = (own - torch.tensor(probe["logprobs"])).abs()
        worst, mean = max(worst, float(differences.max())), max(mean, float(differences.mean()))
        if not torch.isfinite(differences).all() or worst > LARGEST_TOLERANCE or mean > MEAN_TOLERANCE:
            problems.append(
                f"probe {number}: log-probabilities differ by {float(differences.mean()):.3f} on average and "
                f"{float(differences.max()):.3f} at most (allowed {MEAN_TOLERANCE} and {LARGEST_TOLERANCE})"
            )
        choices = logprobs.argmax(-1).tolist()
        changed = [
            place
            for place, (ours, theirs, margin) in enumerate(
                zip(choices, probe["tokens"], probe["margins"], strict=True), 1
            )
            if ours != theirs and margin > MARGIN
        ]
        if changed:
            problems.append(f"probe {number}: other greedy token at place {changed[0]}")
    if problems:
        raise ParityError("the archive does not answer as the trained model: " + "; ".join(problems))
    return {"mean_difference": mean, "largest_difference": worst}
