import pytest

from mdl.comparison.estimate import Left, Measured, duration, seconds_left, seconds_per_step
from mdl.comparison.plan import Job


def job(name: str, phase: str = "retrain", *needs: str) -> Job:
    return Job(f"{name}-seed0", name, phase, 0, (), needs=needs)


MEASURED = [
    Measured("slow", "retrain", 40.0, 10),
    Measured("fast", "retrain", 10.0, 10),
    Measured("fast", "retrain", 30.0, 30),
    Measured("a_search", "search", 70.0, 10),
]


def test_a_row_goes_at_its_own_pace_and_a_new_one_at_its_phase_s() -> None:
    assert seconds_per_step(job("slow"), MEASURED) == 4.0
    assert seconds_per_step(job("fast"), MEASURED) == 1.0
    assert seconds_per_step(job("new"), MEASURED) == 80 / 50
    assert seconds_per_step(job("new", "search"), MEASURED) == 7.0


def test_a_run_that_has_made_no_step_says_nothing() -> None:
    begun = [Measured("fast", "retrain", 12.0, 0)]
    assert seconds_per_step(job("fast"), begun) is None
    assert seconds_left([Left(job("fast"), 5)], begun, 1) is None


def test_what_is_left_is_shared_between_the_workers() -> None:
    left = [Left(job("slow"), 10), Left(job("fast"), 20), Left(job("new"), 25)]
    one = seconds_left(left, MEASURED, 1)
    assert one == 40 + 20 + 40
    assert seconds_left(left, MEASURED, 2) == one / 2


def test_no_number_of_workers_shortens_a_chain() -> None:
    left = [
        Left(job("a_search", "search"), 10),
        Left(job("fast", "retrain", "a_search-seed0"), 5),
        Left(job("slow", "retrain", "finished-seed0"), 3),
    ]
    assert seconds_left(left, MEASURED, 8) == 70 + 5


def test_nothing_left_takes_no_time() -> None:
    assert seconds_left([], [], 2) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (100, "2 min"), (3000, "50 min"), (12000, "3 h 20 min")],
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
