"""Checkpoints of a run, read back: only with the recipe, classes and images that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.recipe import Recipe
from mdl.run_folder import identity
from mdl.training.base import MultiDomainModule


def read_checkpoint(
    file: Path, recipe: Recipe, domains: Mapping[str, Domain], to_go_on: bool = False
) -> dict[str, Any]:
    """Raises UserError where the file is damaged, or belongs to another run or other classes.

    to_go_on: whether the run goes on from it, and so has to be given the same images too.
    """
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        owner, data = content["run"], content["data"]
    except Exception as error:  # torch raises many kinds on damaged files
        raise UserError(
            f"{file} cannot be read as a checkpoint: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}. Remove it to start this run from the beginning."
        ) from error
    if owner != identity(recipe):
        raise UserError(
            f"{file} is a checkpoint of another run: its recipe has the fingerprint {owner}, this "
            f"one {identity(recipe)}. Remove it, or start a new run with name=..."
        )
    if list(data) != list(domains):
        raise UserError(
            f"{file} was trained on the domains {', '.join(data)}; the data are "
            f"{', '.join(domains)}. Restore {recipe.data.root}, or start a new run with name=..."
        )
    for name, domain in domains.items():
        for kind in ("classes", "images") if to_go_on else ("classes",):
            if data[name][kind] != domain.fingerprint[kind]:
                raise UserError(
                    f"{file} was trained on other {kind} of '{name}' than {recipe.data.root} now "
                    "holds. Restore the packed domain, or start a new run with name=..."
                )
    return content


def load_weights(
    module: MultiDomainModule, file: Path, recipe: Recipe, domains: Mapping[str, Domain]
) -> int:
    """Loads a checkpoint's weights and gives the step at which it was saved."""
    content = read_checkpoint(file, recipe, domains)
    module.load_state_dict(content["state_dict"])
    step: int = content["global_step"]
    return step
