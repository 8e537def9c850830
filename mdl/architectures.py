"""Which paths are trained: searched ones, what they are compared with, a search's finalists."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mdl.assembly import (
    build_sizes,
    build_space,
    build_target,
    count_classes,
    draw_random,
    normalisation,
    offer_reused,
)
from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.networks.controller import Controllers
from mdl.networks.cost import CostTable
from mdl.networks.draws import random_paths_like
from mdl.networks.parameters import ParameterTable
from mdl.networks.sizing import most_likely_choices
from mdl.networks.widths import widened_to
from mdl.recipe import Recipe, image_sizes
from mdl.run_folder import RunFolder
from mdl.space.architecture import Architecture
from mdl.space.search_space import Path as SpacePath
from mdl.weights import load_controllers

_log = logging.getLogger(__name__)


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
        "added": _added,
    }
    chosen = choose[recipe.retrain.paths](recipe, domains)
    noted = normalisation(recipe, domains, _backbone_of(recipe))
    source = {key: of for key, of in chosen.source.items() if key != "normalisation"}
    source["num_classes"] = count_classes(domains)  # for reports, wherever the data are by then
    return replace(chosen, source=source if noted is None else source | {"normalisation": noted})


def _backbone_of(recipe: Recipe) -> Architecture | None:
    """That of the trained network whose nodes a retraining begins with, if it does."""
    file = recipe.retrain.backbone_file
    if file is None:
        return None
    folder = RunFolder.of_retraining(Path(file))
    architecture = Architecture.read(folder.architecture_file)
    shared = recipe.network.batch_norm == folder.recipe().network.batch_norm == "shared"
    if shared and architecture.source.get("normalisation") is None:
        raise UserError(
            f"retrain.backbone_file = {file} was trained by an earlier version, which did not note "
            "what its images were normalised by. Train it again, or both with "
            "network.batch_norm=per_domain."
        )
    return architecture


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


def _added(recipe: Recipe, domains: Mapping[str, Domain]) -> Architecture:
    """The paths of a trained network, and one that was searched for each domain it lacks."""
    backbone, searched = recipe.retrain.backbone_file, recipe.architecture_file
    assert backbone is not None  # a recipe without one is refused
    if searched is None:
        raise UserError(
            "retrain.paths is 'added', but the recipe names no architecture_file; expected that of "
            "a search for the new domain (recipes/add_domain.yaml)."
        )
    trained = Architecture.read(RunFolder.of_retraining(Path(backbone)).architecture_file)
    new = Architecture.read(Path(searched))
    new.check_space(trained.space)
    added = [domain for domain in new.domains if domain not in trained.domains]
    if not added:
        raise UserError(
            f"{searched} has paths for {', '.join(new.domains)}, which retrain.backbone_file = "
            f"{backbone} has too; expected a domain that it lacks."
        )
    together = {**trained.paths, **{domain: new.paths[domain] for domain in added}}
    source = {"paths": "added", "added": added, "to": backbone, "paths_of": searched}
    return Architecture(trained.space, together, source)


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


_DRAWS_PER_FINALIST = 20  # of controllers that have decided, most draws are the same


def choose_finalists(recipe: Recipe, domains: Mapping[str, Domain]) -> list[Architecture]:
    """Different networks for a search's last round (`search.finalists`).

    Those of an earlier search's controllers: the most likely one, and draws from them; where the
    recipe has a target each is pulled to that size (`most_likely_choices`, of log probabilities
    with Gumbel noise, whose most likely choices are a draw). Without controllers: random ones of
    the target; for a domain that is added to a trained network they are draws of controllers that
    have learnt nothing, pulled to what may be added.

    Raises UserError where the controllers give fewer than two networks.
    """
    assert recipe.search.finalists is not None
    space, count = build_space(recipe.space), recipe.search.finalists
    is_addition = recipe.search.backbone_file is not None
    if recipe.search.controllers_file is None and not is_addition:
        drawn = draw_random(recipe, domains, count)
        return [Architecture(space, paths, {"random": at}) for at, paths in enumerate(drawn)]
    common, start = recipe.search.controllers == "common", recipe.search.start
    controllers = Controllers(space, list(domains), common, start)
    sizes, target = build_sizes(recipe, domains), build_target(recipe, domains)
    if is_addition:
        offer_reused(recipe, domains, controllers, sizes)
    else:
        load_controllers(controllers, recipe, domains)
    found: list[Architecture] = []
    for draw in range(_DRAWS_PER_FINALIST * count):
        log_p = controllers.perturbed(recipe.seed, draw)
        choices = most_likely_choices(log_p, sizes, target) if target else log_p.argmax(-1)
        paths = controllers.paths(choices)
        if all(paths != known.paths for known in found):
            found.append(Architecture(space, paths, {"draw": draw}))
        if len(found) == count:
            break
    if len(found) < 2 and is_addition:
        raise UserError(
            f"One path only was found through {recipe.search.backbone_file} that adds "
            f"search.target.params={target.params:g}: there is nothing to choose of. Set "
            "search.new_blocks=true, or search.finalists=null."
        )
    if len(found) < 2:
        raise UserError(
            f"The controllers of {recipe.search.controllers_file} give one network only: there is "
            "nothing to choose of. Train it: python -m mdl.fit recipes/mpnas_retrain.yaml"
        )
    if len(found) < count:
        _log.warning("%d different networks were found, not %d", len(found), count)
    return found
