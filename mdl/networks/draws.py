"""Paths that no search has found: what searched ones have to be better than."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from mdl.data.order import stable_key
from mdl.errors import UserError
from mdl.networks.cost import CostTable, macs_of_all_domains
from mdl.networks.parameters import ParameterTable
from mdl.space.search_space import Block, Path, SearchSpace

_TRIES, _STEPS = 5, 2000
_NOVELTIES = tuple(2.0**power for power in range(-6, 11))  # from one path to independent ones
_SAMPLE = 12  # networks by which a novelty is judged


class PathUrn:
    """Random paths that share: at each layer by itself, domains draw blocks from an urn.

    A domain takes a block drawn uniformly from those that the layer offers, with probability
    novelty / (novelty + number of domains before it), else the block of one of them (the urn of
    Blackwell and MacQueen, 1973). So each path by itself is uniform, whatever the novelty: no
    kind of block is preferred, and the domains' order does not matter. Only how much they share
    changes: near 0 it is one common path, a great novelty makes paths independent.
    """

    def __init__(self, space: SearchSpace, novelty: float, generator: random.Random) -> None:
        self.space, self.novelty, self.generator = space, novelty, generator

    def draw(self, domains: Sequence[str]) -> dict[str, Path]:
        columns = []
        for layer in self.space.layers:
            column: list[Block] = []
            for _ in domains:
                column.append(self._block(layer.blocks, column))
            columns.append(column)
        return dict(zip(domains, zip(*columns, strict=True), strict=True))

    def change(self, paths: Mapping[str, Path]) -> dict[str, Path]:
        """A change at one layer, after which paths are distributed as they were before.

        Either one domain's block is drawn again, the others' given; or two of the layer's blocks
        change places, for all domains that take them.
        """
        layer = self.generator.choice(self.space.layers)
        column = {domain: path[layer.index] for domain, path in paths.items()}
        if self.generator.random() < 0.5:
            domain = self.generator.choice(list(column))
            others = [block for name, block in column.items() if name != domain]
            column[domain] = self._block(layer.blocks, others)
        else:
            one = self.generator.choice(list(column.values()))
            other = self.generator.choice(layer.blocks)
            swapped = {one: other, other: one}
            column = {domain: swapped.get(block, block) for domain, block in column.items()}
        at = layer.index
        return {d: (*path[:at], column[d], *path[at + 1 :]) for d, path in paths.items()}

    def _block(self, offered: Sequence[Block], others: Sequence[Block]) -> Block:
        is_new = self.generator.random() * (self.novelty + len(others)) < self.novelty
        return self.generator.choice(offered if is_new else others)


class RandomPaths:
    """Random paths whose network has a wanted size and cost.

    Paths are drawn from an urn (`PathUrn`) and changed at random, changes that leave the urn's
    distribution as it is, until parameters (with heads and norm) and multiply-adds (summed over
    domains) are both within `tolerance`; a change that leads away from them is kept the more
    seldom the farther and the later (simulated annealing, Kirkpatrick et al., 1983). The urn's
    novelty is that of networks with the wanted parameters per multiply-add on average. So the
    paths are those of an urn, near to the wanted size and cost: no kind of block is preferred
    but as these ask for it.

    size, cost: wanted parameters and multiply-adds. private: of networks that share nothing.
    """

    def __init__(
        self,
        domains: Sequence[str],
        size: float,
        cost: float,
        costs: CostTable,
        parameters: ParameterTable,
        private: bool = False,
        tolerance: float = 0.01,
    ) -> None:
        self.domains, self.private, self.tolerance = list(domains), private, tolerance
        self.size, self.cost = size, cost
        self.costs, self.parameters = costs, parameters
        as_dense = min(_NOVELTIES, key=lambda of: abs(self._density(of) - size / cost))
        self.novelty = max(_NOVELTIES) if private else as_dense

    def draw(self, seed: int, draw: int = 0) -> dict[str, Path]:
        """The paths of a seed and the number of a draw.

        Raises UserError where none are found, as in a space of few blocks.
        """
        generator = random.Random(stable_key("random paths", seed, draw))
        urn = PathUrn(self.costs.space, self.novelty, generator)
        walks = (_walk(urn, self.domains, self._distance, self.tolerance) for _ in range(_TRIES))
        if (found := next((paths for paths in walks if paths is not None), None)) is not None:
            return found
        raise UserError(
            f"No random paths were found whose parameters and multiply-adds are within "
            f"{self.tolerance:.0%} of the wanted ones; expected a space with enough blocks. "
            "Widen space.kernels, space.expansions or the stages, or ask for another size."
        )

    def _distance(self, paths: Mapping[str, Path]) -> float:
        size = self.parameters.count(paths, self.private).total
        cost = macs_of_all_domains(paths, self.costs)
        return max(abs(size / self.size - 1), abs(cost / self.cost - 1))

    def _density(self, novelty: float) -> float:
        """Parameters per multiply-add of a few networks; the same draws for any novelty."""
        urn = PathUrn(self.costs.space, novelty, random.Random(0))
        found = [urn.draw(self.domains) for _ in range(_SAMPLE)]
        size = sum(self.parameters.count(paths, self.private).total for paths in found)
        return size / sum(macs_of_all_domains(paths, self.costs) for paths in found)


def random_paths_like(
    wanted: Mapping[str, Path],
    costs: CostTable,
    parameters: ParameterTable,
    seed: int,
    draw: int = 0,
    private: bool = False,
    tolerance: float = 0.01,
) -> dict[str, Path]:
    """Random paths of the size and cost of the wanted ones, of which nothing else enters."""
    size = parameters.count(wanted, private).total
    cost = macs_of_all_domains(wanted, costs)
    like = RandomPaths(list(wanted), size, cost, costs, parameters, private, tolerance)
    return like.draw(seed, draw)


def _walk(
    urn: PathUrn,
    domains: Sequence[str],
    distance: Callable[[Mapping[str, Path]], float],
    tolerance: float,
) -> dict[str, Path] | None:
    """The first paths of a walk that are near enough, if any."""
    paths = urn.draw(domains)
    away = distance(paths)
    for step in range(_STEPS):
        if away <= tolerance:
            return paths
        changed = urn.change(paths)
        now = distance(changed)
        temperature = tolerance * (1 - step / _STEPS)
        if now <= away + temperature * urn.generator.expovariate(1):
            paths, away = changed, now
    return None
