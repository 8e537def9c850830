import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from callbacks.abdp import ABDP

losses = st.lists(st.floats(0.01, 3.0), min_size=1, max_size=12).map(torch.tensor)


@given(losses)
def test_weights_have_a_mean_of_one_and_stay_within_bounds(values: torch.Tensor) -> None:
    weights = ABDP(bound=4.0).weights(values)
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    assert (weights.max() / weights.min()).item() <= 16.01


@given(losses)
def test_a_domain_with_a_greater_loss_counts_no_less(values: torch.Tensor) -> None:
    weights = ABDP().weights(values)
    ordered = weights[values.argsort()]
    assert (ordered.diff() >= -1e-6).all()


@given(losses, st.floats(0.1, 10))
def test_weights_follow_the_relation_of_losses_not_their_height(
    values: torch.Tensor, scale: float
) -> None:
    one, other = ABDP().weights(values), ABDP().weights(values * scale)
    assert torch.allclose(one, other, atol=1e-4)


def test_its_state_survives_a_checkpoint() -> None:
    before = ABDP()
    before.smoothed, before.steps = torch.tensor([1.0, 2.0]), 30
    after = ABDP()
    after.load_state_dict(before.state_dict())
    assert torch.equal(after.smoothed, before.smoothed)  # type: ignore[arg-type]
    assert after.steps == 30


def test_domains_without_losses_weigh_the_same() -> None:
    """As those of a frozen super-network."""
    torch.testing.assert_close(ABDP().weights(torch.zeros(3)), torch.ones(3))
