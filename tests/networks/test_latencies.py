"""Latencies of drawn paths, and likely paths within a budget."""

import pytest
import torch
from torch import Tensor

from mdl.errors import UserError
from mdl.networks.controller import Controllers
from mdl.networks.latencies import TOLERANCE, PathLatencies
from mdl.space.search_space import SearchSpace
from tests.space.test_latency import table

CLASSES = {"birds": 3, "cars": 40}


def latencies(space: SearchSpace, budget: float) -> PathLatencies:
    return PathLatencies(table(space), CLASSES, dict.fromkeys(CLASSES, budget))


def controllers(space: SearchSpace) -> Controllers:
    of = Controllers(space, list(CLASSES))
    torch.nn.init.normal_(of.logits)
    return of


def most_likely(log_p: Tensor) -> Tensor:
    return log_p.argmax(-1)


def test_latencies_of_choices_are_those_of_their_paths(space: SearchSpace) -> None:
    drawn = controllers(space).sample(0, 0)
    found = latencies(space, 1.0).of(drawn).tolist()
    paths = controllers(space).paths(drawn)
    for ms, (domain, path) in zip(found, paths.items(), strict=True):
        assert ms == pytest.approx(table(space).path_milliseconds(path, CLASSES[domain]))


def test_a_budget_that_is_met_changes_nothing(space: SearchSpace) -> None:
    log_p = controllers(space).log_probabilities()
    choices = latencies(space, 99.0).likely_within(log_p, most_likely)
    assert torch.equal(choices, log_p.argmax(-1))


@pytest.mark.parametrize("budget", [0.58, 0.62])
def test_paths_are_within_their_budget(space: SearchSpace, budget: float) -> None:
    log_p = controllers(space).log_probabilities()
    of = latencies(space, budget)
    choices = of.likely_within(log_p, most_likely)
    assert (of.of(choices) <= budget * (1 + TOLERANCE)).all()


def test_only_domains_over_their_budget_change(space: SearchSpace) -> None:
    log_p = controllers(space).log_probabilities()
    of = PathLatencies(table(space), CLASSES, {"birds": 0.54, "cars": 99.0})
    assert torch.equal(of.likely_within(log_p, most_likely)[1], log_p.argmax(-1)[1])


@pytest.mark.parametrize("budget", [{"birds": 0.54, "cars": 99.0}, {"birds": 9.0, "cars": 0.57}])
def test_one_path_for_all_stays_one_within_each_budget(
    space: SearchSpace, budget: dict[str, float]
) -> None:
    """As under a budget for each the one domain alone would have left it."""
    log_p = controllers(space).log_probabilities()[:1].expand(len(CLASSES), -1, -1)
    alone = PathLatencies(table(space), CLASSES, budget)
    assert alone.likely_within(log_p, most_likely).unique(dim=0).shape[0] == 2
    common = PathLatencies(table(space), CLASSES, budget, common=True)
    choices = common.likely_within(log_p, most_likely)
    assert choices.unique(dim=0).shape[0] == 1
    assert (common.of(choices) <= common.budget * (1 + TOLERANCE)).all()


def test_a_budget_out_of_reach_is_told(space: SearchSpace) -> None:
    log_p = controllers(space).log_probabilities()
    with pytest.raises(UserError, match=r"No path of 'cars' within its budget.*0\.1 ms"):
        latencies(space, 0.1).likely_within(log_p, most_likely)
