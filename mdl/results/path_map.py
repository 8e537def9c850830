"""The multi-path map: all paths through the space, and which nodes they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve

from mdl.networks.multipath import Node, path_users, supernet_users
from mdl.results.lanes import Passing, domain_lines, head_points, lead, map_sizes, place_of
from mdl.results.styles import (
    GREY,
    INK,
    PALE,
    DomainStyle,
    domain_styles,
    new_figure,
    shortened,
    styled,
)
from mdl.space.search_space import Path, SearchSpace


@dataclass(frozen=True)
class NodeKinds:
    """The nodes of a space by who visits them, stem and head convolution included."""

    shared: dict[Node, int]  # node -> number of domains, at least two
    specific: dict[Node, str]  # node -> its one domain
    unused: tuple[Node, ...]


def node_kinds(space: SearchSpace, paths: Mapping[str, Path]) -> NodeKinds:
    users = path_users(space, paths)
    return NodeKinds(
        shared={node: len(of) for node, of in users.items() if len(of) > 1},
        specific={node: of[0] for node, of in users.items() if len(of) == 1},
        unused=tuple(node for node in supernet_users(space, list(paths)) if node not in users),
    )


@styled
def path_map_figure(space: SearchSpace, paths: Mapping[str, Path]) -> Figure:
    """Layers from left to right, blocks from top to bottom, a line per domain."""
    figure = new_figure(*map_size(space, paths))
    draw_path_map(figure, space, paths)
    return figure


def map_size(space: SearchSpace, paths: Mapping[str, Path]) -> tuple[float, float]:
    """Width and height that leave each line and name its room, inches."""
    sizes, names = map_sizes(len(paths)), 0.085 * max(map(len, shortened(paths).values()))
    rows = max(sizes.row * (len(space.blocks) + 1), 0.19 * len(paths))
    return 1.3 + sizes.column * (len(space.layers) + 2.5) + names, 1.1 + rows


def draw_path_map(figure: FigureBase, space: SearchSpace, paths: Mapping[str, Path]) -> None:
    """Draws the map into a figure or a part of one."""
    axes, sizes = figure.add_subplot(), map_sizes(len(paths))
    styles, kinds = domain_styles(paths), node_kinds(space, paths)
    _draw_grid(axes, space)
    ends, names = head_points(space, len(paths)), shortened(paths)
    for end, (domain, line) in zip(ends, domain_lines(space, paths, sizes).items(), strict=True):
        _draw_line(axes, [*line, end], styles[domain], sizes.line)
        axes.text(end.column + 0.25, end.row, names[domain], va="center", ha="left", fontsize=8.5)
        axes.plot(*end.point, styles[domain].marker, color=styles[domain].colour, markersize=6)
    _draw_nodes(axes, space, kinds, styles, sizes.diameter)
    _add_legend(figure, kinds)


def _draw_line(axes: Axes, line: list[Passing], style: DomainStyle, width: float) -> None:
    """A smooth line that passes every node horizontally."""
    vertices, codes = [line[0].point], [Curve.MOVETO]
    for here, there in pairwise(line):
        (x, y), (to_x, to_y) = here.point, there.point
        half = (x + to_x) / 2 + lead(here, there)
        vertices += [(half, y), (half, to_y), (to_x, to_y)]
        codes += [Curve.CURVE4] * 3
    look: dict[str, Any] = {"edgecolor": style.colour, "linestyle": style.dash}
    axes.add_patch(
        PathPatch(Curve(vertices, codes), facecolor="none", linewidth=width, zorder=2, **look)
    )


def _draw_grid(axes: Axes, space: SearchSpace) -> None:
    """Names of layers and blocks, a band per second stage, and where layers can be skipped."""
    layers, top = space.layers, len(space.blocks)
    starts = [la.index + 1 for la in layers if la.name.endswith(".1")] + [len(layers) + 1]
    for begin, end in list(pairwise(starts))[::2]:
        axes.axvspan(begin - 0.5, end - 0.5, color="#f3f3f3", zorder=0, linewidth=0)
    skippable = [la.index + 1 for la in layers if la.can_skip]
    axes.plot(skippable, [0] * len(skippable), "_", color=PALE, markersize=9, zorder=1, gid="zero")
    names = ["stem", *(layer.name for layer in layers), "head\nconv.", "heads"]
    axes.set_xticks([*range(len(layers) + 2), len(layers) + 2.2], names)
    axes.set_yticks(range(top + 1), ["zero (skip)", *map(str, reversed(space.blocks))])
    axes.set_xlim(-0.6, len(layers) + 2.5)
    axes.set_ylim(-0.55, top + 0.55)
    axes.set_xlabel("layer (stage.layer)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_nodes(
    axes: Axes,
    space: SearchSpace,
    kinds: NodeKinds,
    styles: Mapping[str, DomainStyle],
    diameter: float,
) -> None:
    def scatter(nodes: Any, gid: str, size: float, **look: Any) -> None:
        columns, rows = zip(*(place_of(space, node) for node in nodes), strict=True)
        axes.scatter(columns, rows, s=size**2, gid=gid, **look)

    if kinds.unused:
        scatter(kinds.unused, "unused", 0.4 * diameter, **_UNUSED, zorder=1)
    if kinds.specific:
        edges = [styles[domain].colour for domain in kinds.specific.values()]
        open_circle = {"edgecolors": edges, "linewidths": 2.2, "facecolors": "white"}
        scatter(kinds.specific, "specific", 0.8 * diameter, **open_circle, zorder=3)
    for node, domain in kinds.specific.items():
        style = styles[domain]
        look: dict[str, Any] = {"color": style.colour, "markersize": 0.27 * diameter, "zorder": 4}
        axes.plot(*place_of(space, node), style.marker, **look)
    if kinds.shared:
        scatter(kinds.shared, "shared", diameter, c=INK, linewidths=0, zorder=4)
    for node, users in kinds.shared.items():
        look = {"ha": "center", "va": "center_baseline", "color": "white", "zorder": 5}
        axes.text(*place_of(space, node), str(users), fontsize=0.5 * diameter, **look)


_UNUSED: dict[str, Any] = {
    "facecolors": "white",
    "edgecolors": "#9a9a9a",
    "linewidths": 0.8,
    "linestyles": "dotted",
    "marker": "s",
}


def _add_legend(figure: FigureBase, kinds: NodeKinds) -> None:
    def handle(marker: str, size: float, fill: str, edge: str, label: str) -> Line2D:
        look: dict[str, Any] = {
            "markerfacecolor": fill,
            "markeredgecolor": edge,
            "linestyle": "none",
        }
        width = 0.8 if marker == "s" else 2.0
        return Line2D(
            [], [], marker=marker, markersize=size, markeredgewidth=width, label=label, **look
        )

    handles = [
        handle("o", 11, INK, INK, f"shared: its number of domains ({len(kinds.shared)} nodes)"),
        handle("o", 9, "white", GREY, f"domain-specific ({len(kinds.specific)})"),
        handle("s", 5, "white", "#9a9a9a", f"unused ({len(kinds.unused)})"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncol=3, columnspacing=1.5)
