"""Which try of a row is trained on all seeds: the best on validation, on the tuning seed."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from mdl.comparison.comparison import Comparison
from mdl.comparison.plan import Job, Plan

Validation = dict[str, list[float | None]]
"""Row -> mean top-1 on validation of each try, over its draws; None: not yet there."""


def compare_tries(
    comparison: Comparison, mean_of: Callable[[Job], float | None]
) -> tuple[Plan, Validation]:
    """The plan by what is known, and what it was chosen by.

    mean_of: a job's mean top-1 on validation; None where it is not finished.
    The test split has no say: nothing here can read it.
    """
    winners: dict[str, int] = {}
    while True:
        plan = Plan(comparison, winners)
        validation = {
            row: [_mean(plan, row, attempt, mean_of) for attempt in range(len(of.tries))]
            for row, of in comparison.rows.items()
            if comparison.tuned(row)
        }
        chosen = {
            row: best
            for row, means in validation.items()
            if (best := _best(means)) is not None and row not in winners
        }
        # one by one from the rows that others are like: those have tries only after it
        if not chosen:
            return plan, validation
        winners |= chosen


def _mean(
    plan: Plan, row: str, attempt: int, mean_of: Callable[[Job], float | None]
) -> float | None:
    """Over the draws of a try; None where one is missing."""
    jobs = plan.of_row(row, plan.comparison.tuning_seed, attempt)
    means = [None if job.undecided else mean_of(job) for job in jobs]
    known = [mean for mean in means if mean is not None]
    return fmean(known) if len(known) == len(jobs) else None


def _best(means: list[float | None]) -> int | None:
    """The first of the greatest; None where one is missing."""
    known = [mean for mean in means if mean is not None]
    return known.index(max(known)) if len(known) == len(means) else None
