"""Cards, progress and charts in notebooks: the only importer of IPython and matplotlib.

Everything shown has a plain-text form (for papermill's log and a terminal) and an HTML form (for Jupyter and the saved
notebook). Progress clears and redraws one object, the one way that is live in Jupyter, prints a line for each state
headless, and leaves the last state in the saved notebook.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from IPython import get_ipython
from IPython.display import clear_output, display

_NOTEBOOK = re.compile(r"0\d_[a-z]+")
_ADDRESS = re.compile(r"https?://[^\s$]+")
_NARROW, _LISTED = 32, 500
_INCHES, _DPI = 7.0, 110
_WIDTH = _INCHES * _DPI
_STYLE = (
    "<style>.lt{font-family:system-ui,sans-serif;line-height:1.4;max-width:62em}.lt table{border-collapse:collapse;margin:.4em 0}"
    ".lt td,.lt th{text-align:left!important;padding:.2em .8em .2em 0;vertical-align:top;"
    "border-bottom:1px solid #8884;white-space:pre-line}.lt caption{text-align:left;font-weight:600;white-space:pre-line}.lt caption div{font-weight:400}.lt h4{margin:.2em 0 .4em;white-space:pre-line}.lt h4:empty{display:none}.lt summary{cursor:pointer;font-weight:600;margin:.5em 0}.lt tr>th,.lt .n td:first-child{white-space:nowrap}.lt p{margin:.3em 0}.lt .t{background:#2a78;border-radius:2px}"
    ".lt td,.lt p,.lt pre,.lt .m{unicode-bidi:plaintext}.lt img{max-width:100%}[data-jp-theme-light=false] .lt img{filter:invert(.9) hue-rotate(180deg)}.lt a{color:var(--jp-content-link-color,LinkText)}.lt pre{white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;margin:.3em 0}.lt .m{line-height:1.9}</style>"
)


@dataclass(frozen=True)
class Table:
    """A table with a caption; cells are shown as text."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis: name -> points (x, y). `alt` says in words what is seen."""

    title: str
    x: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    alt: str
    bars: bool = False
    mark: float | None = None
    """Where on the x axis a line is drawn across: a limit."""


@dataclass(frozen=True)
class Bars:
    """Counts by name, as bars that lie on each other, in the order given. `alt` says in words what is seen."""

    title: str
    counts: Mapping[str, float]
    alt: str


@dataclass(frozen=True)
class Masked:
    """A row token by token, each with whether it is trained on."""

    title: str
    pieces: Sequence[str]
    trained: Sequence[bool]


@dataclass(frozen=True)
class Folded:
    """Parts behind a click on their title; in plain text they follow it."""

    title: str
    parts: Sequence[Table | str]


@dataclass(frozen=True)
class Link:
    """An address to click on; in plain text it stands after its words."""

    words: str
    address: str


Part = Table | Chart | Bars | Masked | Folded | Link | str


@dataclass(frozen=True)
class Card:
    """What a result cell shows: facts, then parts, then what comes next.

    Attributes:
        following: the notebook to open next, or what to do.
        said: what a log says of a card that will be replaced; empty: the title and the facts.
        phase: when it changes, a log hears of it at once.
        blocked: why the step would refuse to start; beside a form it stands in place of "run the next cell".
        offer: values of the form that would mend that, for its user to take with a click.
    """

    title: str
    facts: Sequence[tuple[str, Any]] = ()
    parts: Sequence[Part] = ()
    following: str = ""
    done: float | None = None
    said: str = ""
    phase: str = ""
    blocked: str = ""
    offer: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [self.title + (f" [{self.done:.0%}]" if self.done is not None else "")]
        lines += [f"  {name}: {_words(value)}" for name, value in self.facts]
        for part in self.parts:
            lines += ["", *_as_text(part)]
        return "\n".join([*lines, *([f"Next: {self.following}"] if self.following else [])])

    def _repr_html_(self) -> str:
        bar = "" if self.done is None else f"<progress max='1' value='{self.done:.4f}'>{self.done:.0%}</progress>"
        facts = "".join(
            f"<tr><th scope='row'>{_e(name)}</th><td>{_text(value)}</td></tr>" for name, value in self.facts
        )
        parts = "".join(_as_html(part) for part in self.parts)
        following = f"<p><b>Next:</b> {_linked(self.following)}</p>" if self.following else ""
        return (
            f"<div class='lt'>{_STYLE}<h4>{_text(self.title)}</h4>{bar}<table>{facts}</table>{parts}{following}</div>"
        )

    def line(self) -> str:
        """One line for a log."""
        return self.said or repr(Card(self.title, self.facts, done=self.done)).replace("\n  ", " · ")


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


def visible(text: str) -> str:
    """A model's answer as it is shown: without white space around it, and never nothing."""
    return text.strip() or "(nothing but white space)"


