import pytest

from mdl.comparison.comparison import Comparison, Row, Try
from mdl.comparison.plan import Job
from mdl.comparison.tries import compare_tries

TRIES = (Try(("k.x=1",)), Try(("k.x=2",)), Try(("k.x=3",)))


def comparison(**rows: Row) -> Comparison:
    return Comparison("c", rows, seeds=(0, 1), tuning_seed=0)


def test_the_best_try_on_validation_is_trained_on_all_seeds() -> None:
    means = {"one-seed0": 0.5, "one-try2-seed0": 0.7, "one-try3-seed0": 0.6}
    plan, validation = compare_tries(
        comparison(one=Row("one", tries=TRIES)), lambda job: means.get(job.name)
    )
    assert plan.winners == {"one": 1}
    assert validation == {"one": [0.5, 0.7, 0.6]}
    assert [job.name for job in plan.of_row("one", 1)] == ["one-try2-seed1"]
    assert "one-try3-seed1" not in plan.jobs


@pytest.mark.parametrize("missing", range(3))
def test_nothing_is_chosen_while_a_try_is_missing(missing: int) -> None:
    plan, validation = compare_tries(
        comparison(one=Row("one", tries=TRIES)),
        lambda job: None if job.attempt == missing else 0.5,
    )
    assert plan.winners == {}
    assert validation["one"][missing] is None
    assert plan.of_row("one", 1)[0].undecided == ("one",)


def test_a_try_of_several_draws_counts_by_their_mean() -> None:
    means = {(0, 0): 0.9, (0, 1): 0.1, (1, 0): 0.6, (1, 1): 0.6}
    row = Row("one", draws=2, tries=TRIES[:2])
    plan, validation = compare_tries(comparison(one=row), lambda job: means[job.attempt, job.draw])
    assert plan.winners == {"one": 1}
    assert validation["one"] == [pytest.approx(0.5), pytest.approx(0.6)]


def test_a_row_like_a_tuned_one_is_tuned_after_it() -> None:
    asked: list[Job] = []

    def mean_of(job: Job) -> float | None:
        asked.append(job)
        return 0.1 * job.attempt if job.entry == "one" else 0.5

    of = comparison(other=Row("other", like="one", tries=TRIES[:2]), one=Row("one", tries=TRIES))
    plan, _ = compare_tries(of, mean_of)
    assert plan.winners == {"one": 2, "other": 0}
    others = [job for job in asked if job.entry == "other"]
    assert others and all("k.x=3" in job.words for job in others)
