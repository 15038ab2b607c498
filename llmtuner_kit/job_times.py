"""How long a training job takes, part by part: what SageMaker bills besides the training itself; and an endpoint's start.

All of it is modelled but the training's speed; times are billable seconds of each instance, as (low, high).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llmtuner_kit.catalog import BaseModel
from llmtuner_kit.settings import TrainSettings

# Starting the container and loading the libraries, billed from the download on. Modelled.
START_SECONDS = (60.0, 240.0)
# Rates in bytes per second at which weights come from the Hub or S3, and at which an archive is packed and sent. Modelled.
FETCH_RATE = (60e6, 250e6)
PACK_RATE = (25e6, 100e6)
# At which the job itself writes an archive, reads it again to check it and sums it. Modelled.
WRITE_RATE = (100e6, 400e6)
# A token of an answer takes the job this long besides one reading of all weights. Modelled.
_TOKEN_SECONDS = (0.02, 0.06)
_ANSWER_TOKENS, _PROBE_TOKENS, _PROBES = 96, 24, 4
# SageMaker kills a stopping job after this time; what lies in /opt/ml/model then is packed and uploaded, billed too.
KILL_SECONDS = 120
# An endpoint's instance and image, then its server's start beside the weights. Modelled.
_HOST_SECONDS = (150.0, 480.0)
# The trainer looks at the validation rows ten times, less often where that took more than this share of its time.
_VALIDATIONS, _VALIDATION_SHARE = 10, 0.1
# A forward pass costs half of a training token; the trainer counts with a third.
_FORWARD_SHARE, _COUNTED_SHARE = 0.5, 1 / 3


@dataclass(frozen=True)
class Work:
    """What a job has to do: rows and tokens it trains on, tokens it only reads, tokens of its own answers, the longest row.

    `rows` are different ones, `tokens` those of each time that it trains on them.
    `shared_tokens` of an average row's `mean_length` are those that all training rows begin with.
    """

    rows: int
    tokens: int
    forward_tokens: int
    max_length: int
    answer_tokens: int = 0
    shared_tokens: int = 0
    mean_length: float = 0.0

    def spared(self, pass_tokens: int) -> float:
        """Share of the tokens that a pass of that size need not compute, since its rows begin alike."""
        again = 1 - self.mean_length / pass_tokens if self.mean_length < pass_tokens else 0.0
        return again * self.shared_tokens / self.mean_length if self.shared_tokens else 0.0


def work_of(prepared: dict[str, Any], model: BaseModel, settings: TrainSettings) -> Work:
    """The work of a job from the result of 02_prepare."""
    splits = prepared["splits"]
    train = splits["train"]
    mean = train["tokens"] / max(1, train["rows"])
    # As the trainer counts: epochs in rows, of which it trains on one at least; steps go on into further epochs.
    tokens = int(mean * max(1, round(train["rows"] * settings.epochs)))
    if settings.max_steps:
        tokens = settings.max_steps * min(settings.batch_tokens, int(train["tokens"]))
    rows = min(int(train["rows"]), max(1, round(tokens / mean))) if mean else 0
    seen = {name: int((splits.get(name) or {}).get("tokens") or 0) for name in ("validation", "test")}
    affordable = int(_VALIDATION_SHARE * tokens / max(1.0, _COUNTED_SHARE * seen["validation"]))
    forward = max(1, min(_VALIDATIONS, affordable)) * seen["validation"] + 2 * seen["test"]
    # Base and tuned answer all samples in one batch each, and the probes of the archive's check one by one.
    answers = _PROBES * _PROBE_TOKENS + (2 * _ANSWER_TOKENS if seen["test"] and settings.evaluation_samples else 0)
    length = settings.max_length or int(prepared.get("max_length") or 0) or min(2048, model.context)
    shared = int(train.get("shared_tokens") or 0) if model.family == "causal" else 0
    return Work(rows, tokens, forward, length, answers, shared, mean)


def _archive_bytes(model: BaseModel) -> float:
    return 2.0 * model.parameters


def save_seconds(model: BaseModel) -> int:
    """What a job that is stopped by its limit still takes, at most: until it is killed, then to pack and send."""
    return KILL_SECONDS + math.ceil(_archive_bytes(model) / PACK_RATE[0])


def stop_after(model: BaseModel, limit: int) -> int:
    """Seconds of the job's own code after which it must write its model; 0 where that is done in half the time to kill."""
    writing = _archive_bytes(model) / WRITE_RATE[0]
    return max(60, int(limit - START_SECONDS[1] - writing)) if writing > KILL_SECONDS / 2 else 0


def parts(
    model: BaseModel, work: Work, speed: tuple[float, float], reading: tuple[float, float], *, spread: bool
) -> dict[str, tuple[float, float]]:
    """Billable seconds of each instance for each part of the work, (low, high).

    `speed` in tokens a second (slow, fast), `reading` the seconds in which all weights are read once (fast, slow).
    `spread`: over several GPUs, which read them over the network; then the job answers one probe and nothing else.
    """
    answer_tokens = _PROBE_TOKENS if spread else work.answer_tokens
    stored, archive = float(model.stored_bytes * model.parameters), _archive_bytes(model)
    least, most = (
        (
            START_SECONDS[end] + stored / FETCH_RATE[1 - end],
            work.tokens / speed[1 - end],
            _FORWARD_SHARE * work.forward_tokens / speed[1 - end]
            + answer_tokens * (_TOKEN_SECONDS[end] + reading[end]),
            archive / WRITE_RATE[1 - end] + archive / PACK_RATE[1 - end],
        )
        for end in (0, 1)
    )
    return dict(zip(("start", "training", "evaluation", "archive"), zip(least, most, strict=True), strict=True))


def total(parts: dict[str, tuple[float, float]]) -> tuple[float, float]:
    low, high = (sum(ends) for ends in zip(*parts.values(), strict=True))
    return low, high


def endpoint_start(model: BaseModel) -> tuple[float, float]:
    """Seconds until an endpoint serves: instance and image, the archive fetched, unpacked and loaded, (low, high)."""
    weights = _archive_bytes(model)
    low, high = (_HOST_SECONDS[end] + weights / FETCH_RATE[1 - end] + weights / WRITE_RATE[1 - end] for end in (0, 1))
    return low, high