def duration(seconds: float) -> str:
    """`95` -> `1 min 35 s`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes for people: `1.4 MB` (powers of ten)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def shortened(text: str, limit: int = 300) -> str:
    """The text, or its beginning with an ellipsis."""
    flat = text.strip()
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _as_text(part: Part) -> list[str]:
    if isinstance(part, str):
        return part.splitlines()
    if isinstance(part, Folded):
        return [part.title, *(f"  {line}" for inner in part.parts for line in _as_text(inner))]
    if isinstance(part, Masked):
        runs = itertools.groupby(zip(part.pieces, part.trained, strict=True), key=lambda item: item[1])
        texts = [("".join(piece for piece, _ in run), trained) for trained, run in runs]
        return [part.title, *"".join(f"[[{text}]]" if trained else text for text, trained in texts).splitlines()]
    if isinstance(part, Chart | Bars):
        return [f"{part.title}: {part.alt}"]
    if isinstance(part, Link):
        return [f"{part.words}: {part.address}"]
    return [
        *([part.caption] if part.caption else []),
        *_columns([[_words(cell) for cell in row] for row in _filled(part)]),
    ]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns; a cell of several lines takes several lines of the table, in its own column."""
    cells = [[cell.splitlines() or [""] for cell in row] for row in rows]
    widths = [min(90, max(len(line) for row in cells for line in row[column])) for column in range(len(cells[0]))]
    lines = [line for row in cells for line in itertools.zip_longest(*row, fillvalue="")]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _as_html(part: Part) -> str:
    if isinstance(part, str):
        # One line is a sentence; several are a log, code, or something else whose lines mean something.
        return f"<pre>{_text(part)}</pre>" if "\n" in part else f"<p>{_text(part)}</p>"
    if isinstance(part, Folded):
        inner = "".join(_as_html(item) for item in part.parts)
        return f"<details><summary>{_text(part.title)}</summary>{inner}</details>"
    if isinstance(part, Masked):
        tokens = "".join(
            f"<span{' class=t' if trained else ''} title='{'trained on' if trained else 'not trained on'}'>{_text(piece)}"
            f"</span>{'<br>' if piece.endswith(chr(10)) else ''}"
            for piece, trained in zip(part.pieces, part.trained, strict=True)
        )
        return f"<p>{_e(part.title)}</p><div class='m'>{tokens}</div>"
    if isinstance(part, Chart | Bars):
        image = base64.b64encode(_drawn(part) if isinstance(part, Chart) else _drawn_bars(part)).decode()
        return f"<img width='{_WIDTH:.0f}' alt='{_e(part.title)}: {_e(part.alt)}' src='data:image/png;base64,{image}'>"
    if isinstance(part, Link):
        return f"<p><a href='{_e(part.address)}'>{_text(part.words)}</a></p>"
    names, *rows = _filled(part)
    head = "".join(f"<th scope='col'>{_e(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    narrow = all(len(_words(row[0])) <= _NARROW for row in rows)  # a name stays on its line, a sentence is wrapped
    kind = " class='n'" if narrow else ""
    return f"<table{kind}><caption>{_caption(part)}</caption><tr>{head}</tr>{body}</table>"


def _caption(table: Table) -> str:
    """A title, and what stands below it on lines of their own."""
    title, *lines = table.caption.split("\n")
    return _text(title) + (f"<div>{_text(chr(10).join(lines))}</div>" if lines else "")


def _filled(table: Table) -> list[Sequence[Any]]:
    """Head and rows without the columns in which no row has anything."""
    kept = [
        column for column in range(len(table.head)) if not table.rows or any(row[column] != "" for row in table.rows)
    ]
    return [[row[column] for column in kept] for row in (table.head, *table.rows)]


def listed(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], first: int = 20) -> list[Part]:
    """A long table: its first rows, and the others behind a click."""
    if len(rows) <= first:
        return [Table(caption, head, rows)]
    more = rows[first:_LISTED]
    left = f"; {len(rows) - _LISTED:,} are not listed" if len(rows) > _LISTED else ""
    return [
        Table(caption, head, rows[:first]),
        Folded(f"and {len(rows) - first:,} more{left}", [Table("", head, more)]),
    ]


def _drawn(chart: Chart) -> bytes:
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot: nothing global, nothing shown twice, no display needed.
    figure = Figure(figsize=(_INCHES, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for name, points in chart.lines.items():
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if chart.bars:
            axes.bar(xs, ys, width=0.9 * (xs[1] - xs[0] if len(xs) > 1 else 1), align="edge", label=name)
        else:
            axes.plot(xs, ys, label=name, marker="o" if len(xs) < 30 else "", markersize=3)
    if chart.mark is not None:
        axes.axvline(chart.mark, linestyle="--", color="black", linewidth=1)
    axes.locator_params(axis="x", integer=True)  # steps and tokens
    axes.set_title(chart.title, fontsize=10)
    axes.set_xlabel(chart.x)
    axes.grid(visible=True, alpha=0.3)
    if len(chart.lines) > 1:
        axes.legend(fontsize=8)
    return _as_png(figure)


def _drawn_bars(chart: Bars) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES, 0.7 + 0.26 * len(chart.counts)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([_plain(name) for name in chart.counts], list(chart.counts.values()))
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_title(chart.title, fontsize=10)
    return _as_png(figure)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def _as_png(figure: Any) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=2 * _DPI)  # twice as fine as shown: sharp on any screen
    return image.getvalue()


def _linked(text: str) -> str:
    """Text in which the names of notebooks open them."""
    return _NOTEBOOK.sub(lambda name: f"<a href='{name[0]}.ipynb'>{name[0]}</a>", _text(text))


def _text(value: Any) -> str:
    if _ADDRESS.fullmatch(str(value)):
        return f"<a href='{_e(value)}' style='word-break:break-all'>{_e(value)}</a>"
    # Jupyter takes what stands between two dollar signs of one text for a formula: "$1 to $2" must not be one text.
    return _e(value).replace("$", "<span>$</span>")


def _words(value: Any) -> str:
    """A value for people: whole numbers with their thousands apart."""
    return f"{value:,}" if type(value) is int else str(value)


def _e(value: Any) -> str:
    return html.escape(_words(value))
