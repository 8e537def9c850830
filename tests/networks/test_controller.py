import itertools
import math

import pytest
import torch

from mdl.networks.controller import Controllers
from mdl.space.search_space import ZERO, SearchSpace, Stage

DOMAINS = ("birds", "cars")


@pytest.fixture
def tiny() -> SearchSpace:
    """Two layers: two blocks, then two blocks or zero."""
    return SearchSpace(4, 1, (Stage(4, 2, 2, "relu"),), 4, (3, 5), (1,), (False,))


def every_path(space: SearchSpace) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*(range(len(la.blocks)) for la in space.layers))))


def test_the_reinforce_gradient_equals_the_enumerated_expectation(tiny: SearchSpace) -> None:
    """Mean over paths of -reward * grad log p(path) is the gradient of -E[reward]."""
    controllers = Controllers(tiny, ["one"])
    paths = every_path(tiny)
    with torch.no_grad():
        controllers.logits.normal_()
    rewards = torch.rand(len(paths))
    probability = torch.stack([controllers.log_probability(p[None])[0] for p in paths]).exp()
    expectation = -(probability * rewards).sum()
    exact = torch.autograd.grad(expectation, controllers.logits)[0]
    estimate = torch.zeros_like(exact)
    for path, reward, p in zip(paths, rewards, probability.detach(), strict=True):
        for baseline in (0.0, 0.7):  # any baseline leaves the expectation as it is
            objective = -((reward - baseline) * controllers.log_probability(path[None])).sum()
            estimate += p / 2 * torch.autograd.grad(objective, controllers.logits)[0]
    assert torch.allclose(exact, estimate, atol=1e-6)


def test_probabilities_of_all_paths_sum_to_one(tiny: SearchSpace) -> None:
    controllers = Controllers(tiny, DOMAINS)
    torch.nn.init.normal_(controllers.logits)
    total = sum(controllers.log_probability(p.expand(2, -1)).exp() for p in every_path(tiny))
    assert torch.allclose(total, torch.ones(2), atol=1e-5)


def test_paths_are_drawn_as_often_as_they_are_likely(tiny: SearchSpace) -> None:
    controllers = Controllers(tiny, ["one"])
    torch.nn.init.normal_(controllers.logits)
    drawn = torch.stack([controllers.sample(0, step)[0] for step in range(4000)])
    for path in every_path(tiny):
        frequency = (drawn == path).all(1).float().mean()
        expected = controllers.log_probability(path[None]).exp()
        assert frequency.item() == pytest.approx(expected.item(), abs=0.03)


def test_a_draw_is_a_function_of_seed_and_step(tiny: SearchSpace) -> None:
    controllers = Controllers(tiny, DOMAINS)
    assert torch.equal(controllers.sample(1, 5), controllers.sample(1, 5))
    draws = {tuple(controllers.sample(1, step).flatten().tolist()) for step in range(40)}
    assert len(draws) > 10


def test_one_controller_for_all_draws_one_path_for_all(tiny: SearchSpace) -> None:
    controllers = Controllers(tiny, DOMAINS, common=True)
    for step in range(20):
        birds, cars = controllers.sample(0, step)
        assert torch.equal(birds, cars)
    assert controllers.entropy().shape == (2,)


def test_no_layer_is_given_a_block_that_it_lacks(tiny: SearchSpace) -> None:
    controllers = Controllers(tiny, DOMAINS)
    for step in range(50):
        for draw in (controllers.sample(0, step), controllers.sample_start(0, step, False)):
            for path in controllers.paths(draw).values():
                tiny.check_path(path, "drawn")
    with torch.no_grad():
        controllers.logits[:, 0, 2] = 100.0
    for path in controllers.best_paths().values():
        tiny.check_path(path, "best")


