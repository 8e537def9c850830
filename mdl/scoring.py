"""Exact scores of a retrained network, into `scores.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from mdl.assembly import load_weights
from mdl.data.datamodule import MultiDomainData
from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.recipe import Recipe
from mdl.run_folder import RunFolder
from mdl.training.checkpoints import BEST, LAST
from mdl.training.retrain import RetrainModule


def scored_splits(domains: Mapping[str, Domain]) -> list[str]:
    """Of 'val' and 'test', those that every domain has."""
    return [
        split
        for split in ("val", "test")
        if all(split in of.splits and of.splits[split].images for of in domains.values())
    ]


def choose_checkpoint(folder: RunFolder, wanted: str | None = None) -> str:
    """The file name of the wanted checkpoint: the best by validation, else the last.

    Raises UserError where it is not there.
    """
    there = [name for name in (BEST, LAST) if (folder.checkpoints_dir / name).is_file()]
    name = f"{wanted}.ckpt" if wanted else next(iter(there), BEST)
    if name not in there:
        found = ", ".join(there) or "none"
        raise UserError(
            f"No checkpoint {name} in {folder.checkpoints_dir}; found {found}. "
            "A retraining writes it: python -m mdl.fit recipes/mpnas_retrain.yaml"
        )
    return name


def score(
    recipe: Recipe,
    folder: RunFolder,
    module: RetrainModule,
    data: MultiDomainData,
    trainer: L.Trainer,
    split: str,
    checkpoint: str,
) -> dict[str, Any]:
    """Accuracy of every image of a split, once, by the averaged weights of a checkpoint."""
    step = load_weights(module, folder.checkpoints_dir / checkpoint, recipe)
    data.split = split
    module.evaluated_split = split
    trainer.test(module, datamodule=data, verbose=False)
    accuracy = {d: module.records[f"{split}/accuracy/{d}"] for d in module.domains}
    return {
        "checkpoint": checkpoint,
        "checkpoint_step": step,
        "images": {d: data.domains[d].split(split).images for d in module.domains},
        "accuracy": accuracy,
        "mean": sum(accuracy.values()) / len(accuracy),
        "loss": {d: module.records[f"{split}/loss/{d}"] for d in module.domains},
    }


def write_scores(
    recipe: Recipe,
    folder: RunFolder,
    module: RetrainModule,
    data: MultiDomainData,
    trainer: L.Trainer,
    splits: list[str],
    checkpoint: str,
) -> dict[str, Any]:
    """Scores the splits, adds them to `scores.json`, and gives its content."""
    found = {
        split: score(recipe, folder, module, data, trainer, split, checkpoint) for split in splits
    }
    content = {
        "step": recipe.trainer.max_steps,
        "num_classes": module.num_classes,
        "splits": folder.scores().get("splits", {}) | found,
    }
    if trainer.is_global_zero:
        folder.write_scores(content)
    return content
