"""Checkpoints of a run, read back: only with the recipe, classes and images that they are of."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.networks.blocks import domain_key
from mdl.networks.controller import Controllers
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.recipe import DataRecipe, Recipe, image_sizes, load_sizes
from mdl.recipe_files import overrides_between
from mdl.run_folder import RunFolder, identity
from mdl.space.architecture import Architecture
from mdl.training.base import MultiDomainModule
from mdl.training.checkpoints import BEST, LAST, PREVIOUS, read_whole
from mdl.training.finalists import FinalistsModule
from mdl.training.retrain import RetrainModule
from mdl.training.search import SearchModule

_OF_DATA = {
    "classes": "classes",
    "images": "images",
    "preparation": "flips, fit or colours (flip, fit, mean, std)",
}


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read; why, in words."""

    def __init__(self, file: Path, why: str, remedy: str) -> None:
        super().__init__(f"{file} cannot be read as a checkpoint: {why}. {remedy}")
        self.file, self.why = file, why


def read_checkpoint(
    file: Path, recipe: Recipe, domains: Mapping[str, Domain], to_go_on: bool = False
) -> dict[str, Any]:
    """Raises UserError where the file belongs to another run or other classes.

    And DamagedCheckpoint where it cannot be read.
    to_go_on: whether the run goes on from it, and so has to be given the same images too.
    """
    content = _read(file, recipe, _REMEDIES.get(file.name, _REMEDY))
    data = content["data"]
    if list(data) != list(domains):
        raise UserError(
            f"{file} was trained on the domains {', '.join(data)}; the data are "
            f"{', '.join(domains)}. Restore {recipe.data.root}, or start a new run with name=..."
        )
    for name, domain in domains.items():
        for kind, what in (_OF_DATA if to_go_on else {"classes": "classes"}).items():
            # checkpoints of earlier versions know less
            if data[name].get(kind, domain.fingerprint[kind]) != domain.fingerprint[kind]:
                raise UserError(
                    f"{file} was trained on other {what} of '{name}' than {recipe.data.root} now "
                    "holds. Restore the packed domain, or start a new run with name=..."
                )
    return content


def load_supernet(module: MultiDomainModule, recipe: Recipe, domains: Mapping[str, Domain]) -> None:
    """Loads the super-network that an earlier search trained, for controllers of a new one.

    Raises UserError where the checkpoint is of another super-network than the recipe's, of other
    classes or images, or of a retraining: held-out images have to be those held out then.
    """

    key, file = "search.supernet_file", recipe.search.supernet_file
    earlier, state = _of_a_search(key, file, domains)
    if not _trained_weights(earlier):
        raise UserError(
            f"{key} is {file}, a checkpoint of a search that trained no super-network (on a "
            "frozen one, of finalists, or through a trained network); expected one that did."
        )
    words = overrides_between(recipe, earlier, ["space", "network"])
    words += _different(
        ("data.held_out", recipe.data.held_out, earlier.data.held_out),
        ("search.block_weights", recipe.search.block_weights, earlier.search.block_weights),
    )
    words += _other_sizes(recipe, earlier, domains)
    _check_as_then(key, file, words, "a super-network")
    module.network.load_state_dict(_part_of(state, "network."))


def load_controllers(
    controllers: Controllers, recipe: Recipe, domains: Mapping[str, Domain]
) -> None:
    """Loads the controllers of an earlier search, `search.controllers_file`.

    Raises UserError where the checkpoint is of no finished search with controllers, or of another
    space, network or kind of controllers than the recipe's.
    """
    key, file = "search.controllers_file", recipe.search.controllers_file
    earlier, state = _of_a_search(key, file, domains)
    if earlier.search.finalists is not None or earlier.search.candidates is not None:
        raise UserError(
            f"{key} is {file}, a checkpoint of a search without controllers (of random networks, "
            "or of finalists); expected one with."
        )
    if earlier.search.backbone_file is not None:
        raise UserError(
            f"{key} is {file}, of a search through a trained network, whose controllers choose of "
            "its blocks; expected one of a super-network."
        )
    kinds = recipe.search.controllers, earlier.search.controllers
    words = overrides_between(recipe, earlier, ["space", "network"])
    words += _different(("search.controllers", *kinds))
    _check_as_then(key, file, words, "controllers")
    controllers.load_state_dict(_part_of(state, "controllers."))


