"""The pictures of a report: of scores, of what was found, of how runs went."""

from __future__ import annotations

from collections.abc import Sequence

from mdl.results.figures import (
    Accuracy,
    accuracy_figure,
    curves_figure,
    overview_figure,
    similarity_figure,
)
from mdl.results.network_tables import SPLITS
from mdl.results.pair_picture import extreme_pairs, pair_figure
from mdl.results.path_map import node_kinds, path_map_figure
from mdl.results.picture import Picture
from mdl.results.run import Run
from mdl.space.architecture import similarity

# quantity of the metrics -> name of the picture, axis, what it shows
_CURVES = {
    "train/domain_weight": (
        "domain_weight",
        "domain weight",
        "Weights of the domains' losses (mean 1)",
    ),
    "train/loss": ("loss", "training loss, nats", "Training losses"),
    "search/entropy": ("entropy", "entropy, nats per layer", "Entropy of the controllers"),
    "search/reward": ("reward", "reward", "Rewards of the sampled paths"),
    "val/accuracy": ("val_accuracy", "val top-1", "Top-1 accuracy on validation images"),
}


def accuracies(runs: Sequence[Run]) -> Accuracy:
    """Of every split that some run was scored on."""
    found = {
        split: {run.label: run.scores[split]["accuracy"] for run in runs if split in run.scores}
        for split in SPLITS
    }
    return {split: of for split, of in found.items() if of}


def accuracy_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Bars, and the overview; none where no run has scores."""
    accuracy = accuracies(runs)
    if not accuracy:
        return []
    chance: dict[str, float] = {}
    for run in runs:
        if run.scores:
            chance |= {d: level for d, level in run.chance.items() if d not in chance}
    caption = "Top-1 accuracy per domain; the black line is what guessing gives."
    return [Picture("accuracy", caption, accuracy_figure(accuracy, chance))]


def overview_picture(runs: Sequence[Run]) -> Picture | None:
    """The map, and the last split's bars, of the first run that has scores; none without."""
    run = next((run for run in runs if accuracies([run])), None)
    if run is None:
        return None
    accuracy = accuracies([run])
    split = list(accuracy)[-1]
    figure = overview_figure(
        run.architecture.space, run.architecture.paths, {split: accuracy[split]}, run.chance
    )
    caption = f"{run.label}: paths, shared nodes, and top-1 accuracy per domain."
    return Picture("overview", caption, figure)


def similarity_picture(run: Run, ending: str) -> Picture:
    caption = (
        f"{run.label}: Jaccard score of every two domains' searched nodes (zero, stem and head "
        "left out): 1 where the paths are the same, 0 where they share no node."
    )
    return Picture(f"similarity{ending}", caption, similarity_figure(run.architecture.paths))


def map_picture(run: Run, ending: str) -> Picture:
    space, paths = run.architecture.space, run.architecture.paths
    kinds = node_kinds(space, paths)
    num_used = len(kinds.shared) + len(kinds.specific)
    num_all = num_used + len(kinds.unused)
    caption = (
        f"{run.label}: {num_used} of {num_all} nodes are used, {len(kinds.shared)} of them "
        f"shared by two or more domains and {len(kinds.specific)} domain-specific. A line per "
        "domain; full circles are shared, open circles domain-specific, small squares unused."
    )
    if run.is_private:
        caption += " Its network shares none of them: every domain has its nodes for itself."
    return Picture(f"path_map{ending}", caption, path_map_figure(space, paths))


def pair_pictures(run: Run, pair: tuple[str, str] | None, ending: str) -> list[Picture]:
    """The pair that was asked for, else the most and the least alike domains."""
    space, paths = run.architecture.space, run.architecture.paths
    if pair is not None and not set(pair) <= set(paths):
        return []
    found = []
    pairs = [pair] if pair is not None else extreme_pairs(paths)
    for place, (one, other) in enumerate(pairs):
        score = similarity({one: paths[one], other: paths[other]})[0][1]
        kind = "" if pair is not None else (", the most alike", ", the least alike")[place]
        caption = f"{run.label}: {one} and {other}{kind}: Jaccard score {score:.2f}."
        figure = pair_figure(space, paths, one, other)
        found.append(Picture(f"pair_{one}_{other}{ending}", caption, figure))
    return found


def curve_pictures(run: Run) -> list[Picture]:
    """A picture per quantity that the run recorded."""
    found = []
    for quantity, (name, axis, what) in _CURVES.items():
        if series := run.series(quantity):
            figure = curves_figure(series, list(run.num_classes), axis)
            caption = f"{run.label}: {what[0].lower() + what[1:]}, over steps."
            found.append(Picture(f"{name}_{run.label}", caption, figure))
    return found
