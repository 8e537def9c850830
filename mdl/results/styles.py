"""How figures look: a style per domain, one font, and files that are the same every time."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours; dark grey in place of black, which the means have, and no yellow,
# which is too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)))
# ten: with seven colours, a pair returns only after seventy domains
MARKERS = "osD^vPX*<>"

_LONGEST = 24  # letters of a name that a figure writes out

INK, GREY, PALE = "#1a1a1a", "#6b6b6b", "#bdbdbd"

# Any: matplotlib types the key of every setting
SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "mdl",  # element names that do not change from file to file
    "svg.fonttype": "path",  # looks the same where the font is missing
}

styled = matplotlib.rc_context(SETTINGS)
"""Decorates what draws: the settings hold within it only."""


@dataclass(frozen=True)
class DomainStyle:
    """How a domain's line looks in every figure: told apart by colour, and by dash and marker."""

    colour: str
    dash: Any
    marker: str


def domain_styles(domains: Iterable[str]) -> dict[str, DomainStyle]:
    """A style per domain, by its place."""
    places = zip(domains, cycle(COLOURS), cycle(MARKERS), strict=False)
    return {
        domain: DomainStyle(colour, DASHES[(place // len(COLOURS)) % len(DASHES)], marker)
        for place, (domain, colour, marker) in enumerate(places)
    }


def shortened(names: Iterable[str]) -> dict[str, str]:
    """Names as figures write them: of a long one, its beginning and its end, if that tells it."""
    short = {n: n if len(n) <= _LONGEST else f"{n[:13]}…{n[-10:]}" for n in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, free of pyplot and its state."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@styled
def render(figure: Figure, kind: str) -> bytes:
    """The bytes of a 'png' or 'svg' file, without a date in them."""
    if figure.get_layout_engine() is not None:
        # laid out once: a second time everything would move a little
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    stream = io.BytesIO()
    stamp = "Date" if kind == "svg" else "Software"
    figure.savefig(stream, format=kind, dpi=150, metadata={stamp: None})
    return stream.getvalue()
