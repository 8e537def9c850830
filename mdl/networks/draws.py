"""Paths that no search has found: what searched ones have to be better than."""

from __future__ import annotations

import random
from collections.abc import Mapping

from mdl.data.order import stable_key
from mdl.errors import UserError
from mdl.networks.cost import CostTable, macs_of_all_domains
from mdl.networks.parameters import ParameterTable
from mdl.space.search_space import Path, SearchSpace

_TRIES, _STEPS = 20, 4000


def random_paths_like(
    wanted: Mapping[str, Path],
    costs: CostTable,
    parameters: ParameterTable,
    seed: int,
    tolerance: float = 0.01,
) -> dict[str, Path]:
    """Random paths whose network weighs and costs what that of the wanted ones does.

    Starts from paths drawn uniformly and takes random single changes that bring parameters (with
    heads and norm) and multiply-adds (summed over domains) nearer, until both are within
    `tolerance` of the wanted ones.

    Raises UserError where none are found, as in a space of few blocks.
    """
    space, domains = costs.space, list(wanted)
    aim = (parameters.count(wanted).total, macs_of_all_domains(wanted, costs))

    def distance(paths: Mapping[str, Path]) -> float:
        found = (parameters.count(paths).total, macs_of_all_domains(paths, costs))
        return max(abs(a / b - 1) for a, b in zip(found, aim, strict=True))

    generator = random.Random(stable_key("random paths like", seed))
    for _ in range(_TRIES):
        paths = {domain: space.random_path(generator) for domain in domains}
        nearest = distance(paths)
        for _ in range(_STEPS):
            if nearest <= tolerance:
                return paths
            changed = _changed(paths, space, generator)
            if (now := distance(changed)) < nearest:
                paths, nearest = changed, now
    raise UserError(
        f"No random paths were found whose parameters and multiply-adds are within "
        f"{tolerance:.0%} of the wanted ones; expected a space with enough blocks. "
        "Widen space.kernels, space.expansions or the stages, or take retrain.paths=common."
    )


def _changed(
    paths: Mapping[str, Path], space: SearchSpace, generator: random.Random
) -> dict[str, Path]:
    """One domain's block at one layer, drawn anew."""
    domain = generator.choice(list(paths))
    layer = generator.choice(space.layers)
    path = list(paths[domain])
    path[layer.index] = generator.choice(layer.blocks)
    return {**paths, domain: tuple(path)}
