"""Reading blind: letters drawn by lot and the same each time, votes counted for whom they were, the key behind a click."""

from __future__ import annotations

import re
from typing import Any

import ipywidgets
import pytest

from llmtuner_kit import blind, evaluation, runs
from llmtuner_kit.errors import NotReadyError
from llmtuner_kit.evaluation import Sample
from llmtuner_kit.faces import reading as readings
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.reading import Reading
from llmtuner_kit.workspace import Workspace

SAMPLES = tuple(
    Sample(f"Question {n}?", f"reference {n}", f"from the base {n}", f"from the tuned {n}") for n in range(8)
)
MADE = evaluation.judged("lamp", SAMPLES)


def test_letters_are_drawn_by_lot_and_the_same_each_time() -> None:
    drawn = [blind.order(place, f"What is {place}?") for place in range(200)]
    assert drawn == [blind.order(place, f"What is {place}?") for place in range(200)]
    assert set(drawn) == {("base", "tuned"), ("tuned", "base")}
    assert 70 < drawn.count(("base", "tuned")) < 130


def test_the_draw_is_the_one_that_saved_records_hold() -> None:
    assert [blind.order(place, "Where is the lamp?")[0] for place in range(1, 9)] == [
        "tuned",
        "tuned",
        "tuned",
        "base",
        "base",
        "base",
        "tuned",
        "tuned",
    ]


def test_votes_are_counted_for_whom_they_were() -> None:
    orders: list[blind.Order] = [("base", "tuned"), ("tuned", "base"), ("tuned", "base"), ("base", "tuned")]
    counts = blind.tally(orders, ["B", "A", "no difference", ""])
    assert counts == {"tuned": 2, "base": 0, "no difference": 1}
    assert blind.in_words(counts) == "2 for tuned, 0 for base, 1 without a difference"
    assert blind.in_words(blind.tally(orders, [""] * 4)) == "no votes yet"


def shown(reading: Reading) -> str:
    return str(reading._repr_mimebundle_()["text/plain"])


def test_nothing_before_the_key_says_whose_answer_it_is() -> None:
    text = shown(Reading(MADE))
    before, _, after = text.partition("Which is which")
    assert re.findall(r"from the (base|tuned) \d", before).count("tuned") == len(SAMPLES)
    told = re.sub(r"from the (base|tuned) \d", "", before.split("\n", 1)[1])
    assert "base" not in told
    assert "tuned" not in told
    assert "Verdict: no clear difference" in after


def test_the_key_names_the_letters_that_were_shown() -> None:
    text = shown(Reading(MADE))
    first_answers = re.findall(r"^A +from the (\w+)", text, re.MULTILINE)
    assert re.findall(r"^ +\d +(base|tuned) +(?:base|tuned)", text, re.MULTILINE) == first_answers
    assert len(first_answers) == len(SAMPLES)


def test_the_key_is_folded_in_a_saved_notebook() -> None:
    markup = str(Reading(MADE)._repr_mimebundle_()["text/html"])
    assert markup.count("<details>") == 1
    assert markup.index("<details>") > markup.rindex("reference 7")


def widgets(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The controls of a reading as they are displayed."""
    seen: list[Any] = []
    real = ipywidgets.VBox
    monkeypatch.setattr(ipywidgets, "VBox", lambda children: seen.extend(children) or real(children))
    reading._repr_mimebundle_()
    return seen


def test_votes_change_the_key_and_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[str]] = []
    reading = Reading(MADE, lambda votes: kept.append(list(votes)))
    controls = widgets(reading, monkeypatch)
    buttons = [item for item in controls if isinstance(item, ipywidgets.ToggleButtons)]
    assert [item.value for item in buttons] == [None] * len(SAMPLES)
    buttons[0].value = "A is better"
    buttons[1].value = "no difference"
    assert kept[-1] == ["A", "no difference", *[""] * 6]
    whom = blind.order(1, SAMPLES[0].prompt)[0]
    assert f"1 for {whom}" in re.sub(r"<[^>]+>", "", reading._key.value)


def test_a_vote_that_cannot_be_kept_is_said_and_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(votes: list[str]) -> None:
        raise NotReadyError("S3 does not answer.")

    reading = Reading(MADE, keep)
    button = next(item for item in widgets(reading, monkeypatch) if isinstance(item, ipywidgets.ToggleButtons))
    button.value = "B is better"
    assert "S3 does not answer." in reading._problem.value
    assert reading.votes[0] == "B"


def test_votes_go_into_the_runs_record_beside_the_answers(workspace: Workspace) -> None:
    run = runs.open_run(workspace, "demo", create=True)
    run.save("invoke", result={"samples": [1, 2], "votes": []})
    evaluation.keep_votes(workspace, "demo", ["A", ""])
    assert runs.open_run(workspace, "demo").result("invoke") == {"samples": [1, 2], "votes": ["A", ""]}


def test_the_report_names_who_answered_and_counts_the_votes() -> None:
    text = repr(Card("", parts=readings.named(SAMPLES, ["A", *[""] * (len(SAMPLES) - 1)])))
    assert re.findall(r"^base +from the (\w+)", text, re.MULTILINE) == ["base"] * len(SAMPLES)
    assert re.findall(r"^tuned +from the (\w+)", text, re.MULTILINE) == ["tuned"] * len(SAMPLES)
    whom = blind.order(1, SAMPLES[0].prompt)[0]
    assert f"1 for {whom}" in text
    assert "Votes" not in repr(Card("", parts=readings.named(SAMPLES)))
