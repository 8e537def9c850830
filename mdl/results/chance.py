"""Whether a network has learnt anything of a domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from mdl.results.run import Run

_NAMED = 3  # so many domains are named where all of them are at chance
_ERRORS = 2.0  # so many standard errors above guessing are needed to call it learnt


def at_chance(accuracy: float, guessing: float, num_images: int) -> bool:
    """Whether an accuracy could well come from guessing, which scores `guessing`."""
    return accuracy <= guessing + _ERRORS * sqrt(guessing * (1 - guessing) / num_images)


def chance_remarks(runs: Sequence[Run]) -> list[str]:
    """A sentence per run and split that has domains at chance."""
    return [
        f"{run.label} is at chance on {remark}"
        for run in runs
        for split, scores in run.scores.items()
        if (remark := at_chance_in_words(split, scores)) is not None
    ]


def at_chance_in_words(split: str, scores: Mapping[str, Any]) -> str | None:
    """Which domains of a split's scores are at chance, None where none is."""
    found = [
        f"{domain} ({100 * accuracy:.1f}%, guessing {100 * scores['guessing'][domain]:.1f}%)"
        for domain, accuracy in scores["accuracy"].items()
        if at_chance(accuracy, scores["guessing"][domain], scores["images"][domain])
    ]
    if not found:
        return None
    if len(found) == len(scores["accuracy"]) > _NAMED:
        return f"all {len(found)} domains ({split})."
    return f"{len(found)} of {len(scores['accuracy'])} domains ({split}): {', '.join(found)}."
