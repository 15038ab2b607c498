"""Cards: what a cell shows, as plain text and as HTML that is safe in Jupyter and in a saved notebook."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtuner_kit.faces import charts
from llmtuner_kit.faces.charts import Bars, Chart
from llmtuner_kit.faces.parts import Folded, Link, Masked, Part, Table, as_text, filled
from llmtuner_kit.faces.texts import words

_NOTEBOOK = re.compile(r"0\d_[a-z]+")
_ADDRESS = re.compile(r"https?://[^\s$]+")
_NARROW = 32
_STYLE = (
    "<style>.lt{font-family:system-ui,sans-serif;line-height:1.4;max-width:62em}.lt table{border-collapse:collapse;margin:.4em 0}"
    ".lt td,.lt th{text-align:left!important;padding:.2em .8em .2em 0;vertical-align:top;"
    "border-bottom:1px solid #8884;white-space:pre-line}.lt caption{text-align:left;font-weight:600;white-space:pre-line}.lt caption div{font-weight:400}.lt h4{margin:.2em 0 .4em;white-space:pre-line}.lt h4:empty{display:none}.lt summary{cursor:pointer;font-weight:600;margin:.5em 0}.lt tr>th,.lt .n td:first-child{white-space:nowrap}.lt p{margin:.3em 0}.lt .t{background:#2a78;border-radius:2px}"
    ".lt td,.lt p,.lt pre,.lt .m{unicode-bidi:plaintext}.lt img{max-width:100%}[data-jp-theme-light=false] .lt img{filter:invert(.9) hue-rotate(180deg)}.lt a{color:var(--jp-content-link-color,LinkText)}.lt pre{white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;margin:.3em 0}.lt .m{line-height:1.9}</style>"
)


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
        lines += [f"  {name}: {words(value)}" for name, value in self.facts]
        for part in self.parts:
            lines += ["", *as_text(part)]
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
        return f"<p><b>{_e(part.title)}</b></p><div class='m'>{tokens}</div>"
    if isinstance(part, Chart | Bars):
        image = base64.b64encode(charts.png(part)).decode()
        return f"<img width='{charts.WIDTH:.0f}' alt='{_e(part.title)}: {_e(part.alt)}' src='data:image/png;base64,{image}'>"
    if isinstance(part, Link):
        return f"<p><a href='{_e(part.address)}'>{_text(part.words)}</a></p>"
    names, *rows = filled(part)
    head = "".join(f"<th scope='col'>{_e(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    narrow = all(len(words(row[0])) <= _NARROW for row in rows)  # a name stays on its line, a sentence is wrapped
    kind = " class='n'" if narrow else ""
    return f"<table{kind}><caption>{_caption(part)}</caption><tr>{head}</tr>{body}</table>"


def _caption(table: Table) -> str:
    """A title, and what stands below it on lines of their own."""
    title, *lines = table.caption.split("\n")
    return _text(title) + (f"<div>{_text(chr(10).join(lines))}</div>" if lines else "")


def _linked(text: str) -> str:
    """Text in which the names of notebooks open them."""
    return _NOTEBOOK.sub(lambda name: f"<a href='{name[0]}.ipynb'>{name[0]}</a>", _text(text))


def _text(value: Any) -> str:
    if _ADDRESS.fullmatch(str(value)):
        return f"<a href='{_e(value)}' style='word-break:break-all'>{_e(value)}</a>"
    # Jupyter takes what stands between two dollar signs of one text for a formula: "$1 to $2" must not be one text.
    return _e(value).replace("$", "<span>$</span>")


def _e(value: Any) -> str:
    return html.escape(words(value))
