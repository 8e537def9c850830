from hypothesis import given
from hypothesis import strategies as st

from mdl.results.trade_off import accuracy_floor, round_numbers


@given(st.floats(1e-3, 1e9), st.floats(1.3, 1e4))
def test_an_axis_has_some_numbers_and_not_too_many(low: float, ratio: float) -> None:
    numbers = round_numbers(low, low * ratio)
    assert 2 <= len(numbers) <= 7
    assert numbers == sorted(set(numbers))
    assert all(low * 0.999 <= number <= low * ratio * 1.001 for number in numbers)


def test_numbers_are_round() -> None:
    assert round_numbers(150, 3200) == [200, 500, 1000, 2000]


@given(st.lists(st.floats(0.65, 0.7), min_size=4, max_size=20), st.floats(0.0, 0.4))
def test_one_point_far_below_does_not_press_the_others_together(
    near: list[float], far: float
) -> None:
    floor = accuracy_floor([*near, far])
    if max(near) > min(near):
        assert floor is not None and far < floor
        assert max(near) - floor <= 1.3 * (max(near) - min(near))


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_most_points_are_within_the_axis(accuracies: list[float]) -> None:
    floor = accuracy_floor(accuracies)
    below = [of for of in accuracies if floor is not None and of < floor]
    assert len(below) <= len(accuracies) / 4
