"""How many steps a job has, the learning rate of each, and how often is logged and evaluated."""

import pytest
from test_train_parts import rows_of

from hyperparameters import Hyperparameters
from schedule import Schedule


@pytest.mark.parametrize(
    ("lr_scheduler", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8536, 0.5, 0.1464]),
    ],
)
def test_the_rate_warms_up_and_then_follows_its_curve(lr_scheduler: str, rates: list[float]) -> None:
    settings = Hyperparameters(max_steps=6, warmup_ratio=0.3, learning_rate=1.0, lr_scheduler=lr_scheduler)
    schedule = Schedule(rows_of([50]), [], settings)
    assert schedule.warmup_steps == 2
    assert [schedule.learning_rate(step) for step in range(6)] == pytest.approx(rates, abs=1e-4)


@pytest.mark.parametrize(
    ("validation", "steps"),
    [
        ([], 100),
        ([300], 100),
        ([3000] * 50, 200),  # 50,000 tokens' time each: a tenth of the job's 2.5 million are five of them
        ([3000] * 5000, 1000),  # once, whatever it takes
    ],
)
def test_evaluations_take_no_more_than_a_tenth_of_the_time(validation: list[int], steps: int) -> None:
    settings = Hyperparameters(max_steps=1000, batch_tokens=2500)
    assert Schedule(rows_of([50] * 100), rows_of(validation), settings).evaluation_steps == steps


def test_what_was_set_is_kept_to() -> None:
    schedule = Schedule(rows_of([50]), rows_of([50]), Hyperparameters(max_steps=1000, log_steps=7, eval_steps=9))
    assert (schedule.log_steps, schedule.evaluation_steps) == (7, 9)
    assert Schedule(rows_of([50]), [], Hyperparameters(max_steps=1000)).log_steps == 5
