"""Random paths of a wanted size."""

import random
from collections import Counter

import pytest

from mdl.errors import UserError
from mdl.networks.cost import CostTable, macs_of_all_domains
from mdl.networks.draws import PathUrn, random_paths_like
from mdl.networks.parameters import ParameterTable
from mdl.space.architecture import similarity
from mdl.space.search_space import Path, SearchSpace, Stage

CLASSES = {f"domain{i}": 3 + i for i in range(6)}


@pytest.fixture(scope="module")
def wide() -> SearchSpace:
    stages = (Stage(8, 3, 2, "relu"), Stage(16, 4, 2, "hardswish"))
    return SearchSpace(8, 1, stages, 24, kernels=(3, 5), expansions=(2, 4))


@pytest.fixture(scope="module")
def tables(wide: SearchSpace) -> tuple[CostTable, ParameterTable]:
    return CostTable(wide, 16, CLASSES), ParameterTable(wide, CLASSES, "per_domain")


def sharing(space: SearchSpace, novelty: float, seed: int) -> dict[str, Path]:
    """Wanted paths: of small novelty, domains are on nearly one path; of great, on their own."""
    return PathUrn(space, novelty, random.Random(seed)).draw(list(CLASSES))


def mean_similarity(paths: dict[str, Path]) -> float:
    table = similarity(paths)
    return (sum(map(sum, table)) / len(table) - 1) / (len(table) - 1)


@pytest.mark.parametrize(
    ("novelty", "private"), [(1e-9, False), (0.2, False), (1.0, False), (1e9, False), (1.0, True)]
)
def test_random_paths_weigh_and_cost_what_the_wanted_ones_do(
    wide: SearchSpace,
    tables: tuple[CostTable, ParameterTable],
    novelty: float,
    private: bool,
) -> None:
    costs, parameters = tables
    for seed in range(3):
        wanted = sharing(wide, novelty, seed)
        drawn = random_paths_like(wanted, costs, parameters, seed, private=private)
        size = parameters.count(drawn, private).total / parameters.count(wanted, private).total
        cost = macs_of_all_domains(drawn, costs) / macs_of_all_domains(wanted, costs)
        assert abs(size - 1) <= 0.01
        assert abs(cost - 1) <= 0.01
        assert list(drawn) == list(wanted)
        assert drawn != wanted


def test_seed_and_draw_say_which_random_paths(
    wide: SearchSpace, tables: tuple[CostTable, ParameterTable]
) -> None:
    costs, parameters = tables
    wanted = sharing(wide, 1.0, 0)

    def drawn(seed: int, draw: int) -> tuple[Path, ...]:
        return tuple(random_paths_like(wanted, costs, parameters, seed, draw).values())

    every = [drawn(seed, draw) for seed in range(3) for draw in range(3)]
    assert len(set(every)) == 9
    assert every == [drawn(seed, draw) for seed in range(3) for draw in range(3)]


@pytest.mark.parametrize("novelty", [0.2, 1.0, 1e9])
def test_random_paths_share_as_much_as_their_size_asks_and_not_all(
    wide: SearchSpace, tables: tuple[CostTable, ParameterTable], novelty: float
) -> None:
    costs, parameters = tables
    wanted, alike = [], []
    for seed in range(6):
        paths = sharing(wide, novelty, seed)
        wanted.append(mean_similarity(paths))
        alike.append(mean_similarity(random_paths_like(paths, costs, parameters, seed)))
    assert sum(alike) / 6 < 0.9
    assert sum(alike) / 6 == pytest.approx(sum(wanted) / 6, abs=0.2)


@pytest.mark.parametrize("novelty", [0.1, 1.0, 100.0])
def test_an_urn_prefers_no_block_whatever_its_novelty(wide: SearchSpace, novelty: float) -> None:
    """Neither in what it draws nor after its changes, at no layer and for no domain."""
    urn, domains = PathUrn(wide, novelty, random.Random(0)), ["first", "second", "last"]
    drawn: dict[str, Counter[object]] = {"fresh": Counter(), "changed": Counter()}
    for _ in range(2000):
        paths = urn.draw(domains)
        drawn["fresh"].update({(d, i, b): 1 for d, p in paths.items() for i, b in enumerate(p)})
        for _ in range(20):
            paths = urn.change(paths)
        drawn["changed"].update({(d, i, b): 1 for d, p in paths.items() for i, b in enumerate(p)})
    for counts in drawn.values():
        for domain in domains:
            for layer in wide.layers:
                expected = 2000 / len(layer.blocks)
                found = [counts[(domain, layer.index, block)] for block in layer.blocks]
                assert max(abs(n - expected) for n in found) < 5.5 * expected**0.5


def test_changes_leave_the_urns_sharing_as_it_is(wide: SearchSpace) -> None:
    urn = PathUrn(wide, 1.0, random.Random(0))
    fresh, changed = 0.0, 0.0
    for _ in range(300):
        paths = urn.draw(list(CLASSES))
        fresh += mean_similarity(paths) / 300
        for _ in range(40):
            paths = urn.change(paths)
        changed += mean_similarity(paths) / 300
    assert changed == pytest.approx(fresh, abs=0.03)


def test_a_space_without_such_paths_says_so() -> None:
    small = SearchSpace(8, 1, (Stage(8, 2, 2, "relu", 0),), 24, (3, 5), (2, 4), (False,))
    blocks = small.layers[0].blocks
    wanted: dict[str, Path] = {"one": (blocks[0], blocks[0])}
    costs, parameters = CostTable(small, 8, {"one": 2}), ParameterTable(small, {"one": 2}, "shared")
    assert random_paths_like(wanted, costs, parameters, 0) == wanted  # the only ones of that size
    other: dict[str, Path] = {"one": (blocks[0], blocks[0])}
    with pytest.raises(UserError, match="No random paths were found .* within -100%"):
        random_paths_like(other, costs, parameters, 0, tolerance=-1)
