"""Whether a network has learnt anything of a domain."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from mdl.results.run import Run

_ERRORS = 2.0  # so many standard errors above guessing are needed to call it learnt


def at_chance(accuracy: float, num_classes: int, num_images: int) -> bool:
    """Whether an accuracy could well come from guessing among so many classes."""
    chance = 1 / num_classes
    return accuracy <= chance + _ERRORS * sqrt(chance * (1 - chance) / num_images)


def chance_remarks(runs: Sequence[Run]) -> list[str]:
    """A sentence per run and split that has domains at chance."""
    remarks = []
    for run in runs:
        for split, scores in run.scores.items():
            found = [
                f"{domain} ({100 * accuracy:.1f}%, chance {100 * run.chance[domain]:.1f}%)"
                for domain, accuracy in scores["accuracy"].items()
                if at_chance(accuracy, run.num_classes[domain], scores["images"][domain])
            ]
            if found:
                remarks.append(
                    f"{run.label} is at chance on {len(found)} of {len(scores['accuracy'])} "
                    f"domains ({split}): {', '.join(found)}."
                )
    return remarks
