"""Paths of a wanted size: sizes are exact, expectations are averages, likely paths are kept."""

import random

import pytest
import torch
from torch import Tensor

from mdl.errors import UserError
from mdl.networks.controller import Controllers
from mdl.networks.cost import CostTable, macs_of_all_domains
from mdl.networks.parameters import ParameterTable
from mdl.networks.sizing import _NEAR, TOLERANCE, SizeTable, Target, most_likely_choices
from mdl.space.search_space import SearchSpace, Stage

CLASSES = {f"domain{i}": 3 + i for i in range(5)}


@pytest.fixture
def wide() -> SearchSpace:
    stages = (Stage(8, 3, 2, "relu"), Stage(16, 4, 2, "hardswish"))
    return SearchSpace(8, 1, stages, 24, kernels=(3, 5), expansions=(2, 4))


def sizes(space: SearchSpace, private: bool = False, batch_norm: str = "per_domain") -> SizeTable:
    parameters = ParameterTable(space, CLASSES, batch_norm)
    return SizeTable(parameters, CostTable(space, 16, CLASSES), private)


def drawn(space: SearchSpace, seed: int) -> Tensor:
    generator = random.Random(seed)
    of_layers = [len(layer.blocks) for layer in space.layers]
    return torch.tensor([[generator.randrange(n) for n in of_layers] for _ in CLASSES])


def log_probabilities(space: SearchSpace, seed: int, spread: float = 2.0) -> Tensor:
    controllers = Controllers(space, list(CLASSES))
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(controllers.logits, std=spread, generator=generator)
    return controllers.log_probabilities().detach()


@pytest.mark.parametrize("batch_norm", ["per_domain", "shared"])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_size_of_choices_is_that_of_their_network(
    wide: SearchSpace, private: bool, batch_norm: str, seed: int
) -> None:
    choices = drawn(wide, seed)
    paths = Controllers(wide, list(CLASSES)).paths(choices)
    parameters = ParameterTable(wide, CLASSES, batch_norm).count(paths, private).total
    macs = macs_of_all_domains(paths, CostTable(wide, 16, CLASSES))
    assert sizes(wide, private, batch_norm).total(choices).tolist() == [parameters, macs]


@pytest.mark.parametrize("private", [False, True])
def test_the_expected_size_is_the_mean_over_drawn_paths(wide: SearchSpace, private: bool) -> None:
    controllers, table = Controllers(wide, list(CLASSES)), sizes(wide, private)
    torch.nn.init.normal_(controllers.logits)
    totals = torch.stack([table.total(controllers.sample(0, step)) for step in range(2000)])
    expected = table.expected(controllers.log_probabilities().exp())
    error = totals.std(0) / len(totals) ** 0.5
    assert ((totals.mean(0) - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("params", "macs"), [(0.6, None), (None, 0.8), (0.7, 0.9), (1.3, 1.2)])
def test_the_network_found_has_the_size_that_was_asked_for(
    wide: SearchSpace, seed: int, params: float | None, macs: float | None
) -> None:
    log_p, table = log_probabilities(wide, seed), sizes(wide)
    of_best = table.total(log_p.argmax(-1)).tolist()
    asked = [
        None if part is None else part * of
        for part, of in zip((params, macs), of_best, strict=True)
    ]
    choices = most_likely_choices(log_p, table, Target(*asked))
    for found, wanted in zip(table.total(choices).tolist(), asked, strict=True):
        assert wanted is None or abs(found / wanted - 1) <= _NEAR


@pytest.mark.parametrize("seed", range(3))
def test_the_paths_of_a_size_are_likelier_than_any_change_of_one_block(
    wide: SearchSpace, seed: int
) -> None:
    log_p, table = log_probabilities(wide, seed), sizes(wide)
    target = Target(params=0.7 * float(table.total(log_p.argmax(-1))[0]))

    def likelihood(choices: Tensor) -> float:
        return float(log_p.gather(-1, choices[..., None]).sum())

    found = most_likely_choices(log_p, table, target)
    for domain in range(len(CLASSES)):
        for layer in wide.layers:
            for block in range(len(layer.blocks)):
                other = found.clone()
                other[domain, layer.index] = block
                if target.misses(table.total(other)).abs().max() <= _NEAR:
                    assert likelihood(other) <= likelihood(found) + 1e-4


def test_where_the_most_likely_paths_have_the_size_they_are_kept(wide: SearchSpace) -> None:
    log_p, table = log_probabilities(wide, 0), sizes(wide)
    best = log_p.argmax(-1)
    target = Target(*table.total(best).tolist())
    assert torch.equal(most_likely_choices(log_p, table, target), best)


def test_one_path_of_any_size_that_there_is_is_found() -> None:
    """Also where much weighs nothing, as in an addition, and single changes lead nowhere near."""
    stages = (Stage(8, 1, 2, "relu"), Stage(12, 2, 2, "relu"), Stage(48, 3, 2, "hardswish"))
    space = SearchSpace(8, 1, stages, 24, kernels=(3, 5), expansions=(2, 4))
    one = {"domain": 3}
    table = SizeTable(ParameterTable(space, one, "per_domain"), CostTable(space, 16, one), False)
    once = table.once.clone()
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        table.once.copy_(once * (torch.rand(once.shape, generator=generator) < 0.6))
        controllers = Controllers(space, list(one))
        choices = controllers.sample(seed, 0)
        torch.nn.init.normal_(controllers.logits, std=4.0, generator=generator)
        wanted = float(table.total(choices)[0])
        found = most_likely_choices(controllers.log_probabilities(), table, Target(wanted))
        assert abs(float(table.total(found)[0]) / wanted - 1) <= TOLERANCE, seed


def test_a_size_out_of_reach_is_told(wide: SearchSpace) -> None:
    with pytest.raises(UserError, match=r"search.target.params is 1e\+09, .* within 5%"):
        most_likely_choices(log_probabilities(wide, 0), sizes(wide), Target(params=1e9))


@pytest.mark.parametrize("seed", range(4))
def test_one_common_path_of_a_size_stays_one_path(wide: SearchSpace, seed: int) -> None:
    controllers = Controllers(wide, list(CLASSES), common=True)
    torch.nn.init.normal_(controllers.logits)
    log_p = controllers.log_probabilities().detach()
    parameters, costs = ParameterTable(wide, CLASSES, "per_domain"), CostTable(wide, 16, CLASSES)
    table = SizeTable(parameters, costs, private=False, common=True)
    best = log_p.argmax(-1)
    target = Target(macs=0.7 * float(table.total(best)[1]))
    found = most_likely_choices(log_p, table, target)
    assert (found == found[0]).all()
    assert target.misses(table.total(found)).abs().max() <= TOLERANCE


def test_the_expected_size_of_a_common_path_is_the_mean_over_draws(wide: SearchSpace) -> None:
    controllers = Controllers(wide, list(CLASSES), common=True)
    torch.nn.init.normal_(controllers.logits)
    parameters, costs = ParameterTable(wide, CLASSES, "per_domain"), CostTable(wide, 16, CLASSES)
    table = SizeTable(parameters, costs, private=False, common=True)
    totals = torch.stack([table.total(controllers.sample(0, step)) for step in range(2000)])
    expected = table.expected(controllers.log_probabilities().exp())
    error = totals.std(0) / len(totals) ** 0.5
    assert ((totals.mean(0) - expected).abs() < 4 * error).all()
