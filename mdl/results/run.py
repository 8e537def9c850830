"""A run as a report reads it: what it was, what it found, how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mdl.data.domains import read_domains
from mdl.errors import UserError
from mdl.recipe import Recipe, image_sizes
from mdl.results.costs import Comparison, NetworkCost, compare_costs
from mdl.results.metrics import series
from mdl.run_folder import RunFolder
from mdl.space.architecture import Architecture

Series = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Run:
    """label: what tables and figures call it.

    num_classes: domain -> classes, in the order of the domains everywhere.
    scores: split -> what `scores.json` holds of it; empty where there is none.
    """

    label: str
    folder: RunFolder
    recipe: Recipe
    architecture: Architecture
    num_classes: Mapping[str, int]
    scores: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, label: str) -> Run:
        """Raises UserError where `path` is no run, or a run without an architecture yet."""
        folder = RunFolder.find(path)
        recipe = folder.recipe()
        if not folder.architecture_file.is_file():
            raise UserError(
                f"{path} is not finished: it holds no {folder.architecture_file.name} yet. "
                f"Go on with it: {folder.go_on_command()}"
            )
        architecture, content = Architecture.read(folder.architecture_file), folder.scores()
        known = content.get("num_classes") or architecture.source.get("num_classes", {})
        if any(domain not in known for domain in architecture.domains):
            packed = read_domains(Path(recipe.data.root), list(architecture.domains))
            known = {name: len(domain.classes) for name, domain in packed.items()}
        num_classes = {domain: known[domain] for domain in architecture.domains}
        even = {domain: 1 / classes for domain, classes in num_classes.items()}
        splits = {
            split: {"guessing": even} | scores
            for split, scores in content.get("splits", {}).items()
        }
        return cls(label, folder, recipe, architecture, num_classes, splits)

    @property
    def is_retraining(self) -> bool:
        return self.recipe.phase == "retrain"

    @property
    def trains_searched_paths(self) -> bool:
        """Whether it is a retraining of what a search found, not of what that is compared with."""
        return self.is_retraining and self.recipe.retrain.paths == "searched"

    @property
    def is_finished(self) -> bool:
        """Whether it is a retraining that made all of its steps, or was stopped by a callback."""
        max_steps = self.recipe.trainer.max_steps
        return self.is_retraining and self.folder.is_finished("retrain", max_steps)

    @property
    def is_private(self) -> bool:
        """Whether its network is a bundle: every domain has its nodes for itself."""
        return self.recipe.network.nodes == "private"

    @cached_property
    def comparison(self) -> Comparison:
        return compare_costs(
            self.architecture,
            self.num_classes,
            self.image_sizes,
            self.recipe.network.batch_norm,
        )

    @property
    def image_sizes(self) -> dict[str, int]:
        """Domain -> side of its images, px."""
        return image_sizes(self.recipe.data, self.num_classes)

    @property
    def cost(self) -> NetworkCost:
        """Of its own network, whether nodes are shared in it or not."""
        return self.comparison.separate if self.is_private else self.comparison.multi_path

    @property
    def chance(self) -> dict[str, float]:
        """Domain -> accuracy of guessing: of always answering the most frequent class."""
        even = {domain: 1 / classes for domain, classes in self.num_classes.items()}
        known = [of["guessing"] for of in self.scores.values()]
        return {domain: max(of.get(domain, 0.0) for of in [even, *known]) for domain in even}

    def series(self, quantity: str) -> Series:
        """Domain (or 'mean') -> (step, value); the first of a step, which training recorded.

        Scoring at the end records a step of its own again, perhaps of an earlier checkpoint.
        """
        first: dict[str, dict[float, float]] = {}
        for name, records in series(self.folder.metrics_file, quantity).items():
            for step, value in records:
                first.setdefault(name, {}).setdefault(step, value)
        return {name: list(of.items()) for name, of in first.items()}

    @property
    def search_folder(self) -> RunFolder | None:
        """The search whose paths this retraining trains, or is like; where it is there."""
        file, paths = self.recipe.architecture_file, self.recipe.retrain.paths
        if not self.is_retraining or file is None or paths in ("common", "backbone"):
            return None
        folder = RunFolder(Path(file).parent)
        there = folder.recipe_file.is_file() and folder.architecture_file.is_file()
        return folder if there and folder.path.resolve() != self.folder.path.resolve() else None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in their order, each folder once; folders of one name are numbered."""
    runs: dict[Path, Run] = {}
    for path in paths:
        _read_into(runs, path)
    return list(runs.values())


def read_searches(runs: Sequence[Run]) -> dict[str, Run]:
    """A retraining's label -> its search: one of `runs`, or read now."""
    known = {run.folder.path.resolve(): run for run in runs}
    folders = {run.label: run.search_folder for run in runs}
    return {
        label: _read_into(known, folder.path)
        for label, folder in folders.items()
        if folder is not None
    }


def _read_into(runs: dict[Path, Run], path: Path) -> Run:
    resolved = path.resolve()
    if resolved not in runs:
        same = sum(other.name == resolved.name for other in runs)
        label = f"{resolved.name}_{same + 1}" if same else resolved.name
        runs[resolved] = Run.read(path, label)
    return runs[resolved]
