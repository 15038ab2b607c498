"""How long jobs take, part by part, at the size of 7B and 13B models."""

from __future__ import annotations

import pytest

from llmtuner_kit import catalog, job_times, quotes
from llmtuner_kit.settings import TrainSettings

MINUTE = 60


def quoted(model_id: str, train: int = 1_000_000, held_out: int = 125_000, **asked: object) -> quotes.Quote:
    """The quote of a job on the model's own instance type."""
    model = catalog.base_model(model_id)
    splits = {
        name: {"rows": count // 500, "tokens": count}
        for name, count in (("train", train), ("validation", held_out), ("test", held_out))
    }
    settings = TrainSettings.model_validate({"model_id": model_id, "instance_type": model.instance, **asked})
    work = job_times.work_of({"splits": splits, "max_length": 512}, model, settings)
    return quotes.make_quote(model, work, settings, "us-east-1", charged=True)


def test_the_parts_of_a_quote_are_all_of_it_and_grow_with_the_model() -> None:
    small, large = quoted("smollm2-1.7b-instruct"), quoted("llama-2-13b")
    for made in (small, large):
        for end in (0, 1):
            assert sum(part[end] for part in made.parts.values()) == pytest.approx(made.seconds[end])
    assert all(large.parts[part] > small.parts[part] for part in ("start", "archive"))
    # 26 GB written and checked at 100 to 400 MB/s, packed and sent at 25 to 100.
    assert large.parts["archive"] == (pytest.approx(325, rel=0.01), pytest.approx(1302, rel=0.01))


def test_what_the_hub_keeps_in_fp32_takes_twice_as_long_to_fetch() -> None:
    model = catalog.base_model("flan-t5-xl")
    low, high = quoted("flan-t5-xl").parts["start"]
    assert (low, high) == (
        pytest.approx(60 + 4 * model.parameters / 250e6),
        pytest.approx(240 + 4 * model.parameters / 60e6),
    )


def test_generated_answers_are_counted_but_where_spread_weights_allow_none() -> None:
    alone, spread = (
        [
            quoted("llama-2-13b", instance_type=instance_type, evaluation_samples=count).parts["evaluation"]
            for count in (0, 3)
        ]
        for instance_type in ("ml.g6e.2xlarge", "ml.g5.12xlarge")
    )
    assert alone[0] < alone[1]
    assert spread[0] == spread[1]


@pytest.mark.parametrize(("held_out", "evaluations"), [(1_000, 10), (50_000, 6), (125_000, 2), (4_000_000, 1)])
def test_validation_is_counted_as_often_as_the_trainer_affords_it(held_out: int, evaluations: int) -> None:
    model = catalog.base_model("llama-2-7b")
    splits = {"train": {"rows": 9, "tokens": 1_000_000}, "validation": {"rows": 9, "tokens": held_out}}
    work = job_times.work_of({"splits": splits}, model, TrainSettings())
    assert work.forward_tokens == evaluations * held_out


@pytest.mark.parametrize(
    ("asked", "rows", "tokens"),
    [
        ({}, 24, 2400),
        ({"epochs": 0.1}, 2, 200),
        ({"epochs": 0.001}, 1, 100),
        ({"epochs": 2.5}, 24, 6000),
        ({"max_steps": 3, "batch_tokens": 400}, 12, 1200),
        ({"max_steps": 10, "batch_tokens": 400}, 24, 4000),  # into a second epoch
        ({"max_steps": 2}, 24, 4800),  # a step never has a row twice
    ],
)
def test_a_quote_counts_the_rows_and_tokens_that_are_trained_on(
    asked: dict[str, float], rows: int, tokens: int
) -> None:
    splits = {"train": {"rows": 24, "tokens": 2400}}
    settings = TrainSettings.model_validate(asked)
    work = job_times.work_of({"splits": splits}, catalog.base_model("llama-2-7b"), settings)
    assert (work.rows, work.tokens) == (rows, tokens)


def test_a_job_that_cannot_write_its_model_while_it_is_being_stopped_ends_by_itself_in_time() -> None:
    made = quoted("llama-2-13b", budget_usd=5.0)
    writing = 2 * catalog.base_model("llama-2-13b").parameters / job_times.WRITE_RATE[0]
    assert made.stop_after_seconds == int(made.max_runtime_seconds - 4 * MINUTE - writing)
    assert made.usd_at_most == pytest.approx(5, abs=0.01)
    assert quoted("smollm2-1.7b-instruct", budget_usd=5.0).stop_after_seconds == 0
