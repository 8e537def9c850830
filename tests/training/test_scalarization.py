"""Weights of TorchJD's scalarizers, against their formulas by hand."""

import copy
import itertools

import pytest
import torch

from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.space.search_space import SearchSpace
from mdl.training.scalarization import (
    DynamicWeightAverage,
    FastAdaptive,
    Scalarization,
    UncertaintyWeighting,
)

CLASSES = {"birds": 3, "cars": 4, "types": 2}
LOSSES = torch.tensor([[1.0, 2.0, 0.5], [0.9, 1.0, 0.4], [0.8, 0.9, 0.1], [0.7, 0.9, 0.05]])


def begun(scalarization: Scalarization, space: SearchSpace) -> Scalarization:  # type: ignore[type-arg]
    path = space.uniform_path(space.reference_block)
    users = path_users(space, dict.fromkeys(CLASSES, path))
    scalarization.begin(MultiPathNetwork(space, users, CLASSES))
    return scalarization


def weighed(scalarization: Scalarization, losses: torch.Tensor) -> torch.Tensor:  # type: ignore[type-arg]
    weights = scalarization.weigh(losses, losses)
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)
    return weights


def of_mean_one(weights: torch.Tensor) -> torch.Tensor:
    return weights / weights.mean()


def test_uncertainty_weights_are_inverse_variances_that_adam_learns(space: SearchSpace) -> None:
    uncertainty = begun(UncertaintyWeighting(learning_rate=0.1), space)
    log_var = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([log_var], lr=0.1)
    for losses in LOSSES:
        objective = (0.5 * (-log_var).exp() * losses + 0.5 * log_var).sum()
        assert torch.allclose(uncertainty.scalarizer(losses), objective)
        expected = of_mean_one((-log_var).exp().detach())
        assert torch.allclose(weighed(uncertainty, losses), expected, atol=1e-6)
        (log_var.grad,) = torch.autograd.grad(objective, log_var)
        adam.step()


def test_uncertainty_weights_end_where_each_domain_counts_by_its_loss(space: SearchSpace) -> None:
    uncertainty = begun(UncertaintyWeighting(learning_rate=0.05), space)
    for _ in range(300):
        weights = weighed(uncertainty, LOSSES[0])
    assert torch.allclose(weights, of_mean_one(1 / LOSSES[0]), rtol=1e-2)


def test_dwa_weighs_by_the_ratio_of_the_last_two_epochs(space: SearchSpace) -> None:
    dwa = begun(DynamicWeightAverage(temperature=2.0, interval=2), space)
    steps = torch.cat([LOSSES, LOSSES[:1]])
    weights = torch.stack([weighed(dwa, losses) for losses in steps])
    assert torch.equal(weights[:4], torch.ones(4, 3))
    ratio = LOSSES[2:4].mean(0) / LOSSES[:2].mean(0)
    assert torch.allclose(weights[4], 3 * torch.softmax(ratio / 2, 0))


def test_famo_weighs_by_log_losses_and_learns_from_what_a_step_did(space: SearchSpace) -> None:
    famo = begun(FastAdaptive(learning_rate=0.025), space)
    logits = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=1e-3)
    for before, after in itertools.pairwise(LOSSES):
        z = logits.softmax(0)
        expected = of_mean_one((z / (before + 1e-8)).detach())
        assert torch.allclose(weighed(famo, before), expected, atol=1e-6)
        famo.look_back(after)
        change = (before + 1e-8).log() - (after + 1e-8).log()
        (logits.grad,) = torch.autograd.grad(z, logits, change)
        adam.step()
    assert logits.detach().abs().max() > 0.01


@pytest.mark.parametrize(
    "scalarization",
    [UncertaintyWeighting(0.1), DynamicWeightAverage(2.0, 1), FastAdaptive(0.1)],
)
def test_the_weighted_sum_has_the_direction_of_the_scalarizers_gradient(
    space: SearchSpace,
    scalarization: Scalarization,  # type: ignore[type-arg]
) -> None:
    begun(scalarization, space)
    network = torch.nn.Linear(4, 3)
    images = torch.randn(8, 4)

    def losses() -> torch.Tensor:
        squares: torch.Tensor = network(images).square()
        return squares.mean(0)

    for _ in range(4):
        as_it_is = copy.deepcopy(scalarization.scalarizer)
        (direct,) = torch.autograd.grad(as_it_is(losses()), network.weight)
        weights = scalarization.weigh(losses(), losses().detach())
        (found,) = torch.autograd.grad((weights * losses()).sum(), network.weight)
        assert torch.allclose(found / found.norm(), direct / direct.norm(), atol=1e-6)
        with torch.no_grad():
            network.weight -= 0.1 * found
        if scalarization.looks_back:
            scalarization.look_back(losses().detach())
