"""Rank correlation and the lead over random networks."""

import itertools

import pytest
import torch
from torch import Tensor

from mdl.results.diagnosis import FoundAgainstRandom, RewardAgainstTraining, kendall_tau


def counted(one: Tensor, other: Tensor) -> float:
    """Kendall's tau of rankings without ties, pair by pair."""
    pairs = list(itertools.combinations(range(len(one)), 2))
    agreeing = [(one[i] - one[j]).sign() * (other[i] - other[j]).sign() for i, j in pairs]
    return float(sum(agreeing)) / len(pairs)


@pytest.mark.parametrize("seed", range(5))
def test_tau_counts_the_pairs_that_agree(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.rand(2, 9, generator=generator)
    assert kendall_tau(one, other) == pytest.approx(counted(one, other), abs=1e-6)


def test_equal_and_reversed_rankings_are_the_ends_and_ties_are_ties() -> None:
    values = torch.tensor([0.1, 0.4, 0.2, 0.9])
    assert kendall_tau(values, 3 * values) == pytest.approx(1)
    assert kendall_tau(values, -values) == pytest.approx(-1)
    # 5 pairs that agree, one tied: 5 / sqrt(5 * 6)
    assert kendall_tau(torch.tensor([1.0, 1.0, 2.0, 3.0]), values.sort().values) == pytest.approx(
        5 / 30**0.5, abs=1e-6
    )


def test_too_few_or_equal_values_have_no_tau() -> None:
    assert kendall_tau(torch.rand(2), torch.rand(2)) is None
    assert kendall_tau(torch.ones(5), torch.rand(5)) is None


def test_runs_of_one_domain_count_for_that_domain_only() -> None:
    nan = torch.nan
    reward = torch.tensor([[0.1, 0.5], [0.2, nan], [0.3, 0.6], [0.4, 0.7]])
    trained = torch.tensor([[0.2, 0.9], [0.3, nan], [0.5, 0.8], [0.4, 0.7]])
    taus = RewardAgainstTraining(list("abcd"), ["x", "y"], reward, trained).taus()
    assert taus["x"] == (pytest.approx(4 / 6), 4)
    assert taus["y"] == (pytest.approx(-1), 3)
    assert taus["mean"] == (pytest.approx(0), 3)  # means 0.55, 0.65, 0.55: agree, not, tied


def test_the_lead_is_that_of_the_means() -> None:
    found = FoundAgainstRandom(
        ["x", "y"], torch.tensor([0.5, 0.7]), torch.tensor([[0.4, 0.6], [0.8, 0.8]])
    )
    assert found.lead == pytest.approx(0.6 - 0.65)
    assert found.beaten == 1
