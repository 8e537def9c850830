"""Laws of GradNorm."""

import copy
import math
from collections.abc import Mapping

import pytest
import torch

from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.space.search_space import SearchSpace
from mdl.training.gradnorm import FLOOR, GradNorm

CLASSES = {"birds": 3, "cars": 4, "types": 2}


class GivenGradients:
    """Of given norms, whatever the losses."""

    def __init__(self, norms: torch.Tensor) -> None:
        self.norms = norms

    def of(self, losses: torch.Tensor) -> torch.Tensor:
        return self.norms[:, None, None].expand(-1, 2, 2) / 2


def begun(
    space: SearchSpace,
    norms: torch.Tensor | None = None,
    alpha: float = 1.5,
    initial_loss: str = "measured",
    classes: Mapping[str, int] = CLASSES,
) -> GradNorm:
    path = space.uniform_path(space.reference_block)
    users = path_users(space, dict.fromkeys(classes, path))
    gradnorm = GradNorm(alpha, learning_rate=0.025, initial_loss=initial_loss)
    gradnorm.begin(MultiPathNetwork(space, users, classes))
    if norms is not None:
        gradnorm.gradients = GivenGradients(norms)  # type: ignore[assignment]
    return gradnorm


def set_weights(gradnorm: GradNorm, weights: torch.Tensor) -> None:
    with torch.no_grad():
        gradnorm.weights.copy_(weights)


def test_the_gradient_of_the_weights_is_that_of_finite_differences(space: SearchSpace) -> None:
    gradnorm = begun(space)
    weights, norms = torch.tensor([0.5, 1.7, 0.8]), torch.tensor([0.3, 0.9, 2.0])
    ratios = torch.tensor([0.9, 0.4, 0.7])
    set_weights(gradnorm, weights)
    (found,) = torch.autograd.grad(gradnorm.objective(norms, ratios), gradnorm.weights)

    # the target is that of the weights as they are, wherever a difference is taken
    targets = (weights * norms).mean() * (ratios / ratios.mean()) ** 1.5

    def distance(w: torch.Tensor) -> torch.Tensor:
        return (w * norms - targets).abs().sum()

    step = 1e-3
    for i in range(3):
        aside = torch.zeros(3)
        aside[i] = step
        difference = distance(weights + aside) - distance(weights - aside)
        assert found[i].item() == pytest.approx(difference.item() / (2 * step), rel=1e-3)


def test_a_step_of_the_weights_is_adams_and_then_scaled_back(space: SearchSpace) -> None:
    norms, means = torch.tensor([0.3, 0.9, 2.0]), torch.tensor([1.0, 2.0, 0.5])
    gradnorm = begun(space, norms)
    assert gradnorm.weigh(means, means).tolist() == [1, 1, 1]
    # Adam's first step is its rate against the gradient's sign; all r are 1 at first
    by_hand = 1 - 0.025 * (norms - norms.mean()).sign()
    assert torch.allclose(gradnorm.weights, by_hand * 3 / by_hand.sum())


def test_without_alpha_the_norms_become_equal(space: SearchSpace) -> None:
    norms, means = torch.tensor([1.0, 2.0, 4.0]), torch.ones(3)
    gradnorm = begun(space, norms, alpha=0.0)
    for _ in range(400):
        gradnorm.weigh(means, means)
    weighted = gradnorm.weights.detach() * norms
    assert ((weighted / weighted.mean() - 1).abs() < 0.1).all()


def test_a_domain_that_learns_slowly_gets_the_greater_gradient(space: SearchSpace) -> None:
    norms = torch.ones(3)
    gradnorm = begun(space, norms, alpha=1.0)
    gradnorm.weigh(torch.ones(3), torch.ones(3))
    slow = torch.tensor([0.9, 0.6, 0.3])
    for _ in range(400):
        weights = gradnorm.weigh(slow, slow)
    assert torch.allclose(weights, slow / slow.mean(), atol=0.05)


def test_weights_add_up_to_the_number_of_domains_and_stay_above_zero(space: SearchSpace) -> None:
    gradnorm = begun(space, torch.tensor([100.0, 0.01, 1.0]))
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        means = torch.rand(3, generator=generator)
        weights = gradnorm.weigh(means, means)
        assert weights.sum().item() == pytest.approx(3, rel=1e-5)
        assert (weights > FLOOR / 3).all()
    assert weights.min() < 0.1  # the floor was met


def test_the_first_losses_are_those_of_the_first_step_or_of_a_guess(space: SearchSpace) -> None:
    measured = begun(space, torch.ones(3))
    first, second = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])
    measured.weigh(first, first)
    measured.weigh(second, second)
    assert torch.equal(measured.initial, first)  # type: ignore[arg-type]
    classes = {"birds": 3, "cars": 4, "one": 1}
    guessed = begun(space, torch.ones(3), initial_loss="log_classes", classes=classes)
    guessed.weigh(first, first)
    assert guessed.initial is not None
    assert guessed.initial.tolist() == pytest.approx([math.log(3), math.log(4), math.log(2)])


def test_what_it_has_learnt_and_the_first_losses_survive_a_checkpoint(space: SearchSpace) -> None:
    norms, first = torch.ones(3), torch.tensor([4.0, 1.0, 2.0])
    one, other = begun(space, norms), begun(space, norms)
    one.weigh(first, first)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for means in torch.rand(3, 3):
        assert torch.equal(one.weigh(means, means), other.weigh(means, means))
    assert torch.equal(one.weights, other.weights)
    assert one.weights.std() > 0.01
