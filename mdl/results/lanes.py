"""Where the domains' lines run on the multi-path map: side by side, and not across."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mdl.networks.multipath import HEAD, STEM, Node
from mdl.space.search_space import ZERO, Block, Path, SearchSpace

Point = tuple[float, float]


class Passing(NamedTuple):
    """Where a line passes; lane: how far from the middle of the place, rows."""

    column: float
    row: float
    lane: float

    @property
    def point(self) -> Point:
        return self.column, self.row + self.lane


@dataclass(frozen=True)
class Sizes:
    column: float  # inches
    row: float  # inches
    diameter: float  # of a shared node, points
    line: float  # width, points


def map_sizes(num_domains: int) -> Sizes:
    return Sizes(0.62, 0.46, 22.0, 1.5) if num_domains <= 10 else Sizes(0.8, 0.6, 32.0, 1.1)


def middle(space: SearchSpace) -> float:
    return (len(space.blocks) + 1) / 2


def place_of(space: SearchSpace, node: Node) -> Point:
    """Column and row of a node; zero has row 0, the space's first block the top row."""
    if node.block in (STEM, HEAD):
        return float(node.layer + 1), middle(space)
    assert isinstance(node.block, Block)
    return float(node.layer + 1), float(_row(space, node.block))


def _row(space: SearchSpace, block: Block) -> int:
    return 0 if block == ZERO else len(space.blocks) - space.blocks.index(block)


def domain_lines(
    space: SearchSpace, paths: Mapping[str, Path], sizes: Sizes
) -> dict[str, list[Passing]]:
    """Where each domain's line passes, from the stem to the head convolution.

    Lines through one place lie side by side, in the order of the domains, the first on top.
    """
    ends = middle(space)
    rows = {d: [ends, *(float(_row(space, b)) for b in path), ends] for d, path in paths.items()}
    lines: dict[str, list[Passing]] = {domain: [] for domain in paths}
    for column in range(len(space.layers) + 2):
        together: dict[float, list[str]] = {}
        for domain in paths:
            together.setdefault(rows[domain][column], []).append(domain)
        for row, users in together.items():
            for domain, lane in zip(users, _lanes(len(users), sizes), strict=True):
                lines[domain].append(Passing(column, row, lane))
    return lines


def _lanes(num_users: int, sizes: Sizes) -> list[float]:
    """How far each line runs from the middle of a place, rows; all pass within its circle."""
    widest = 0.8 * sizes.diameter / (72 * sizes.row)
    step = min(widest / max(num_users - 1, 1), 0.1)
    return [step * ((num_users - 1) / 2 - place) for place in range(num_users)]


def head_points(space: SearchSpace, num_domains: int) -> list[Passing]:
    """Where each domain's line ends: at its head, in the order of the lanes."""
    column, height = len(space.layers) + 2.2, len(space.blocks) + 0.5
    step = min(height / num_domains, 1.0)
    top = middle(space) + step * (num_domains - 1) / 2
    return [Passing(column, top - place * step, 0.0) for place in range(num_domains)]


def lead(here: Passing, there: Passing) -> float:
    """How much later than others a line climbs or falls, columns.

    Of lines that climb together the upper one climbs first, and falls last: so they stay
    apart where they are steep, and do not cross.
    """
    if there.row == here.row:
        return 0.0
    return 0.8 * (-here.lane if there.row > here.row else here.lane)
