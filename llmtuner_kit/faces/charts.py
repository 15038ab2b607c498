"""Charts of cards, and their pictures: the only importer of matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_INCHES, _DPI = 7.0, 110
WIDTH = _INCHES * _DPI
"""Pixels that a picture is shown in."""


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


def png(chart: Chart | Bars) -> bytes:
    """The picture of a chart, twice as fine as it is shown."""
    return _drawn(chart) if isinstance(chart, Chart) else _drawn_bars(chart)


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
