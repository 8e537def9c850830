"""Searches or retrains, as a recipe says.

    python -m mdl.fit recipes/mpnas_search.yaml [MORE.yaml ...] [key=value ...]
    python -m mdl.fit recipes/mpnas_retrain.yaml
    python -m mdl.fit RECIPE --print-recipe      shows the resolved recipe and ends

The same command goes on where a run stopped; a finished run says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L

from mdl.assembly import (
    build_callbacks,
    build_data,
    build_retrain,
    build_search,
    build_trainer,
    find_domains,
    quiet,
    read_architecture,
    read_checkpoint,
)
from mdl.console import run_command
from mdl.data.datamodule import MultiDomainData
from mdl.data.embedded import ROOT as EMBEDDED_ROOT
from mdl.recipe import Recipe, dump_recipe, load_recipe
from mdl.results.costs import compare_costs
from mdl.results.dashboard import finish as finish_dashboard
from mdl.results.dashboard import log_pictures
from mdl.results.metrics import last_values
from mdl.results.summary import cost_table, path_table, score_table
from mdl.run_folder import RunFolder
from mdl.scoring import choose_checkpoint, scored_splits, write_scores
from mdl.space.architecture import Architecture
from mdl.training.base import MultiDomainModule
from mdl.training.checkpoints import LAST
from mdl.training.retrain import RetrainModule
from mdl.training.search import SearchModule


@dataclass(frozen=True)
class Fitted:
    """What a finished run is made of."""

    folder: RunFolder
    module: MultiDomainModule
    data: MultiDomainData
    trainer: L.Trainer


def main(arguments: Sequence[str]) -> None:
    words = [word for word in arguments if word != "--print-recipe"]
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        return
    recipe = load_recipe(words)
    if "--print-recipe" in arguments:
        print(dump_recipe(recipe), end="")
        return
    quiet()
    folder = RunFolder.of(recipe)
    if is_finished(recipe, folder):
        print(f"{folder.path} is finished: {recipe.trainer.max_steps} steps. Nothing to do.")
        print_product(recipe, folder)
        return
    if fit(recipe, folder).trainer.is_global_zero:
        print_product(recipe, folder)


def fit(recipe: Recipe, folder: RunFolder) -> Fitted:
    """Trains from the last checkpoint, or from the beginning, to the products of the phase."""
    domains = find_domains(recipe)
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    module: MultiDomainModule
    if recipe.phase == "search":
        module = build_search(recipe, domains)
    else:
        # its own copy once it has begun: the search's may have been searched again since
        own = folder.architecture_file
        architecture = Architecture.read(own) if own.is_file() else read_architecture(recipe)
        module = build_retrain(recipe, domains, architecture)
    data = build_data(recipe, domains)
    callbacks = build_callbacks(recipe)
    folder.claim(recipe)
    if recipe.phase == "retrain":
        architecture.write(folder.architecture_file)
    last = folder.checkpoints_dir / LAST
    last_step = read_checkpoint(last, recipe)["global_step"] if last.is_file() else 0
    trainer = build_trainer(recipe, folder, callbacks, last_step)
    fitted = Fitted(folder, module, data, trainer)
    try:
        trainer.fit(module, data, ckpt_path=last if last.is_file() else None)
        _write_product(recipe, fitted)
    finally:
        finish_dashboard(trainer.loggers)
    return fitted


def _write_product(recipe: Recipe, fitted: Fitted) -> None:
    """What the phase is for: the architecture, or the scores."""
    module, folder, data = fitted.module, fitted.folder, fitted.data
    if isinstance(module, SearchModule):
        source = {
            "run": recipe.name,
            "seed": recipe.seed,
            "step": fitted.trainer.global_step,
            "image_size": recipe.data.image_size,
            "num_classes": module.num_classes,
        }
        architecture = module.architecture(source)
        if fitted.trainer.is_global_zero:
            architecture.write(folder.architecture_file)
            log_pictures(fitted.trainer.loggers, architecture)
    elif isinstance(module, RetrainModule):
        splits, best = scored_splits(data.domains), choose_checkpoint(folder)
        write_scores(recipe, folder, module, data, fitted.trainer, splits, best)


def is_finished(recipe: Recipe, folder: RunFolder) -> bool:
    """Whether the phase's product is there, after so many steps."""
    if recipe.phase == "retrain":
        return bool(folder.scores().get("step", 0) >= recipe.trainer.max_steps)
    if not folder.architecture_file.is_file():
        return False
    source = Architecture.read(folder.architecture_file).source
    return bool(source.get("step", 0) >= recipe.trainer.max_steps)


def print_product(recipe: Recipe, folder: RunFolder) -> None:
    """A table of what the run made, and the next command to type."""
    architecture = Architecture.read(folder.architecture_file)
    num_classes = {d: len(of.classes) for d, of in find_domains(recipe).items()}
    costs = compare_costs(
        architecture, num_classes, recipe.data.image_size, recipe.network.batch_norm
    )
    if recipe.phase == "search":
        path_table(architecture, last_values(folder.metrics_file, "search/entropy")).print()
        cost_table(costs, "what they cost together").print()
        print(f"Architecture: {folder.architecture_file}")
        print(f"Next: {_retrain_command(recipe, folder)}")
    else:
        score_table(folder.scores()["splits"], f"{recipe.name}: averaged weights").print()
        cost_table(costs, "what it costs").print()
        print(f"Next: python -m mdl.report {folder.path}")


def _retrain_command(recipe: Recipe, folder: RunFolder) -> str:
    command = "python -m mdl.fit recipes/mpnas_retrain.yaml"
    if recipe.name == "mpnas_search" and recipe.data.root == EMBEDDED_ROOT:
        return command
    return (
        f"{command} architecture_file={folder.architecture_file} data.root={recipe.data.root} "
        f"name={recipe.name}_retrain"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
