"""Which paths a retraining trains: searched ones, or what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mdl.assembly import build_space, count_classes
from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.networks.cost import CostTable
from mdl.networks.draws import random_paths_like
from mdl.networks.parameters import ParameterTable
from mdl.networks.widths import widened_to
from mdl.recipe import Recipe, image_sizes
from mdl.run_folder import RunFolder
from mdl.space.architecture import Architecture
from mdl.space.search_space import Path as SpacePath


def choose_architecture(recipe: Recipe, domains: Mapping[str, Domain]) -> Architecture:
    """The architecture that the recipe wants trained (`retrain.paths`).

    Raises UserError where a file that it is made of is missing or does not fit.
    """
    choose = {
        "searched": _searched,
        "common": _common,
        "widened": _widened,
        "random": _random,
        "backbone": _of_the_backbone,
    }
    return choose[recipe.retrain.paths](recipe, domains)


def _searched(recipe: Recipe, domains: Mapping[str, Domain]) -> Architecture:
    if recipe.architecture_file is None:
        raise UserError(
            "The recipe names no architecture_file; expected the architecture.json of a finished "
            "search, e.g. architecture_file=runs/mpnas_search/architecture.json"
        )
    searched = Architecture.read(Path(recipe.architecture_file))
    searched.check_fits(build_space(recipe.space), list(domains))
    return searched


def _common(recipe: Recipe, domains: Mapping[str, Domain]) -> Architecture:
    path = _common_path(recipe, recipe.retrain.common_file)
    source = {"paths": "common", "path_of": recipe.retrain.common_file}
    return Architecture(build_space(recipe.space), dict.fromkeys(domains, path), source)


def _widened(recipe: Recipe, domains: Mapping[str, Domain]) -> Architecture:
    searched, path = _searched(recipe, domains), _common_path(recipe, recipe.retrain.common_file)
    space, classes = searched.space, count_classes(domains)
    norm, private = recipe.network.batch_norm, recipe.network.nodes == "private"
    wanted = {domain: searched.paths[domain] for domain in domains}
    total = ParameterTable(space, classes, norm).count(wanted, private).total
    source = {
        "paths": "widened",
        "like": recipe.architecture_file,
        "path_of": recipe.retrain.common_file,
        "space_before": space.fingerprint,
    }
    widened = widened_to(total, space, path, classes, norm, private)
    return Architecture(widened, dict.fromkeys(domains, path), source)


def _random(recipe: Recipe, domains: Mapping[str, Domain]) -> Architecture:
    searched, classes = _searched(recipe, domains), count_classes(domains)
    draw = recipe.retrain.draw
    drawn = random_paths_like(
        {domain: searched.paths[domain] for domain in domains},
        CostTable(searched.space, image_sizes(recipe.data, domains), classes),
        ParameterTable(searched.space, classes, recipe.network.batch_norm),
        recipe.seed,
        draw,
        recipe.network.nodes == "private",
    )
    like = recipe.architecture_file
    source = {"paths": "random", "like": like, "seed": recipe.seed, "draw": draw}
    return Architecture(searched.space, drawn, source)


def _of_the_backbone(recipe: Recipe, domains: Mapping[str, Domain]) -> Architecture:
    file = recipe.retrain.backbone_file
    assert file is not None  # a recipe without one is refused
    folder = RunFolder.of_retraining(Path(file))
    path = _common_path(recipe, str(folder.architecture_file))
    source = {"paths": "backbone", "path_of": str(folder.architecture_file)}
    return Architecture(build_space(recipe.space), dict.fromkeys(domains, path), source)


def _common_path(recipe: Recipe, file: str | None) -> SpacePath:
    """The one path of a file's domains, whichever they are; of the reference block for None."""
    space = build_space(recipe.space)
    if file is None:
        return space.uniform_path(space.reference_block)
    architecture = Architecture.read(Path(file))
    try:
        architecture.check_space(space)
        return architecture.common_path()
    except UserError as error:
        raise UserError(f"{file} does not serve: {error}") from error
