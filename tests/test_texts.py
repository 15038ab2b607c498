"""Durations, sizes and answers as people read them."""

from __future__ import annotations

import pytest

from llmtuner_kit.faces import texts


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min 0 s"), (95, "1 min 35 s"), (3700, "1 h 1 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert texts.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 bytes"), (1_400_000, "1.4 MB"), (2.5e12, "2500.0 GB")])
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert texts.size(count) == text


def test_an_answer_of_white_space_takes_no_room() -> None:
    assert texts.visible(" \n\n") == "(nothing but white space)"
    assert texts.visible(" a\n b \n") == "a\n b"
