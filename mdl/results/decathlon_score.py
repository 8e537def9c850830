"""The challenge's score S, and what to know of its splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mdl.data.decathlon import DOMAINS, decathlon_points, is_decathlon
from mdl.results.run import Run
from mdl.results.table import Table, percent

# Known of the source data sets: why a validation split says little of the test split.
_UNLIKE = {
    "gtsrb": "frames of one sign's track lie in train and val, those of test are of other tracks",
    "ucf101": "clips of one recording lie in train and val, those of test are of other recordings",
}


def score_of(accuracy: Mapping[str, float]) -> float | None:
    """Decathlon score S of accuracies in [0, 1] by domain; None for other domains."""
    return sum(decathlon_points(accuracy).values()) if is_decathlon(accuracy) else None


def score_table(runs: Sequence[Run]) -> Table | None:
    """Points of every domain and their sum, of each run and split over the ten domains."""
    scored = [
        (f"{run.label}, {split}", of["accuracy"])
        for run in runs
        for split, of in run.scores.items()
        if split != "train" and is_decathlon(of["accuracy"])
    ]
    if not scored:
        return None
    points = {name: decathlon_points(accuracy) for name, accuracy in scored}
    rows = []
    for domain in DOMAINS:
        row = [domain.name, percent(domain.baseline)]
        for name, accuracy in scored:
            row += [percent(accuracy[domain.name]), f"{points[name][domain.name]:.0f}"]
        rows.append(row)
    total = ["S", ""]
    for name, _ in scored:
        total += ["", f"{sum(points[name].values()):.0f}"]
    columns = ["domain", "fully fine-tuned, test top-1, %"]
    for name, _ in scored:
        columns += [f"{name}: top-1, %", "points"]
    return Table(
        "Decathlon score",
        columns,
        [*rows, total],
        "S = sum of 1000 * (max(0, 2 * baseline error - error) / (2 * baseline error))^2; each "
        "baseline scores 250. Defined on the test split; S of another split is for orientation.",
    )


def split_remarks(runs: Sequence[Run]) -> list[str]:
    """What is to be known of validation scores of the ten domains."""
    shown = {name for run in runs if "val" in run.scores for name in run.num_classes}
    return [
        f"Validation accuracy of {name} does not estimate its test accuracy: {why}."
        for name, why in _UNLIKE.items()
        if name in shown
    ]
