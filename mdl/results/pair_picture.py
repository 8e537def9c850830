"""Two domains' paths side by side: the blocks that they share, and those of their own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

from mdl.networks.multipath import Node, path_nodes
from mdl.results.styles import COLOURS, GREY, INK, new_figure, styled
from mdl.space.architecture import similarity
from mdl.space.search_space import Path, SearchSpace

_WIDTH, _HEIGHT = 0.86, 0.6  # of a box; columns and rows are 1 apart
_SHORT = 14  # letters of a name that stands beside the middle
_APART = 0.1  # between the two lines through a shared box


@styled
def pair_figure(space: SearchSpace, paths: Mapping[str, Path], one: str, other: str) -> Figure:
    """Layers from top to bottom; `one` on the left, shared blocks in the middle."""
    num_rows = len(space.layers) + 2
    figure = new_figure(5.2, 0.4 * (num_rows + 1) + 0.5)
    axes = figure.add_subplot()
    visited = {d: {n.layer: n for n in path_nodes(space, paths[d])} for d in (one, other)}
    shared = set(visited[one].values()) & set(visited[other].values())
    for domain, side, colour in ((one, -1, COLOURS[0]), (other, 1, COLOURS[1])):
        columns = [_column(visited[domain].get(row - 1), shared, side) for row in range(num_rows)]
        _draw_line(axes, columns, side, colour)
        for node in visited[domain].values():
            if node not in shared:
                look = {"facecolor": "white", "edgecolor": colour, "linewidth": 2.0}
                _draw_box(axes, node, side, "own", INK, look)
        height, place = 0.8, float(side)
        if max(len(one), len(other)) > _SHORT:  # one below the other, from the sides
            height, place = (1.7 if side < 0 else 1.25), side * (1 + _WIDTH / 2)
        align = "center" if place == side else ("left" if side < 0 else "right")
        axes.text(place, height, domain, ha=align, color=colour, weight="bold")
    for node in shared:
        _draw_box(axes, node, 0, "shared", "white", {"facecolor": INK, "edgecolor": INK})
    _finish(axes, space, _title(paths, one, other, len(shared) - 2))
    if max(len(one), len(other)) > _SHORT:
        axes.set_ylim(top=2.2)
    return figure


def extreme_pairs(paths: Mapping[str, Path]) -> list[tuple[str, str]]:
    """The most alike and the least alike two domains; one pair where there is no other."""
    scores, names = similarity(paths), list(paths)
    ranked = sorted(
        (-scores[i][j], i, j) for i in range(len(names)) for j in range(i + 1, len(names))
    )
    ends = dict.fromkeys((i, j) for _, i, j in (*ranked[:1], *ranked[-1:]))
    return [(names[i], names[j]) for i, j in ends]


def _column(node: Node | None, shared: set[Node], side: int) -> float:
    """Where a domain's line passes a row: in its own column, or beside the middle."""
    return side * _APART if node in shared else float(side)


def _draw_line(axes: Axes, columns: list[float], side: int, colour: str) -> None:
    """From row to row; thin, and named, where a layer is skipped."""
    for row, (x, below) in enumerate(pairwise(columns)):
        start, end = -row - _HEIGHT / 2, -row - 1 + _HEIGHT / 2
        half = (start + end) / 2
        curve = Curve(
            [(x, start), (x, half), (below, half), (below, end)],
            [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
        )
        axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=colour, linewidth=2.0))
    for row, x in enumerate(columns):
        inside = (-row - _HEIGHT / 2, -row + _HEIGHT / 2)
        axes.plot([x, x], inside, color=colour, linewidth=0.9, solid_capstyle="butt", zorder=1)
    for row, x in enumerate(columns):
        if x == side:
            # hidden below a box, where there is one
            look: dict[str, Any] = {"ha": "left" if side > 0 else "right", "va": "center"}
            axes.text(x + side * 0.06, -row, "zero", color=GREY, fontsize=8, zorder=1, **look)


def _draw_box(
    axes: Axes, node: Node, column: int, gid: str, ink: str, look: Mapping[str, Any]
) -> None:
    row = -node.layer - 1
    corner = (column - _WIDTH / 2, row - _HEIGHT / 2)
    shape = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch(corner, _WIDTH, _HEIGHT, shape, gid=gid, zorder=3, **look))
    name = {"head": "head conv."}.get(str(node.block), str(node.block))
    axes.text(column, row, name, ha="center", va="center", color=ink, fontsize=8.5, zorder=4)


def _title(paths: Mapping[str, Path], one: str, other: str, num_shared: int) -> str:
    score = similarity({one: paths[one], other: paths[other]})[0][1]
    blocks = "block" if num_shared == 1 else "blocks"
    return f"{num_shared} searched {blocks} shared, Jaccard {score:.2f}"


def _finish(axes: Axes, space: SearchSpace, title: str) -> None:
    layers = space.layers
    axes.text(0, 0.8, "shared", ha="center", color=INK, weight="bold")
    axes.set_yticks(
        [-row for row in range(len(layers) + 2)], ["", *(layer.name for layer in layers), ""]
    )
    axes.set_ylabel("layer (stage.layer)")
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_xlim(-1.6, 1.6)
    axes.set_ylim(-len(layers) - 1.5, 1.3)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
