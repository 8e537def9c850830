"""Figures of plain data: how alike paths are, how accurate networks, how runs went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mdl.results.path_map import draw_path_map, map_size
from mdl.results.styles import COLOURS, GREY, INK, domain_styles, new_figure, shortened, styled
from mdl.space.architecture import similarity
from mdl.space.search_space import Path, SearchSpace

MEAN = "mean"
Accuracy = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Split -> run -> domain -> top-1 in [0, 1]."""
Deviations = Mapping[str, Mapping[str, float]]
"""Run -> domain, or 'mean' -> standard deviation of its top-1, where it is known."""

Points = Sequence[tuple[float, float]]


@styled
def similarity_figure(paths: Mapping[str, Path]) -> Figure:
    """Jaccard score of every two domains' searched nodes, [domains, domains]."""
    scores, names = similarity(paths), list(shortened(paths).values())
    side = max(0.36 * len(names), 1.2)
    margin = 0.085 * max(map(len, names))
    figure = new_figure(side + margin + 1.3, side + 0.75 * margin + 0.5)
    axes = figure.add_subplot()
    image = axes.imshow(scores, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(scores):
        for j, score in enumerate(row):
            colour = "white" if _is_dark(image.cmap(score)) else INK
            axes.text(j, i, f"{score:.2f}", ha="center", va="center", color=colour, fontsize=7.5)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=25, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("Jaccard score")
    return figure


def _is_dark(colour: Any) -> bool:
    """Whether white is easier to read on a colour than black (WCAG's relative luminance)."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    )
    return bool(0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.18)


@styled
def accuracy_figure(
    accuracy: Accuracy, chance: Mapping[str, float], deviations: Deviations | None = None
) -> Figure:
    """Top-1 per domain, a panel per split, a bar per run.

    chance: domain -> accuracy of guessing; names the domains and their order.
    deviations: drawn over the bars.
    """
    figure = new_figure(*_bars_size(accuracy, chance))
    draw_accuracy(figure, accuracy, chance, deviations or {})
    return figure


def _bars_size(accuracy: Accuracy, chance: Mapping[str, float]) -> tuple[float, float]:
    row = 0.14 + 0.15 * len(_runs_of(accuracy))
    names = 0.08 * max(map(len, shortened(chance).values()))
    return 0.9 + names + 3.0 * len(accuracy), 1.15 + row * (len(chance) + 1)


def _runs_of(accuracy: Accuracy) -> list[str]:
    return list(dict.fromkeys(run for runs in accuracy.values() for run in runs))


def draw_accuracy(
    figure: FigureBase,
    accuracy: Accuracy,
    chance: Mapping[str, float],
    deviations: Deviations,
) -> None:
    """Draws the bars into a figure or a part of one."""
    runs, marks = _runs_of(accuracy), {**chance, MEAN: fmean(chance.values())}
    widest = max((of for by_name in deviations.values() for of in by_name.values()), default=0.0)
    panels = figure.subplots(1, len(accuracy), sharey=True, squeeze=False)[0]
    for axes, (split, by_run) in zip(panels, accuracy.items(), strict=True):
        for place, run in enumerate(runs):
            if run in by_run:
                of = deviations.get(run, {})
                _draw_bars(axes, by_run[run], of, marks, place, len(runs))
        for row, level in enumerate(marks.values()):
            axes.plot([100 * level] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.4)
        axes.set_title(split)
        axes.set_xlim(0, 114 + 100 * widest)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("top-1, %")
        axes.axhline(len(chance) - 0.5, color=GREY, linewidth=0.6)
    panels[0].set_yticks(range(len(marks)), list(shortened(marks).values()))
    panels[0].set_ylim(len(marks) - 0.45, -0.55)
    panels[0].get_yticklabels()[-1].set_weight("bold")
    _add_runs_legend(figure, runs)


def _draw_bars(
    axes: Axes,
    accuracy: Mapping[str, float],
    deviations: Mapping[str, float],
    marks: Mapping[str, float],
    place: int,
    num_runs: int,
) -> None:
    """A run's bars, a row per mark; a dash where it lacks a domain."""
    values = {**accuracy, MEAN: fmean(accuracy.values())}
    height = 0.76 / num_runs
    for row, (name, level) in enumerate(marks.items()):
        y = row + (place - (num_runs - 1) / 2) * height
        value, mark = 100 * values.get(name, 0.0), 100 * level
        axes.barh(y, value, 0.9 * height, color=COLOURS[place % len(COLOURS)])
        text = f"{value:.1f}" if name in values else "-"
        spread = 100 * deviations.get(name, 0.0)
        if spread:
            axes.plot([value - spread, value + spread], [y, y], color=INK, linewidth=0.9)
        # beyond the mark of chance where it would stand in the text
        x = value + spread
        x = mark if x <= mark < x + 14 else x
        look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5}
        axes.annotate(text, (x, y), xytext=(4, 0), va="center_baseline", **look)


