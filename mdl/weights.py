"""Checkpoints of a run, read back: only with the recipe, classes and images that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.recipe import Recipe
from mdl.recipe_files import overrides_between
from mdl.run_folder import RunFolder, identity
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


def load_supernet(module: MultiDomainModule, recipe: Recipe, domains: Mapping[str, Domain]) -> None:
    """Loads the super-network that an earlier search trained, for controllers of a new one.

    Raises UserError where the checkpoint is of another super-network than the recipe's, of other
    classes or images, or of a retraining: held-out images have to be those held out then.
    """
    assert recipe.search.supernet_file is not None
    file = Path(recipe.search.supernet_file)
    folder = RunFolder(file.parent.parent)
    if not file.is_file() or not folder.recipe_file.is_file():
        raise UserError(
            f"search.supernet_file is {file}, which is no run's checkpoint; expected one of a "
            "search, e.g. runs/mpnas_search/checkpoints/last.ckpt"
        )
    earlier = folder.recipe()
    content = read_checkpoint(file, earlier, domains, to_go_on=True)
    if earlier.phase != "search" or earlier.search.supernet_file is not None:
        kind = "a retraining" if earlier.phase != "search" else "a search on a frozen super-network"
        raise UserError(
            f"search.supernet_file is {file}, a checkpoint of {kind}; expected one of a search "
            "that trained its super-network."
        )
    words = overrides_between(recipe, earlier, ["space", "network"])
    words += [
        f"{key}={then}"
        for key, now, then in (
            ("data.held_out", recipe.data.held_out, earlier.data.held_out),
            ("search.block_weights", recipe.search.block_weights, earlier.search.block_weights),
        )
        if now != then
    ]
    if words:
        raise UserError(
            f"search.supernet_file is {file}, whose recipe has {', '.join(words)}; expected the "
            "same here. Give these words too, or a super-network of this recipe."
        )
    of_network = "network."
    state = content["state_dict"]
    module.network.load_state_dict(
        {k.removeprefix(of_network): v for k, v in state.items() if k.startswith(of_network)}
    )


def load_weights(
    module: MultiDomainModule, file: Path, recipe: Recipe, domains: Mapping[str, Domain]
) -> int:
    """Loads a checkpoint's weights and gives the step at which it was saved."""
    content = read_checkpoint(file, recipe, domains)
    module.load_state_dict(content["state_dict"])
    step: int = content["global_step"]
    return step
