"""Comparisons as they lie there once their runs are finished, without training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from mdl.assembly import build_space
from mdl.comparison.comparison_file import read_comparison
from mdl.comparison.comparison_folder import ComparisonFolder
from mdl.comparison.plan import Job
from mdl.comparison.runner import Runner
from mdl.recipe import Recipe
from mdl.run_folder import RunFolder
from mdl.space import search_space
from mdl.space.architecture import Architecture
from mdl.space.search_space import SearchSpace

Scores = Callable[[Job], Mapping[str, float]]
"""A training -> top-1 of each domain on the test split; on validation it has 0.1 more."""


def make_comparison(
    content: Mapping[str, Any],
    root: Path,
    domains: Mapping[str, int],
    scores: Scores,
    unfinished: Collection[str] = (),
    seconds: float = 60.0,
) -> ComparisonFolder:
    """domains: name -> classes. unfinished: names of jobs that are not there."""
    file = root / "comparison.yaml"
    root.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump({"runs_dir": str(root / "runs"), **content}, sort_keys=False))
    runner = Runner(read_comparison([str(file)]), print, f"python -m mdl.compare {file}")
    while jobs := [
        job for job in runner.unfinished if not job.undecided and job.name not in unfinished
    ]:
        for job in jobs:
            _finish(job, runner.recipe(job), domains, scores)
            runner.seconds[job.name] = seconds
        runner.look()
    runner.folder.write_record(runner.record())
    return runner.folder


def _finish(job: Job, recipe: Recipe, domains: Mapping[str, int], scores: Scores) -> None:
    folder = RunFolder.of(recipe)
    folder.claim(recipe, folder.state())
    space, steps = build_space(recipe.space), recipe.trainer.max_steps
    paths = {domain: _path(space, place, job) for place, domain in enumerate(domains)}
    source = {"run": job.name, "step": steps, "num_classes": dict(domains)}
    Architecture(space, paths, source).write(folder.architecture_file)
    if job.phase == "search":
        return
    splits = {}
    for split, more in (("test", 0.0), ("val", 0.1)):
        accuracy = {domain: of + more for domain, of in scores(job).items()}
        splits[split] = {
            "checkpoint_step": steps,
            "images": dict.fromkeys(accuracy, 200),
            "accuracy": accuracy,
            "mean": sum(accuracy.values()) / len(accuracy),
        }
    folder.write_scores({"step": steps, "num_classes": dict(domains), "splits": splits})


def _path(space: SearchSpace, place: int, job: Job) -> search_space.Path:
    """One for all where the row's paths are common, else by the domain's and the run's place."""
    if "retrain.paths=common" in job.words:
        place = 0
    turns = (place * (layer.index + 1) + job.seed for layer in space.layers)
    return tuple(
        layer.blocks[turn % len(layer.blocks)]
        for layer, turn in zip(space.layers, turns, strict=True)
    )
