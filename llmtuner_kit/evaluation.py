"""Base against tuned: on the held-out rows inside the job, and side by side at the endpoint.

At the endpoint both are asked the same questions in an order drawn by lot, and scored by one measure that does not
know whose answer it reads.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

from llmtuner_kit import artifacts, blind, inference, runs, training
from llmtuner_kit.errors import KitError, NotFoundError
from llmtuner_kit.settings import InvokeSettings
from llmtuner_kit.workspace import Workspace

RESAMPLES = 2000
MOST_RESAMPLED = 1000  # rows; with more the mean is as good as normal, and resampling them takes minutes
FEWEST_FOR_A_VERDICT = 6
ASKED_AT_ONCE = 4
_ALIKE = 50  # held-out rows that must agree on a system message


@dataclass(frozen=True)
class Scores:
    """Mean loss per answer token (nats), its exponential, share of tokens predicted right."""

    loss: float
    perplexity: float
    token_accuracy: float


@dataclass(frozen=True)
class Sample:
    """One held-out prompt with its reference and both answers."""

    prompt: str
    reference: str
    base: str
    tuned: str


@dataclass(frozen=True)
class HeldOut:
    """What the job measured on rows it never trained on.

    Attributes:
        change: relative change of perplexity, tuned against base (-0.5: half).
        interval: 95 % interval of the mean loss difference (tuned - base): bootstrap, rows resampled in pairs.
        verdict: "better", "no clear difference" or "worse".
    """

    job_name: str
    rows: int
    tokens: int
    base: Scores
    tuned: Scores
    change: float
    interval: tuple[float, float]
    verdict: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Comparison:
    """Prompts answered by base and tuned at the endpoint.

    Attributes:
        base, tuned: mean agreement with the answers in the data, 0 to 1 (`agreement`); NaN when nothing was asked.
        interval: 95 % bootstrap interval of the mean difference (tuned - base), questions resampled in pairs.
        verdict: "better", "no clear difference" or "worse".
    """

    endpoint_name: str
    samples: tuple[Sample, ...]
    note: str
    base: float = math.nan
    tuned: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    verdict: str = "no clear difference"


def held_out(workspace: Workspace, job_name: str) -> HeldOut:
    """Read a job's evaluation; raises NotFoundError when the dataset had no test rows."""
    training.require_own_job(workspace, job_name)
    found = json.loads(artifacts.output_file(workspace, job_name, "evaluation.json"))
    if not found.get("rows"):
        raise NotFoundError(f"Training job {job_name} had no held-out rows.", fix="prepare the data with a test_share")
    base, tuned = (
        Scores(**{key: found[who][key] for key in ("loss", "perplexity", "token_accuracy")})
        for who in ("base", "tuned")
    )
    interval = paired_interval(found["per_row"])
    return HeldOut(
        job_name=job_name,
        rows=found["rows"],
        tokens=found["tokens"],
        base=base,
        tuned=tuned,
        change=tuned.perplexity / base.perplexity - 1 if math.isfinite(base.perplexity) else math.nan,
        interval=interval,
        verdict=verdict(interval, found["rows"]),
        samples=tuple(_sample(item) for item in found.get("samples", [])),
    )


def _sample(item: dict[str, Any]) -> Sample:
    prompt = item["prompt"]
    if isinstance(prompt, list):
        prompt = prompt[-1]["content"]
    return Sample(prompt, item["reference"], item["base"], item["tuned"])


def paired_interval(rows: list[dict[str, float]], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the token-weighted mean loss difference (tuned - base), by resampling rows.

    Of many rows it is the mean and its standard error, which says the same.
    """
    if not rows:
        return (math.nan, math.nan)
    pairs = [(row["tokens"], row["tokens"] * (row["tuned_loss"] - row["base_loss"])) for row in rows]
    if len(pairs) > MOST_RESAMPLED:
        return _by_standard_error(pairs)
    draw = random.Random(seed)  # noqa: S311 - statistics, not secrets
    means = []
    for _ in range(RESAMPLES):
        chosen = draw.choices(pairs, k=len(pairs))
        tokens = sum(item[0] for item in chosen)
        means.append(sum(item[1] for item in chosen) / tokens if tokens else 0.0)
    means.sort()
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]


def _by_standard_error(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The interval of the ratio of the sums of (weight, weighted difference), from each pair's share in its variance."""
    weights = sum(weight for weight, _ in pairs)
    mean = sum(difference for _, difference in pairs) / max(weights, 1)
    error = math.sqrt(sum((difference - mean * weight) ** 2 for weight, difference in pairs)) / max(weights, 1)
    return mean - 1.96 * error, mean + 1.96 * error


def verdict(interval: tuple[float, float], count: int) -> str:
    """Better, worse, or no clear difference: whether the interval of the loss difference leaves out zero.

    Fewer than six pairs cannot tell: even if all agree, one in 2^5 does so by chance.
    """
    low, high = interval
    if count < FEWEST_FOR_A_VERDICT:
        return "no clear difference"
    if high < 0:
        return "better"
    return "worse" if low > 0 else "no clear difference"


def agreement(answer: str, reference: str) -> float:
    """Word-level F1 of an answer and the reference: 1 for the same words, 0 for none in common."""
    ours, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, reference))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def judged(endpoint_name: str, samples: tuple[Sample, ...]) -> Comparison:
    """The comparison that some answers make. Pure."""
    if not samples:
        return Comparison(endpoint_name, (), "there are no held-out rows to ask")
    pairs = [(agreement(item.base, item.reference), agreement(item.tuned, item.reference)) for item in samples]
    # A loss is better when lower, an agreement when higher: one interval serves both with its sign turned.
    low, high = paired_interval([{"tokens": 1, "base_loss": -base, "tuned_loss": -tuned} for base, tuned in pairs])
    base, tuned = (sum(values) / len(values) for values in zip(*pairs, strict=True))
    return Comparison(endpoint_name, samples, "", base, tuned, (-high, -low), verdict((low, high), len(samples)))


