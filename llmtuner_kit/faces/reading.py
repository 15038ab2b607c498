"""Base and tuned answers to read blind: A and B under each question, a vote for who likes, the key behind a click."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llmtuner_kit import blind, evaluation
from llmtuner_kit.errors import KitError
from llmtuner_kit.evaluation import Comparison, Sample
from llmtuner_kit.faces import forms
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.parts import Folded, Part, Table
from llmtuner_kit.faces.texts import visible
from llmtuner_kit.workspace import Workspace

TITLE = "Two answers to each question, one from the base model and one from the tuned one"
KEY = "Which is which, and what was measured"
VOTES = ("A is better", "B is better", blind.NEITHER)


class Reading:
    """A comparison in a notebook: headless and saved it is a card, in a live notebook every question takes a vote."""

    def __init__(self, made: Comparison, keep: Callable[[list[str]], None] | None = None) -> None:
        self._made, self._keep = made, keep
        self.votes = ["" for _ in made.samples]
        self._key = forms.text(Card("", parts=[self._folded()])._repr_html_())
        self._problem = forms.text("")

    def card(self) -> Card:
        """The comparison, blind, with its key folded at the end."""
        return Card(TITLE, parts=[*self._notes(), *questions(self._made.samples), self._folded()])

    def _notes(self) -> list[str]:
        return [self._made.note] if self._made.note else []

    def _folded(self) -> Folded:
        found = letters(self._made.samples, self.votes)
        return Folded(found.title, [*found.parts, *measured(self._made)])

    def _vote(self, place: int, said: str) -> None:
        self.votes[place] = blind.LETTERS[VOTES.index(said)] if said != blind.NEITHER else said
        self._key.value = Card("", parts=[self._folded()])._repr_html_()
        try:
            if self._keep:
                self._keep(self.votes)
        except KitError as error:
            self._problem.value = Card(f"The vote is not in the run's record: {error}")._repr_html_()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        parts: list[Any] = [forms.text(Card(TITLE, parts=self._notes())._repr_html_())]
        for place, table in enumerate(questions(self._made.samples)):
            parts.append(forms.text(Card("", parts=[table])._repr_html_()))
            parts.append(forms.choice(f"Your vote on {place + 1}", VOTES, partial(self._vote, place)))
        return forms.stacked([*parts, self._key, self._problem], self.card(), options)


def of(workspace: Workspace, run_name: str, made: Comparison) -> Reading:
    """A comparison to read; votes go into the run's record."""
    return Reading(made, lambda votes: evaluation.keep_votes(workspace, run_name, votes))


def questions(samples: Sequence[Sample], *, named: bool = False) -> list[Table]:
    """The answers under each question, one below the other, which reads better than columns.

    Args:
        named: say who gave which answer, base first; else they are A and B.
    """
    return [
        Table(
            f"Question {place}: {item.prompt.strip()}",
            ("who", "answer"),
            [
                *(
                    (who if named else letter, visible(getattr(item, who)))
                    for letter, who in zip(
                        blind.LETTERS, ("base", "tuned") if named else _order(place, item), strict=True
                    )
                ),
                ("in the data", visible(item.reference)),
            ],
        )
        for place, item in enumerate(samples, 1)
    ]


def _order(place: int, item: Sample) -> blind.Order:
    return blind.order(place, item.prompt)


def blinded(samples: Sequence[Sample]) -> list[Part]:
    """Questions with their answers, and the key at the end; nothing where there are none."""
    return [*questions(samples), letters(samples)] if samples else []


def named(samples: Sequence[Sample], votes: Sequence[str] = ()) -> list[Part]:
    """Questions with who answered what, for those who have read them or never will; and the votes where there are any."""
    parts: list[Part] = [*questions(samples, named=True)]
    if any(votes):
        orders = [_order(place, item) for place, item in enumerate(samples, 1)]
        parts.append(f"Votes, given without knowing: {blind.in_words(blind.tally(orders, votes))}.")
    return parts


def letters(samples: Sequence[Sample], votes: Sequence[str] = ()) -> Folded:
    """Who was A and who was B, and what the votes came to where there are any."""
    orders = [_order(place, item) for place, item in enumerate(samples, 1)]
    rows: list[tuple[str, ...]] = [(str(place), *pair) for place, pair in enumerate(orders, 1)]
    if not votes:
        return Folded(KEY, [Table("", ("question", "A was", "B was"), rows)])
    rows = [(*row, blind.chosen(pair, vote) or "no vote") for row, pair, vote in zip(rows, orders, votes, strict=True)]
    said = f"Your votes: {blind.in_words(blind.tally(orders, votes))}."
    return Folded(KEY, [Table("", ("question", "A was", "B was", "your vote"), rows), said])


def measured(made: Comparison) -> list[str]:
    """The measured verdict, which knows nothing of a reader's votes; nothing when nothing was asked."""
    if math.isnan(made.tuned):
        return []
    low, high = (round(value, 2) + 0.0 for value in made.interval)  # never -0.00
    fewest, few = evaluation.FEWEST_FOR_A_VERDICT, ""
    if len(made.samples) < fewest:
        few = f" {len(made.samples)} questions are too few for more: set compare to {fewest} or more."
    return [
        f"Measured, words in common with the answers in the data (0 to 1): base {made.base:.2f}, tuned {made.tuned:.2f}.",
        f"Verdict: {made.verdict} (95 % interval of the difference {low:+.2f} to {high:+.2f}).{few}",
    ]
