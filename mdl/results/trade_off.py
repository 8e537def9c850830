"""Accuracy against what it costs: a point per method, a line per group of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mdl.results.styles import DomainStyle, domain_styles, new_figure, styled

_MOST_LEGEND_ROWS = 16
_FAR = 4


@dataclass(frozen=True)
class Point:
    """costs: name of a cost -> its value, above 0. accuracy, deviation: of mean top-1, in [0, 1].

    group: points of one group are a curve.
    """

    label: str
    costs: Mapping[str, float]
    accuracy: float
    deviation: float | None
    group: str | None


@styled
def trade_off_figure(points: Sequence[Point], split: str) -> Figure:
    """A panel per cost, with a logarithmic axis.

    Points far below the others (`accuracy_floor`) are marked at the lower edge, with their value.
    """
    floor = accuracy_floor([point.accuracy for point in points])
    names = list(dict.fromkeys(point.group or point.label for point in points))
    styles, costs = domain_styles(names), list(points[0].costs)
    columns = -(-len(names) // _MOST_LEGEND_ROWS)
    legend = columns * (0.5 + 0.075 * max(map(len, names)))
    height = max(3.2, 0.6 + 0.2 * min(len(names), _MOST_LEGEND_ROWS))
    figure = new_figure(3.3 * len(costs) + legend, height)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        for name in names:
            curve = [point for point in points if (point.group or point.label) == name]
            shown = [point for point in curve if floor is None or point.accuracy >= floor]
            _draw_curve(axes, shown, cost, name, styles[name])
            for point in curve:
                if point not in shown:
                    _mark_below(axes, point.costs[cost], point.accuracy, styles[name])
        _set_axis(axes, [point.costs[cost] for point in points], cost)
    if floor is not None:
        panels[0].set_ylim(bottom=100 * floor)
    panels[0].set_ylabel(f"mean {split} top-1, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", ncol=columns)
    return figure


def _draw_curve(
    axes: Axes, curve: Sequence[Point], cost: str, name: str, style: DomainStyle
) -> None:
    ordered = sorted(curve, key=lambda point: point.costs[cost])
    axes.errorbar(
        [point.costs[cost] for point in ordered],
        [100 * point.accuracy for point in ordered],
        [100 * (point.deviation or 0.0) for point in ordered],
        color=style.colour,
        marker=style.marker,
        markersize=6,
        linewidth=1.3,
        elinewidth=0.9,
        label=name,
    )


def accuracy_floor(accuracies: Sequence[float]) -> float | None:
    """Where the axis has to begin for most points to be told apart; None: at the lowest one.

    Up to a quarter of the points are left below, where they are many times farther below the others
    than these are from each other.
    """
    ordered = sorted(accuracies)
    for below in range(len(ordered) // 4, 0, -1):
        lowest, span = ordered[below], ordered[-1] - ordered[below]
        if lowest - ordered[below - 1] > _FAR * span > 0:
            return lowest - span / 4
    return None


def _mark_below(axes: Axes, cost: float, accuracy: float, style: DomainStyle) -> None:
    axes.annotate(
        f"{100 * accuracy:.1f}",
        xy=(cost, 0.0),
        xytext=(cost, 0.12),
        xycoords=("data", "axes fraction"),
        textcoords=("data", "axes fraction"),
        ha="center",
        color=style.colour,
        arrowprops={"arrowstyle": "-|>", "color": style.colour},
    )


def _set_axis(axes: Axes, costs: Sequence[float], cost: str) -> None:
    low, high = min(costs) / 1.15, max(costs) * 1.15
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(round_numbers(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(cost)
    axes.grid(color="#e6e6e6", linewidth=0.6)


def round_numbers(low: float, high: float, most: int = 7) -> list[float]:
    """Numbers of few digits for a logarithmic axis: as many as there is room for."""
    found: list[float] = []
    for digits in _DIGITS:
        numbers = [d * 10.0**power for power in range(-12, 19) for d in digits]
        inside = [float(f"{number:.4g}") for number in numbers if low <= number <= high]
        if len(inside) > most:
            return found if len(found) > 1 else inside[:: -(-len(inside) // most)]
        found = inside
    return found


# of the numbers on an axis, from few to many
_DIGITS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(d / 10 for d in range(10, 100)))
