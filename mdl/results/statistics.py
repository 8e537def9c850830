"""What seeds say: means with their spread, differences paired by seed, the multi-task delta."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

CONFIDENCE = 0.95

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """A mean over seeds; deviation: the sample's (n - 1), None of a single seed."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        deviation = stdev(values) if len(values) > 1 else None
        return cls(fmean(values), deviation, len(values))

    @property
    def half_width(self) -> float | None:
        """Of the 95 % confidence interval of the mean, by Student's t; None of a single seed."""
        if self.deviation is None:
            return None
        return t_quantile(self.count - 1) * self.deviation / math.sqrt(self.count)


def paired(one: Mapping[Key, float], other: Mapping[Key, float]) -> Spread | None:
    """Spread of `one - other` over the seeds that both have; None where they have none."""
    differences = [value - other[seed] for seed, value in one.items() if seed in other]
    return Spread.of(differences) if differences else None


def multi_task_delta(accuracy: Mapping[str, float], baseline: Mapping[str, float]) -> float | None:
    """Mean relative change of the domains' accuracies against single-domain networks'.

    Source: the survey of Vandenhende et al. (TPAMI 2021, Eq. 10), for a measure of which more is
    better. None where the baseline has another set of domains, or an accuracy of 0.
    """
    if accuracy.keys() != baseline.keys() or not all(baseline.values()):
        return None
    return fmean((accuracy[d] - base) / base for d, base in baseline.items())


def t_probability(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's t with so many degrees of freedom (a whole number).

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4, finite sums.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2 == 0:
        return sine * _sum(cosine, range(2, freedom, 2), 1.0)
    of_sum = _sum(cosine, range(3, freedom, 2), cosine) if freedom > 1 else 0.0
    return 2 / math.pi * (angle + sine * of_sum)


def _sum(cosine: float, numbers: range, term: float) -> float:
    """The first term, and one more for each number n: the last times (n - 1) / n cosine^2."""
    total = term
    for number in numbers:
        term *= (number - 1) / number * cosine**2
        total += term
    return total


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """t with P(|T| < t) = confidence, by bisection."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < confidence:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if t_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2
