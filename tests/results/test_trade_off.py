from hypothesis import given
from hypothesis import strategies as st

from mdl.results.trade_off import round_numbers


@given(st.floats(1e-3, 1e9), st.floats(1.3, 1e4))
def test_an_axis_has_some_numbers_and_not_too_many(low: float, ratio: float) -> None:
    numbers = round_numbers(low, low * ratio)
    assert 2 <= len(numbers) <= 7
    assert numbers == sorted(set(numbers))
    assert all(low * 0.999 <= number <= low * ratio * 1.001 for number in numbers)


def test_numbers_are_round() -> None:
    assert round_numbers(150, 3200) == [200, 500, 1000, 2000]