def test_rows(workspace: Workspace, run_name: str, count: int) -> list[dict[str, Any]]:
    """Some held-out rows of the run's dataset, from all over the file."""
    splits = runs.open_run(workspace, run_name).result("prepare")["splits"]
    uri = (splits.get("test") or {}).get("uri", "")
    if not uri or not splits["test"]["rows"]:
        return []
    key = uri.removeprefix(f"s3://{workspace.bucket}/")
    client = workspace.aws.client("s3")
    rows = [json.loads(line) for line in client.get_object(Bucket=workspace.bucket, Key=key)["Body"].iter_lines()]
    return spread(rows, count)


def spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """So many of the rows at equal distances, or all where there are no more."""
    return rows[:: max(1, len(rows) // max(1, count))][:count]


def prompt_of(row: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
    """(messages before the last answer, the last answer) of a dataset row."""
    if "messages" in row:
        last = max(n for n, item in enumerate(row["messages"]) if item["role"] == "assistant")
        return row["messages"][:last], row["messages"][last]["content"]
    asked = inference.user_message(row["instruction"], row.get("input", ""))
    return [{"role": "user", "content": asked}], row["output"]


def system_message(workspace: Workspace, run_name: str) -> str:
    """The system message that held-out rows from all over the run's dataset begin with; empty where they do not agree."""
    rows = test_rows(workspace, run_name, _ALIKE)
    first = {tuple(row["messages"][0].items()) if "messages" in row else () for row in rows}
    message = dict(first.pop()) if len(first) == 1 else {}
    return str(message["content"]) if message.get("role") == "system" else ""


def keep_votes(workspace: Workspace, run_name: str, votes: list[str]) -> None:
    """Put a reader's votes (`A`, `B`, `no difference` or empty) beside the answers they are about."""
    run = runs.open_run(workspace, run_name)
    run.save("invoke", result=run.result("invoke") | {"votes": votes})


def _answer(
    workspace: Workspace,
    target: inference.Deployed,
    messages: list[dict[str, str]],
    settings: InvokeSettings,
    model: str = "",
) -> str:
    """A greedy answer, collected from its stream where it has one: a plain invocation ends after 60 s."""
    parts = inference.stream(workspace, target, messages, max_new_tokens=settings.max_new_tokens, model=model)
    return "".join(parts)


def _answers(
    workspace: Workspace,
    target: inference.Deployed,
    prompts: list[list[dict[str, str]]],
    settings: InvokeSettings,
    progress: artifacts.Progress | None,
) -> dict[tuple[int, str], str]:
    """Base's and tuned's answer to each prompt, asked in an order drawn by lot, several at once."""
    tell = progress or (lambda *_: None)
    asked = list(itertools.product(range(len(prompts)), ("base", "tuned")))
    random.Random(0).shuffle(asked)  # noqa: S311 - an order, not a secret
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        waiting = {
            (number, who): pool.submit(_answer, workspace, target, prompts[number], settings, model=who)
            for number, who in asked
        }
        try:
            tell("base and tuned model", 0, len(waiting))
            for done, answer in enumerate(as_completed(waiting.values()), 1):
                answer.result()  # raises at once what went wrong
                tell("base and tuned model", done, len(waiting))
            return {each: answer.result() for each, answer in waiting.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def compare(workspace: Workspace, settings: InvokeSettings, progress: artifacts.Progress | None = None) -> Comparison:
    """Held-out prompts answered by base and tuned at the endpoint, greedy.

    Where the server holds the tuned weights only, the base's answers are those of the job's own evaluation.
    `progress`: called with what, answers done and answers asked for.
    """
    target = inference.deployed(workspace, settings.run_name, settings.endpoint_name)
    inference.require_serving(workspace, target.endpoint_name)
    rows = [prompt_of(row) for row in test_rows(workspace, settings.run_name, settings.compare)]
    try:
        answers = _answers(workspace, target, [messages for messages, _ in rows], settings, progress)
    except KitError as error:
        job = runs.open_run(workspace, settings.run_name).result("deploy")["job_name"]
        note = f"This endpoint serves the tuned model only ({error.problem}); these are the job's own held-out answers."
        return Comparison(target.endpoint_name, held_out(workspace, job).samples[: settings.compare], note)
    samples = [
        Sample(messages[-1]["content"], reference, answers[number, "base"], answers[number, "tuned"])
        for number, (messages, reference) in enumerate(rows)
    ]
    run = runs.open_run(workspace, settings.run_name)
    made = judged(target.endpoint_name, tuple(samples))
    letters = [blind.order(place, item.prompt) for place, item in enumerate(samples, 1)]
    result = {
        "endpoint_name": target.endpoint_name,
        "samples": [asdict(item) for item in samples],
        "a_and_b": letters,
        "votes": [],
        "verdict": made.verdict,
        "interval": None if math.isnan(made.tuned) else made.interval,
    }
    run.save("invoke", settings=settings.model_dump(), result=result)
    return made