def test_entropy_is_that_of_a_uniform_choice_at_the_start_and_falls(tiny: SearchSpace) -> None:
    controllers = Controllers(tiny, DOMAINS)
    uniform = (math.log(2) + math.log(3)) / 2
    assert controllers.entropy().tolist() == pytest.approx([uniform] * 2)
    with torch.no_grad():
        controllers.logits[0, :, 0] = 3.0
    birds, cars = controllers.entropy().tolist()
    assert birds < 0.5 * uniform
    assert cars == pytest.approx(uniform)


def test_agreement_is_greatest_where_controllers_agree(tiny: SearchSpace) -> None:
    controllers = Controllers(tiny, DOMAINS)
    with torch.no_grad():
        controllers.logits[:, :, 0] = 10.0
    assert controllers.agreement().tolist() == pytest.approx([2, 2], abs=0.01)
    with torch.no_grad():
        controllers.logits[1, :, 0] = -10.0
    assert controllers.agreement().max() < 0.01
    assert Controllers(tiny, ["one"]).agreement().tolist() == [0]


def test_following_agreement_brings_controllers_together(tiny: SearchSpace) -> None:
    controllers = Controllers(tiny, DOMAINS)
    torch.nn.init.normal_(controllers.logits)
    optimizer = torch.optim.Adam(controllers.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (-controllers.agreement().sum()).backward()
        optimizer.step()
    birds, cars = controllers.best_paths().values()
    assert birds == cars


def test_noise_makes_the_most_likely_choices_a_draw(tiny: SearchSpace) -> None:
    controllers = Controllers(tiny, DOMAINS)
    with torch.no_grad():
        controllers.logits.normal_()
    p = controllers.log_probabilities().detach().exp()
    plain = controllers.perturbed(0, 0)
    assert torch.equal(plain, controllers.log_probabilities())
    drawn = torch.stack([controllers.perturbed(0, draw).argmax(-1) for draw in range(1, 2001)])
    often = torch.nn.functional.one_hot(drawn, p.shape[-1]).float().mean(0)
    assert torch.allclose(often, p, atol=0.05)  # four standard deviations
    assert torch.equal(controllers.perturbed(0, 7), controllers.perturbed(0, 7))


def test_one_controller_for_all_has_one_noise_for_all(tiny: SearchSpace) -> None:
    noisy = Controllers(tiny, DOMAINS, common=True).perturbed(0, 3)
    assert torch.equal(noisy[0], noisy[1])


def test_expansions_equally_likely_make_a_skipped_layer_one_choice_of_three(tiny):
    controllers = Controllers(tiny, DOMAINS, start="expansions")
    by_block, by_draw = controllers.log_probabilities().exp()[0], controllers.start
    torch.testing.assert_close(by_block, by_draw)
    for row, layer in zip(by_draw, tiny.layers, strict=True):
        of: dict[int, float] = {}
        for probability, block in zip(row.tolist(), layer.blocks, strict=False):
            expansion = 0 if block == ZERO else block.expansion
            of[expansion] = of.get(expansion, 0.0) + probability
        assert all(abs(total - 1 / len(of)) < 1e-6 for total in of.values()), layer


def test_warm_up_draws_as_controllers_begin(tiny):
    controllers = Controllers(tiny, ["one"], start="expansions")
    drawn = torch.cat([controllers.sample_start(0, step, False) for step in range(3000)])
    for at, row in enumerate(controllers.start):
        found = drawn[:, at].bincount(minlength=len(row)) / len(drawn)
        assert (found - row).abs().max() < 0.04


def test_a_restricted_layer_offers_what_is_kept_and_zero(space: SearchSpace) -> None:
    controllers = Controllers(space, ["birds"])
    kept = space.blocks[1]
    controllers.restrict([{kept} for _ in space.layers])
    draws = [controllers.sample(0, step) for step in range(20)]
    draws += [controllers.sample_start(0, step, common=False) for step in range(20)]
    drawn = {block for choices in draws for block in controllers.paths(choices)["birds"]}
    assert drawn == {kept, ZERO}
    totals = controllers.start.sum(1)
    assert torch.allclose(totals, torch.ones_like(totals))
