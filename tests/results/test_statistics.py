import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.results.statistics import (
    Spread,
    multi_task_delta,
    paired,
    t_probability,
    t_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    # the two-sided 95 % column of any table of Student's t
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)],
)
def test_quantiles_are_those_of_the_table(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=6e-4)


def test_many_degrees_of_freedom_are_the_normal_distribution() -> None:
    assert t_quantile(5000) == pytest.approx(1.96, abs=1e-3)
    assert t_quantile(1, 0.5) == pytest.approx(1.0)  # quartiles of the Cauchy distribution


@given(st.integers(1, 12), st.floats(0.05, 20.0))
def test_the_probability_is_the_area_under_the_density(freedom: int, t: float) -> None:
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
    scale /= math.sqrt(freedom * math.pi)
    parts = 4000
    density = [
        scale * (1 + (t * (place + 0.5) / parts) ** 2 / freedom) ** (-(freedom + 1) / 2)
        for place in range(parts)
    ]
    assert t_probability(t, freedom) == pytest.approx(2 * t / parts * sum(density), abs=1e-4)


def test_a_spread_is_what_a_hand_computes() -> None:
    """1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, variance 7."""
    spread = Spread.of([1.0, 2.0, 6.0])
    assert (spread.mean, spread.count) == (3.0, 3)
    assert spread.deviation == pytest.approx(math.sqrt(7))
    assert spread.half_width == pytest.approx(4.3027 * math.sqrt(7 / 3), abs=1e-3)


def test_one_seed_has_no_interval() -> None:
    spread = Spread.of([0.5])
    assert spread.deviation is None and spread.half_width is None


def test_differences_are_of_the_same_seed() -> None:
    """Seeds that move both rows alike leave no spread in their difference."""
    one, other = {0: 0.9, 1: 0.5, 2: 0.7}, {2: 0.6, 0: 0.8, 1: 0.4, 3: 0.0}
    difference = paired(one, other)
    assert difference is not None
    assert difference.count == 3 and difference.mean == pytest.approx(0.1)
    assert difference.deviation == pytest.approx(0.0, abs=1e-12)


def test_rows_without_a_common_seed_have_no_difference() -> None:
    assert paired({0: 0.5}, {1: 0.5}) is None


def test_the_delta_is_that_of_the_survey() -> None:
    """NYUD-v2, MTL baseline: the one measure of which more is better, 43.9 to 44.4."""
    assert multi_task_delta({"seg": 44.4}, {"seg": 43.9}) == pytest.approx(0.0114, abs=1e-4)
    delta = multi_task_delta({"a": 0.6, "b": 0.3}, {"a": 0.5, "b": 0.4})
    assert delta == pytest.approx((0.2 - 0.25) / 2)


def test_a_baseline_of_nothing_has_no_relative_change() -> None:
    assert multi_task_delta({"a": 0.6}, {"a": 0.0}) is None
    assert multi_task_delta({"a": 0.6}, {"b": 0.5}) is None
