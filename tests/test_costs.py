"""Amounts for people, and an amount against its quote."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtuner_kit import costs
from llmtuner_kit.faces import endings
from llmtuner_kit.faces.parts import Table


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
        (2.004, "within the quote"),
        (2.01, "above the quote"),
        (None, "price unknown"),
    ],
)
def test_an_amount_that_is_shown_as_either_end_of_its_quote_is_within_it(amount: float | None, expected: str) -> None:
    assert costs.verdict(amount, costs.Money(1.0, 2.0)) == expected


@given(st.lists(st.floats(0, 50_000) | st.floats(0, 0.02), max_size=12), st.booleans())
def test_who_adds_up_the_lines_of_a_receipt_finds_its_total(amounts: list[float], charged: bool) -> None:
    lines = tuple(costs.Line("job", "ml.g5.xlarge", 1.0, amount, "", "") for amount in amounts)
    card = endings.receipt(costs.Receipt("demo", lines, charged))
    (table,) = card.parts
    assert isinstance(table, Table)

    def read(text: str) -> Decimal:
        return Decimal(text.removeprefix("$").replace(",", ""))

    assert ("nothing to pay" in card.title) is not charged
    column = table.head.index("cost")
    assert read(card.title.rpartition(" ")[2]) == sum(read(row[column]) for row in table.rows)
    # Each line is what 04_monitor and the endpoint's card say of the same amount.
    assert [row[column] for row in table.rows] == [costs.usd(amount) for amount in amounts]


def test_a_total_with_an_unknown_line_is_unknown() -> None:
    lines = tuple(costs.Line("job", "ml.g5.xlarge", 1.0, amount, "", "") for amount in (0.4, None))
    assert costs.usd(costs.Receipt("demo", lines, True).total_usd) == "unknown"
    assert costs.usd(costs.Receipt("demo", (), True).total_usd) == "$0.00"
