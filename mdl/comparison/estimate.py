"""How long the rest of a comparison takes, from what its runs have taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mdl.comparison.plan import Job


@dataclass(frozen=True)
class Measured:
    """Steps of one run, and the wall seconds that they took."""

    entry: str
    phase: str
    seconds: float
    steps: int


@dataclass(frozen=True)
class Left:
    """A job and how many of its steps are not yet made."""

    job: Job
    steps: int


def seconds_per_step(job: Job, measured: Iterable[Measured]) -> float | None:
    """Of the same run or row where one was measured, else of its phase; None: unknown."""
    known = [of for of in measured if of.phase == job.phase and of.steps > 0]
    own = [of for of in known if of.entry == job.entry] or known
    if not own:
        return None
    return sum(of.seconds for of in own) / sum(of.steps for of in own)


def seconds_left(left: Sequence[Left], measured: Sequence[Measured], workers: int) -> float | None:
    """All work divided by the workers, but no less than the longest chain of needs.

    None where no run of some phase has been measured.
    """
    seconds: dict[str, float] = {}
    for of in left:
        pace = seconds_per_step(of.job, measured)
        if pace is None:
            return None
        seconds[of.job.name] = pace * of.steps
    ends: dict[str, float] = {}
    for of in left:  # in the order of the plan: needs first
        before = max((ends.get(need, 0.0) for need in of.job.needs), default=0.0)
        ends[of.job.name] = before + seconds[of.job.name]
    return max(sum(seconds.values()) / workers, max(ends.values(), default=0.0))


def duration(seconds: float) -> str:
    """In words, to the unit that counts: '40 s', '12 min', '3 h 20 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