def load_common_start(
    controllers: Controllers, recipe: Recipe, domains: Mapping[str, Domain]
) -> None:
    """Lets every domain's controller begin as that of a search of one path, `search.common_file`.

    Raises UserError where the checkpoint is of no finished search of one common path, or of
    another space.
    """
    key, file = "search.common_file", recipe.search.common_file
    earlier, state = _of_a_search(key, file, domains)
    words = overrides_between(recipe, earlier, ["space"])
    _check_as_then(key, file, words, "controllers")
    logits = _part_of(state, "controllers.").get("logits")
    if logits is None or len(logits) != 1:
        raise UserError(
            f"{key} is {file}, of a search with a controller for each domain, or with none; "
            "expected one with search.controllers=common."
        )
    with torch.no_grad():
        controllers.logits.copy_(logits.expand_as(controllers.logits))


def _of_a_search(
    key: str, name: str | None, domains: Mapping[str, Domain]
) -> tuple[Recipe, dict[str, Tensor]]:
    """Recipe and state of a finished search's checkpoint. Raises UserError where it is none."""
    assert name is not None
    file = Path(name)
    folder = RunFolder(file.parent.parent)
    if not file.is_file() or not folder.recipe_file.is_file():
        raise UserError(
            f"{key} is {file}, which is no run's checkpoint; expected one of a search, e.g. "
            "runs/mpnas_search/checkpoints/last.ckpt"
        )
    earlier = folder.recipe()
    content = read_checkpoint(file, earlier, domains, to_go_on=True)
    if earlier.phase != "search":
        raise UserError(f"{key} is {file}, a checkpoint of a retraining; expected one of a search.")
    if folder.finished_steps("search") == 0:
        raise UserError(
            f"{key} is {file}, of a search that is not finished. Go on with it: "
            f"{folder.go_on_command()}"
        )
    state: dict[str, Tensor] = content["state_dict"]
    return earlier, state


def _trained_weights(search: Recipe) -> bool:
    """Whether a search trained a super-network, all of it."""
    of = search.search
    return of.supernet_file is None and of.finalists is None and of.backbone_file is None


def _different(*values: tuple[str, object, object]) -> list[str]:
    """(key, now, then) -> 'key=then' of those that differ."""
    return [f"{key}={then}" for key, now, then in values if now != then]


def _other_sizes(recipe: Recipe, earlier: Recipe, domains: Iterable[str]) -> list[str]:
    """As `_different`, of the sides of some domains' images."""

    def sizes(of: Recipe, kind: Callable[[DataRecipe, Iterable[str]], dict[str, int]]) -> str:
        found = kind(of.data, domains)
        different = set(found.values())
        return str(found if len(different) > 1 else different.pop())

    kinds = {"data.image_size": image_sizes, "data.load_size": load_sizes}
    return _different(
        *((k, sizes(recipe, kind), sizes(earlier, kind)) for k, kind in kinds.items())
    )


def _check_as_then(key: str, file: str | None, words: Sequence[str], what: str) -> None:
    if words:
        raise UserError(
            f"{key} is {file}, whose recipe has {', '.join(words)}; expected the same here. Give "
            f"these words too, or {what} of this recipe."
        )


def _part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


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
    a domain, or batch norms of several domains and not that of the data. Where domains are added,
    also where those that were there are to see other images than it was trained on.
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
    _check_known(file, content["data"], domains, recipe.retrain.paths == "added")
    backbone = _averaged_network(content, folder, theirs)
    if recipe.retrain.paths == "added":
        words = _other_sizes(recipe, theirs, backbone.domains)
        _check_as_then("retrain.backbone_file", str(file), words, "a network")
    module.inherit(backbone, _models(file, backbone.domains, recipe, domains))


