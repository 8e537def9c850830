"""Whether a search's reward means anything.

    python -m mdl.diagnose SEARCH [RETRAINING ...] [--random 12]

SEARCH is the run folder of a search. Its paths are compared with random ones of equal parameters
and multiply-adds, by the super-network's weights, on validation images, which no search sees. With
retrainings of paths of the same space (of all domains or of one): the rank correlation between
what the super-network says of their paths and their accuracy after training. Writes
diagnosis.json, and figures/reward.png with retrainings, into the search's folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mdl.assembly import build_data, build_search, build_space, count_classes, find_domains
from mdl.command import run_command
from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.networks.cost import CostTable
from mdl.networks.draws import random_paths_like
from mdl.networks.parameters import ParameterTable
from mdl.recipe import Recipe, image_sizes
from mdl.results.diagnosis import FoundAgainstRandom, RewardAgainstTraining, reward_figure
from mdl.results.picture import Picture
from mdl.run_folder import RunFolder
from mdl.scoring import supernet_accuracies
from mdl.space.architecture import Architecture
from mdl.trainer import quiet
from mdl.training.checkpoints import LAST
from mdl.weights import load_weights
from mdl.whole_files import write_text

SPLIT = "val"  # neither seen by a search, nor what methods are compared on in the end


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.random < 2:
        raise UserError(f"--random is {options.random}; expected at least 2 networks.")
    quiet()
    folder = RunFolder.find(options.run)
    recipe = folder.recipe()
    if recipe.phase != "search" or not folder.architecture_file.is_file():
        raise UserError(
            f"{options.run} is not the run of a finished search; expected one that holds "
            "architecture.json, e.g. runs/mpnas_search"
        )
    if recipe.search.finalists is not None:
        raise UserError(
            f"{options.run} is a search's last round, which has no super-network; expected the "
            "search before it (search.controllers_file)."
        )
    domains = find_domains(recipe)
    found = Architecture.read(folder.architecture_file)
    runs = [RunFolder.find(path) for path in options.retrainings]
    trained = [_trained(run, recipe, SPLIT, list(domains)) for run in runs]
    drawn = _random(recipe, domains, found, options.random)
    module, data = build_search(recipe, domains), build_data(recipe, domains)
    load_weights(module, folder.checkpoints_dir / LAST, recipe, domains)
    of_runs = [Architecture.read(run.architecture_file).paths for run in runs]
    rewards = supernet_accuracies(module, data, SPLIT, [found.paths, *drawn, *of_runs])
    first = 1 + len(drawn)
    against = FoundAgainstRandom(list(domains), rewards[0], rewards[1:first])
    against.table(SPLIT).print()
    content = {"split": SPLIT, "found_and_random": against.content()}
    if runs:
        names = [run.path.name for run in runs]
        ranks = RewardAgainstTraining(names, list(domains), rewards[first:], torch.stack(trained))
        ranks.table(SPLIT).print()
        content["reward_and_training"] = ranks.content()
        caption = "Accuracy by the super-network and after training, of the same paths."
        picture = Picture("reward", caption, reward_figure(ranks, SPLIT))
        for file in picture.write(folder.figures_dir):
            print(file)
    file = folder.path / "diagnosis.json"
    write_text(file, json.dumps(content, indent=1))
    print(file)


def _random(
    recipe: Recipe, domains: dict[str, Domain], found: Architecture, count: int
) -> list[dict]:
    classes = count_classes(domains)
    costs = CostTable(found.space, image_sizes(recipe.data, domains), classes)
    parameters = ParameterTable(found.space, classes, recipe.network.batch_norm)
    private = recipe.network.nodes == "private"
    return [
        random_paths_like(found.paths, costs, parameters, recipe.seed, draw, private)
        for draw in range(count)
    ]


def _trained(run: RunFolder, search: Recipe, split: str, domains: Sequence[str]) -> Tensor:
    """Accuracies after training, [domains]; NaN of those that the run has not trained."""
    known = run.scores().get("splits", {}).get(split)
    if known is None:
        raise UserError(
            f"{run.path} has no scores on {split}; expected a finished retraining: "
            f"python -m mdl.evaluate {run.path} --split {split}"
        )
    try:
        Architecture.read(run.architecture_file).check_space(build_space(search.space))
    except UserError as error:
        raise UserError(f"{run.path} cannot be compared: {error}") from error
    accuracy = known["accuracy"]
    if unknown := [domain for domain in accuracy if domain not in domains]:
        raise UserError(
            f"{run.path} trained '{unknown[0]}', which is no domain of the search; expected "
            f"some of {', '.join(domains)}."
        )
    return torch.tensor([accuracy.get(domain, torch.nan) for domain in domains])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdl.diagnose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="SEARCH")
    parser.add_argument("retrainings", type=Path, nargs="*", metavar="RETRAINING")
    parser.add_argument("--random", type=int, default=12, help="random networks, at least 2")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