def _add_runs_legend(figure: FigureBase, runs: Sequence[str]) -> None:
    look: dict[str, Any] = {"linestyle": "none", "markersize": 8}
    handles = [
        Line2D([], [], marker="s", color=COLOURS[place % len(COLOURS)], label=run, **look)
        for place, run in enumerate(runs)
    ]
    chance = Line2D([], [], marker="|", color=INK, markeredgewidth=1.4, **look)
    chance.set_label("guessing the most frequent class")
    longest = max(map(len, runs))
    columns = 3 if longest <= 20 else 2 if longest <= 26 else 1
    figure.legend(handles=[*handles, chance], loc="outside lower center", ncol=columns)


@styled
def curves_figure(
    series: Mapping[str, Points], domains: Sequence[str], label: str, most: int = 60
) -> Figure:
    """A quantity over steps, a line per domain; the mean thick and black.

    series: domain, or 'mean' -> (step, value) in order.
    domains: all of the run's, so that each looks as it does in the other figures.
    most: points of a line; where there are more records, each point is the mean of some.
    """
    styles, width = domain_styles(domains), 5.2
    # the mean of one domain would hide its line
    names = [*domains, MEAN] if len(domains) > 1 else domains
    shown = [name for name in names if series.get(name)]
    labels = shortened(shown)
    columns = max(1, min(4, int(width / (0.5 + 0.085 * max(map(len, labels.values()))))))
    figure = new_figure(width, 2.7 + 0.2 * -(-len(shown) // columns))
    axes = figure.add_subplot()
    together = -(-max(len(series[name]) for name in shown) // most)
    for place, name in enumerate(shown):
        steps, values = zip(*_averaged(series[name], together), strict=True)
        stride = max(1, len(steps) // 8)
        look: dict[str, Any] = {"color": "black", "linewidth": 2.8, "zorder": 5}
        if style := styles.get(name):
            look = {"color": style.colour, "linestyle": style.dash, "linewidth": 1.3}
            look |= {"marker": style.marker, "markersize": 4.5}
            look |= {"markevery": (place % stride, stride)}
        axes.plot(steps, values, label=labels[name], **look)
    axes.set_xlabel("step" if together == 1 else f"step (a point: the mean of {together} records)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    figure.legend(loc="outside lower center", ncol=columns, handlelength=2.6, columnspacing=1.2)
    return figure


def _averaged(points: Points, together: int) -> list[tuple[float, float]]:
    """The mean step and value of every so many records."""
    groups = [points[start : start + together] for start in range(0, len(points), together)]
    return [(fmean(step for step, _ in of), fmean(value for _, value in of)) for of in groups]


@styled
def overview_figure(
    space: SearchSpace,
    paths: Mapping[str, Path],
    accuracy: Accuracy,
    chance: Mapping[str, float],
) -> Figure:
    """The map and the bars side by side: a run at a glance."""
    (left, high), (right, low) = map_size(space, paths), _bars_size(accuracy, chance)
    figure = new_figure(left + right, max(high, low))
    parts: Any = figure.subfigures(1, 2, width_ratios=(left, right))
    draw_path_map(parts[0], space, paths)
    draw_accuracy(parts[1], accuracy, chance, {})
    return figure
