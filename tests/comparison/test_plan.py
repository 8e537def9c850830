import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.comparison.comparison import Comparison, NeededRun, Row, Try
from mdl.comparison.plan import Job, Plan
from mdl.errors import UserError

SEARCHES = {"a_search": NeededRun("search", ("search.sharing=0.1",))}


def comparison(rows: dict[str, Row], **of: object) -> Comparison:
    return Comparison(**({"name": "c", "rows": rows, "runs": SEARCHES, "seeds": (0, 1)} | of))  # type: ignore[arg-type]


def value(job: Job, key: str) -> str:
    """The last word for a key, which is the one that counts."""
    return next(w.partition("=")[2] for w in reversed(job.words) if w.startswith(f"{key}="))


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=8))
def test_every_job_comes_after_those_that_it_needs(needs: list[list[int]]) -> None:
    """Of any runs that need only earlier ones: no circle."""
    runs = {
        f"run{place}": NeededRun(
            "search", tuple(f"x={{run{before % place}}}/y" for before in of if place)
        )
        for place, of in enumerate(needs)
    }
    last = Row("row", search=f"run{len(needs) - 1}")
    plan = Plan(Comparison("c", {"row": last}, runs, seeds=(0, 5)), {})
    names = list(plan.jobs)
    for place, job in enumerate(plan.jobs.values()):
        assert set(job.needs) <= set(names[:place])
        assert {plan.jobs[need].seed for need in job.needs} <= {job.seed}
        for need in job.needs:
            assert any(f"runs/c/runs/{need}/" in word for word in job.words)


def test_a_run_that_no_row_needs_is_not_made() -> None:
    plan = Plan(comparison({"one": Row("one", settings=("retrain.paths=common",))}), {})
    assert list(plan.jobs) == ["one-seed0", "one-seed1"]


def test_rows_share_the_runs_that_they_need() -> None:
    rows = {"one": Row("one", search="a_search"), "two": Row("two", search="a_search")}
    plan = Plan(comparison(rows), {})
    assert [job.entry for job in plan.jobs.values()].count("a_search") == 2  # one per seed
    assert value(plan.jobs["two-seed1"], "architecture_file") == (
        "runs/c/runs/a_search-seed1/architecture.json"
    )


def test_a_row_s_own_settings_come_last() -> None:
    of = comparison(
        {"one": Row("one", "a_search", settings=("k.x=row",))},
        settings=("k.w=all", "k.x=all", "k.y=all", "k.z=all"),
        retrain_settings=("k.w=phase", "k.x=phase", "k.y=phase"),
        overrides=("k.w=typed", "k.x=typed"),
    )
    job = Plan(of, {}).jobs["one-seed0"]
    assert [value(job, f"k.{key}") for key in "wxyz"] == ["typed", "row", "phase", "all"]
    search = Plan(of, {}).jobs["a_search-seed0"]
    assert value(search, "k.y") == "all" and value(search, "search.sharing") == "0.1"


def test_draws_have_seeds_of_their_own_and_the_search_of_theirs() -> None:
    of = comparison({"many": Row("many", search="a_search", draws=3)}, seeds=(0, 1, 2))
    jobs = [job for job in Plan(of, {}).jobs.values() if job.entry == "many"]
    assert len({value(job, "seed") for job in jobs}) == 9
    assert all(job.needs == (f"a_search-seed{job.seed}",) for job in jobs)


def test_a_row_like_another_differs_in_its_own_settings_only() -> None:
    rows = {
        "one": Row("one", search="a_search", settings=("k.x=1", "k.y=1")),
        "other": Row("other", like="one", settings=("k.y=2",)),
    }
    one, other = (Plan(comparison(rows), {}).jobs[f"{name}-seed1"] for name in rows)
    assert other.needs == one.needs
    assert value(other, "k.x") == value(one, "k.x") and value(other, "k.y") == "2"


def test_tries_run_on_the_tuning_seed_and_the_others_wait_for_them() -> None:
    tries = (Try(("k.x=1",)), Try(("k.x=2",), search="b_search"))
    runs = SEARCHES | {"b_search": NeededRun("search")}
    rows = {
        "one": Row("one", search="a_search", tries=tries),
        "other": Row("other", like="one"),
        "third": Row("third", settings=("x={one}/checkpoints",)),
    }
    of = comparison(rows, runs=runs, tuning_seed=7)
    plan = Plan(of, {})
    assert [job.undecided for job in plan.of_row("one", 7, 0)] == [()]
    assert [job.undecided for job in plan.of_row("one", 7, 1)] == [()]
    waiting = {job.name for job in plan.jobs.values() if job.undecided}
    assert waiting == {f"{row}-seed{seed}" for row in rows for seed in (0, 1)}
    plan = Plan(of, {"one": 1})
    assert not any(job.undecided for job in plan.jobs.values())
    assert [value(job, "k.x") for job in plan.of_row("one", 1)] == ["2"]
    assert plan.of_row("other", 0)[0].needs == ("b_search-seed0",)
    assert plan.of_row("third", 0)[0].needs == ("one-try2-seed0",)


def test_a_chain_holds_all_that_a_job_needs() -> None:
    runs = SEARCHES | {"again": NeededRun("search", ("x={a_search}/last.ckpt",))}
    plan = Plan(comparison({"one": Row("one", search="again")}, runs=runs), {})
    chain = plan.chain(plan.jobs["one-seed1"])
    assert [job.name for job in chain] == ["a_search-seed1", "again-seed1"]


def test_seeds_that_could_meet_another_s_draws_are_refused() -> None:
    rows = {"one": Row("one", settings=("retrain.paths=common",), draws=2)}
    assert Plan(comparison(rows, seeds=(0, 999)), {}).jobs
    with pytest.raises(UserError, match="seeds holds 1000, .* expected seeds below 1000"):
        Plan(comparison(rows, seeds=(0, 1000)), {})
