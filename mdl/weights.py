"""Checkpoints of a run, read back: only with the recipe, classes and images that they are of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.networks.blocks import domain_key
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.recipe import DataRecipe, Recipe, image_sizes, load_sizes
from mdl.recipe_files import overrides_between
from mdl.run_folder import RunFolder, identity
from mdl.space.architecture import Architecture
from mdl.training.base import MultiDomainModule
from mdl.training.retrain import RetrainModule


def read_checkpoint(
    file: Path, recipe: Recipe, domains: Mapping[str, Domain], to_go_on: bool = False
) -> dict[str, Any]:
    """Raises UserError where the file is damaged, or belongs to another run or other classes.

    to_go_on: whether the run goes on from it, and so has to be given the same images too.
    """
    remedy = "Remove it to start this run from the beginning, or start a new one with name=..."
    content = _read(file, recipe, remedy)
    data = content["data"]
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

    def sizes(of: Recipe, kind: Callable[[DataRecipe, Iterable[str]], dict[str, int]]) -> str:
        found = kind(of.data, domains)
        different = set(found.values())
        return str(found if len(different) > 1 else different.pop())

    earlier = folder.recipe()
    content = read_checkpoint(file, earlier, domains, to_go_on=True)
    if earlier.phase != "search" or earlier.search.supernet_file is not None:
        kind = "a retraining" if earlier.phase != "search" else "a search on a frozen super-network"
        raise UserError(
            f"search.supernet_file is {file}, a checkpoint of {kind}; expected one of a search "
            "that trained its super-network."
        )
    if folder.finished_steps("search") == 0:
        raise UserError(
            f"search.supernet_file is {file}, of a search that is not finished. Go on with it: "
            f"python -m mdl.fit {folder.recipe_file}"
        )
    words = overrides_between(recipe, earlier, ["space", "network"])
    words += [
        f"{key}={then}"
        for key, now, then in (
            ("data.held_out", recipe.data.held_out, earlier.data.held_out),
            ("data.image_size", sizes(recipe, image_sizes), sizes(earlier, image_sizes)),
            ("data.load_size", sizes(recipe, load_sizes), sizes(earlier, load_sizes)),
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


def load_backbone(module: RetrainModule, recipe: Recipe, domains: Mapping[str, Domain]) -> None:
    """Begins a retraining with the averaged weights of another one, `retrain.backbone_file`.

    A domain takes its own batch norm of the backbone's, or that of the only domain there.

    Raises UserError where the file is no retraining's, has another batch norm or other classes of
    a domain, or batch norms of several domains and not that of the data.
    """
    file = Path(recipe.retrain.backbone_file or "")
    folder = RunFolder.of_retraining(file)
    theirs = folder.recipe()
    for key in ("batch_norm", "nodes"):
        found, expected = getattr(theirs.network, key), getattr(recipe.network, key)
        if found != expected:
            raise UserError(
                f"retrain.backbone_file = {file} was trained with network.{key}={found}; this "
                f"recipe has {expected}. Train both with the same."
            )
    content = _read(file, theirs, "Name another as retrain.backbone_file, or train it again.")
    _check_classes(file, content["data"], domains)
    backbone = _averaged_network(content["state_dict"], folder, theirs)
    module.inherit(backbone, _models(file, backbone.domains, recipe, domains))


def _check_classes(
    file: Path, data: Mapping[str, Mapping[str, str]], domains: Mapping[str, Domain]
) -> None:
    """Raises UserError where a domain that both have, and so its head, has other classes."""
    for name, domain in domains.items():
        if name in data and data[name]["classes"] != domain.fingerprint["classes"]:
            raise UserError(
                f"retrain.backbone_file = {file} was trained on other classes of '{name}' than "
                "the data have. Restore the packed domain, or pack it under another name."
            )


def _models(
    file: Path, trained: Sequence[str], recipe: Recipe, domains: Mapping[str, Domain]
) -> dict[str, str]:
    """Domain -> the backbone's domain whose batch norm it takes, where it is not itself."""
    new = [domain for domain in domains if domain not in trained]
    if new and len(trained) > 1 and recipe.network.batch_norm == "per_domain":
        raise UserError(
            f"retrain.backbone_file = {file} has a batch norm for each of {', '.join(trained)} "
            f"and none for '{new[0]}'; expected a backbone of one domain, of all domains of the "
            "data, or with network.batch_norm=shared."
        )
    return dict.fromkeys(new, trained[0])


def _averaged_network(
    state: Mapping[str, Tensor], folder: RunFolder, recipe: Recipe
) -> MultiPathNetwork:
    """The network of a retraining, with the weights that are evaluated."""
    prefix = "average.module."
    averaged = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    architecture = Architecture.read(folder.architecture_file)
    heads = {d: averaged[f"heads.{domain_key(d)}.bias"] for d in architecture.domains}
    network = MultiPathNetwork(
        architecture.space,
        path_users(architecture.space, architecture.paths),
        {domain: len(bias) for domain, bias in heads.items()},
        batch_norm=recipe.network.batch_norm,
    )
    network.load_state_dict(averaged)
    return network


def _read(file: Path, recipe: Recipe, remedy: str) -> dict[str, Any]:
    """Raises UserError where the file is damaged, or of another recipe's run."""
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        owner, _ = content["run"], content["data"]
    except Exception as error:  # torch raises many kinds on damaged files
        raise UserError(
            f"{file} cannot be read as a checkpoint: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}. {remedy}"
        ) from error
    if owner != identity(recipe):
        raise UserError(
            f"{file} is a checkpoint of another run: its recipe has the fingerprint {owner}, that "
            f"of its folder {identity(recipe)}. {remedy}"
        )
    return content
