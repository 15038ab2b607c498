"""What is drawn live, what a log hears of it, and cells that are interrupted or run too early."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from llmtuner_kit.faces import show
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.show import Live


def test_an_interrupted_cell_says_what_that_means_and_shows_no_traceback() -> None:
    shell = InteractiveShell.instance()
    show.speak_calmly()
    with capture_output() as captured:
        shell.run_cell("raise KeyboardInterrupt")
    InteractiveShell.clear_instance()
    assert "Interrupted" in captured.stdout
    assert "runs on" in captured.stdout
    assert "Traceback" not in captured.stdout


def test_a_cell_run_before_its_time_says_which_to_run_and_a_defect_keeps_its_traceback() -> None:
    shell = InteractiveShell.instance()
    importlib.reload(show)  # in a new kernel a cell's own import is the first
    with capture_output() as early:
        shell.run_cell("from llmtuner_kit.faces.show import show\n\nshow(uploaded)")
    shell.push({"broken": FunctionType(compile("never_made", "kit.py", "eval"), {"__name__": "kit"})})
    with capture_output() as defect:
        shell.run_cell("broken()")
    InteractiveShell.clear_instance()
    assert "Next: run the cells above" in early.stdout
    assert "Traceback" not in early.stdout
    assert "Traceback" in defect.stdout
    assert "kit.py" in defect.stdout


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Draws cards at given seconds in one place; what a log hears. Every drawing must be whole in the notebook."""
    InteractiveShell.instance()

    def draw(cards: Iterable[tuple[float, Card]], seconds: float = 0) -> list[str]:
        clock = [0.0]
        monkeypatch.setattr(show.time, "monotonic", lambda: clock[0])
        live, heard = Live(seconds), []
        for moment, card in cards:
            clock[0] = moment
            with capture_output() as captured:
                live(card, now=card.done == 1)
            for output in captured.outputs:
                assert card.title in output.data["text/html"]
                heard += [output.data["text/plain"]] if "text/plain" in output.data else []
        return heard

    yield draw
    InteractiveShell.clear_instance()


def test_a_log_hears_of_each_phase_at_once_and_of_the_end(said: Callable[..., list[str]]) -> None:
    states = [(0, "fetching"), (1, "fetching"), (2, "loading"), (3, "loading"), (4, "training")]
    cards = [
        (moment, Card("Job", [("seconds", moment)], phase=phase, said=f"{phase} {moment}")) for moment, phase in states
    ]
    end = Card("Job", phase="training", said="done", done=1)
    assert said([*cards, (5, end)]) == ["fetching 0", "loading 2", "training 4", "done"]


def test_a_long_job_says_little_more_than_a_short_one(said: Callable[..., list[str]]) -> None:
    def lines(seconds: int) -> int:
        return len(
            said((moment, Card("Job", [("second", moment)])) for moment in range(0, seconds, max(2, seconds // 1000)))
        )

    assert lines(60) <= 8
    assert lines(600) <= 20
    assert lines(36_000) <= 90


def test_a_card_is_drawn_no_more_often_than_asked_for_but_a_new_phase_at_once(said: Callable[..., list[str]]) -> None:
    cards = [(0, Card("a", phase="1")), (1, Card("b", phase="1")), (2, Card("c", phase="2"))]
    assert said(cards, seconds=5) == ["a", "c"]
