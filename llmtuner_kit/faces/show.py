"""Cards and progress in the notebook: the only importer of IPython.

Everything shown has a plain-text form (for papermill's log and a terminal) and an HTML form (for Jupyter and the saved
notebook). Progress clears and redraws one object, the one way that is live in Jupyter, prints a line for each state
headless, and leaves the last state in the saved notebook.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from typing import Any

from IPython import get_ipython
from IPython.display import clear_output, display

from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.texts import duration, visible


class Live:
    """One place in the notebook that is drawn again whenever there is something new to see, not more often.

    A log gets a line at the first state, at each new phase and at the last state; between them the silence grows with
    the time that has passed, so that a long job says no more than a short one needs.
    """

    _SILENCE, _LONGEST_SILENCE, _SHARE = 10.0, 600.0, 0.25

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds, self._last, self._drawn, self._began = seconds, "", 0.0, time.monotonic()
        self._phase: str | None = None
        self._said, self._spoke = "", 0.0

    def __call__(self, card: Card, *, now: bool = False) -> None:
        """Draw the card if it differs from the last one and the last one has stood long enough."""
        moment, text = time.monotonic(), repr(card)
        at_once = now or card.phase != self._phase
        if text == self._last or (not at_once and moment - self._drawn < self._seconds):
            return
        self._last, self._drawn = text, moment
        clear_output(wait=True)
        silence = min(max(self._SILENCE, self._SHARE * (moment - self._began)), self._LONGEST_SILENCE)
        news = card.line() != self._said and (at_once or moment - self._spoke >= silence)
        if news:
            self._said, self._spoke = card.line(), moment
        self._phase = card.phase
        # Raw, as IPython adds a text of its own to objects that have none.
        display({"text/html": card._repr_html_()} | ({"text/plain": card.line()} if news or now else {}), raw=True)


class Progress:
    """A progress callback: what, done, total (bytes, rows or files), and a note that stands below."""

    def __init__(self, title: str) -> None:
        self._title, self._live, self._what, self._began = title, Live(), "", time.monotonic()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        share = done / total if total else 1.0
        changed = what != self._what
        if changed:
            self._what, self._began = what, time.monotonic()
        spent = time.monotonic() - self._began
        left = f"about {duration(spent / share - spent)} left" if 0.02 < share < 1 and spent > 2 else ""
        facts = [(name, text) for name, text in (("time", left), ("job", note)) if text]
        self._live(Card(f"{self._title}: {what}", facts, done=share), now=share >= 1)


def speak_calmly() -> None:
    """In a notebook: a cell that is interrupted, or run before its time, says what that means in place of a traceback."""
    if shell := get_ipython():
        shell.set_custom_exc((KeyboardInterrupt, NameError), _calmly)


def _calmly(shell: Any, kind: type, error: BaseException, trace: Any, *_: Any, **__: Any) -> None:
    if isinstance(error, NameError):
        frame = [frame for frame, _ in traceback.walk_tb(trace)][-1]
        if frame.f_globals.get("__name__") != "__main__":  # not of the cell: a defect, which keeps its traceback
            shell.showtraceback()
            return
        lines = [
            f"NameError: {error}.",
            "  The cell that makes it has not run since the kernel started, or did not end well.",
            "  Next: run the cells above, from the first one on",
        ]
    else:
        lines = [
            "Interrupted.",
            "  What has been started as a job or an endpoint runs on; nothing that was done is lost.",
            "  Next: run the cell again, it goes on where it stopped",
        ]
    shell._showtraceback(kind, error, lines)


def show(*cards: Any) -> None:
    """Show cards one below the other, in place of what the cell showed before."""
    clear_output(wait=True)
    for card in cards:
        display(card)


def show_stream(pieces: Iterable[str], title: str) -> str:
    """Show a text while it is being written; returns the whole text."""
    live, text = Live(1.5), ""
    for piece in pieces:
        text += piece
        live(_written(title, text))
    show(_written(title, text))
    return text


def _written(title: str, text: str) -> Card:
    return Card(title, parts=[visible(text)], said="answering")


speak_calmly()  # from the first cell on that imports anything of the faces, also where that cell comes too early