def load_reused(module: SearchModule | FinalistsModule, recipe: Recipe) -> None:
    """Gives a new domain's networks the blocks of a trained network, `search.backbone_file`.

    Raises UserError where the file is damaged, or of a network of another kind.
    """
    file = Path(recipe.search.backbone_file or "")
    folder = RunFolder.of_retraining(file)
    theirs = folder.recipe()
    words = overrides_between(recipe, theirs, ["network"])
    _check_as_then("search.backbone_file", str(file), words, "a network")
    content = _read(file, theirs, "Name another as search.backbone_file, or train it again.")
    module.inherit(_averaged_network(content, folder, theirs))


def _check_known(
    file: Path, data: Mapping[str, Mapping[str, str]], domains: Mapping[str, Domain], rest: bool
) -> None:
    """Raises UserError where a domain that both have, and so its head, has other classes.

    rest: whether such domains are trained no more; their images are to be prepared as then.
    """
    for name in [name for name in domains if name in data]:
        now = domains[name].fingerprint
        for kind in ("classes", "preparation") if rest else ("classes",):
            if data[name].get(kind, now[kind]) != now[kind]:
                raise UserError(
                    f"retrain.backbone_file = {file} was trained on other {_OF_DATA[kind]} of "
                    f"'{name}' than the data have. Restore the packed domain, or pack it under "
                    "another name."
                )


def _models(
    file: Path, trained: Sequence[str], recipe: Recipe, domains: Mapping[str, Domain]
) -> dict[str, str]:
    """Domain -> the backbone's domain whose batch norm it takes, where it is not itself."""
    new = [domain for domain in domains if domain not in trained]
    if recipe.retrain.paths == "added":
        return {}  # a new domain's batch norm begins as the mean of the others'
    if new and len(trained) > 1 and recipe.network.batch_norm == "per_domain":
        raise UserError(
            f"retrain.backbone_file = {file} has a batch norm for each of {', '.join(trained)} "
            f"and none for '{new[0]}'; expected a backbone of one domain, of all domains of the "
            "data, or with network.batch_norm=shared."
        )
    return dict.fromkeys(new, trained[0])


def _averaged_network(
    content: Mapping[str, Any], folder: RunFolder, recipe: Recipe
) -> MultiPathNetwork:
    """The network of a retraining, with the weights that are evaluated."""
    averaged = _part_of(content["state_dict"], "average.module.")
    architecture = Architecture.read(folder.architecture_file)
    # batch norm has a row per domain in the order of the run's data, which the file may not have
    paths = {domain: architecture.paths[domain] for domain in content["data"]}
    heads = {d: averaged[f"heads.{domain_key(d)}.bias"] for d in paths}
    network = MultiPathNetwork(
        architecture.space,
        path_users(architecture.space, paths),
        {domain: len(bias) for domain, bias in heads.items()},
        batch_norm=recipe.network.batch_norm,
    )
    network.load_state_dict(averaged)
    return network


_REMEDY = "Restore it from a copy."
_REMEDIES = {
    LAST: f"Restore it from a copy, or copy {PREVIOUS} over it, which is the one before.",
    BEST: f"Restore it from a copy, or move it away to have {LAST} taken in its place.",
}


def _read(file: Path, recipe: Recipe, remedy: str) -> dict[str, Any]:
    """Raises DamagedCheckpoint, or UserError where the file is of another recipe's run."""
    try:
        content = read_whole(file)
        owner, _ = content["run"], content["data"]
    except PermissionError as error:
        raise UserError(f"{file} may not be read by you. Give it back its permissions.") from error
    except pickle.UnpicklingError as error:  # torch's words advise to let it run code
        raise DamagedCheckpoint(
            file, "it holds not tensors and plain values alone", remedy
        ) from error
    except Exception as error:  # zipfile and torch raise many kinds on damaged files
        words = str(error).splitlines() or [""]
        why = f"{type(error).__name__}: {words[0].rstrip('.')}"
        raise DamagedCheckpoint(file, why, remedy) from error
    if owner != identity(recipe):
        raise UserError(
            f"{file} is a checkpoint of another run: its recipe has the fingerprint {owner}, that "
            f"of its folder {identity(recipe)}. Give the folder back its own, or start a new run "
            "with name=..."
        )
    return content
