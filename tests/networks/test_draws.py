"""Random paths of a wanted size."""

import random

import pytest

from mdl.errors import UserError
from mdl.networks.cost import CostTable, macs_of_all_domains
from mdl.networks.draws import random_paths_like
from mdl.networks.parameters import ParameterTable
from mdl.space.search_space import Path, SearchSpace, Stage

CLASSES = {f"domain{i}": 3 + i for i in range(6)}


@pytest.fixture
def wide() -> SearchSpace:
    stages = (Stage(8, 3, 2, "relu"), Stage(16, 4, 2, "hardswish"))
    return SearchSpace(8, 1, stages, 24, kernels=(3, 5), expansions=(2, 4))


@pytest.mark.parametrize("seed", range(3))
def test_random_paths_weigh_and_cost_what_the_wanted_ones_do(wide: SearchSpace, seed: int) -> None:
    costs, parameters = CostTable(wide, 16, CLASSES), ParameterTable(wide, CLASSES, "per_domain")
    generator = random.Random(seed)
    wanted = {domain: wide.random_path(generator) for domain in CLASSES}
    drawn = random_paths_like(wanted, costs, parameters, seed)
    size = parameters.count(drawn).total / parameters.count(wanted).total
    cost = macs_of_all_domains(drawn, costs) / macs_of_all_domains(wanted, costs)
    assert abs(size - 1) <= 0.01
    assert abs(cost - 1) <= 0.01
    assert drawn != wanted
    assert drawn == random_paths_like(wanted, costs, parameters, seed)
    assert drawn != random_paths_like(wanted, costs, parameters, seed + 100)


def test_a_space_without_such_paths_says_so() -> None:
    small = SearchSpace(8, 1, (Stage(8, 2, 2, "relu", 0),), 24, (3, 5), (2, 4), (False,))
    blocks = small.layers[0].blocks
    wanted: dict[str, Path] = {"one": (blocks[0], blocks[0])}
    costs, parameters = CostTable(small, 8, {"one": 2}), ParameterTable(small, {"one": 2}, "shared")
    assert random_paths_like(wanted, costs, parameters, 0) == wanted  # the only ones of that size
    other: dict[str, Path] = {"one": (blocks[0], blocks[0])}
    with pytest.raises(UserError, match="No random paths were found .* within -100%"):
        random_paths_like(other, costs, parameters, 0, tolerance=-1)
