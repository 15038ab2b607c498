"""Amounts for people, and an amount against its quote."""

from __future__ import annotations

import pytest

from llmtuner_kit import costs


def test_an_amount_that_is_needed_is_rounded_up_and_whole_cents_stay() -> None:
    shown = [costs.usd_up(amount) for amount in (1.1, 0.29, 1.101, 0.001, None)]
    assert shown == ["$1.10", "$0.29", "$1.11", "$0.01", "unknown"]


def test_an_amount_has_more_digits_only_below_a_cent() -> None:
    assert [costs.usd(amount) for amount in (0, 0.00123, 0.01, 1234.5)] == ["$0.00", "$0.0012", "$0.01", "$1,234.50"]


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0.99, "below the quote"),
        (1.0, "within the quote"),
        (2.0, "within the quote"),
        (2.01, "above the quote"),
        (None, "price unknown"),
    ],
)
def test_an_amount_at_either_end_of_its_quote_is_within_it(amount: float | None, expected: str) -> None:
    assert costs.verdict(amount, costs.Money(1.0, 2.0)) == expected
