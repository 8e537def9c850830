"""Parameters by table are those of the network that is built."""

import random

import pytest

from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.networks.parameters import ParameterTable
from mdl.space.search_space import SearchSpace
from tests.networks.counted import count_parameters

CLASSES = {"birds": 3, "cars": 40, "types": 2}


@pytest.mark.parametrize("batch_norm", ["per_domain", "shared"])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_table_counts_what_the_network_holds(
    space: SearchSpace, batch_norm: str, private: bool, seed: int
) -> None:
    generator = random.Random(seed)
    paths = {domain: space.random_path(generator) for domain in CLASSES}
    users = path_users(space, paths, private)
    built = count_parameters(MultiPathNetwork(space, users, CLASSES, batch_norm=batch_norm))
    assert ParameterTable(space, CLASSES, batch_norm).count(paths, private) == built
