"""From a recipe to the objects of a run: the classes that train know no recipe."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger

from mdl.data.cache import is_address
from mdl.data.datamodule import MultiDomainData
from mdl.data.domains import Domain, read_domains, read_remote_domains
from mdl.data.embedded import ROOT as EMBEDDED_ROOT
from mdl.data.embedded import is_generated, pack_generated
from mdl.errors import UserError, nearest
from mdl.networks.controller import Controllers
from mdl.networks.cost import CostTable
from mdl.networks.multipath import MultiPathNetwork, path_users, supernet_users
from mdl.recipe import Recipe, SpaceRecipe, image_sizes, load_sizes
from mdl.results.dashboard import wandb_logger
from mdl.results.metrics_logger import MetricsFile
from mdl.run_folder import RunFolder, identity
from mdl.space.architecture import Architecture
from mdl.space.search_space import SearchSpace, Stage
from mdl.training.base import MultiDomainModule
from mdl.training.checkpoints import AtomicCheckpointIO, Checkpoints
from mdl.training.retrain import RetrainModule
from mdl.training.search import SearchModule

# dotted names of a recipe may lead to these packages only
_PACKAGES = ("mdl", "callbacks", "lightning")


def build_space(recipe: SpaceRecipe) -> SearchSpace:
    return SearchSpace(
        stem_width=recipe.stem_width,
        stem_stride=recipe.stem_stride,
        stages=tuple(Stage(**vars(stage)) for stage in recipe.stages),
        head_width=recipe.head_width,
        kernels=tuple(recipe.kernels),
        expansions=tuple(recipe.expansions),
        squeeze_excite=tuple(recipe.squeeze_excite),
    )


def find_domains(recipe: Recipe) -> dict[str, Domain]:
    """The packed domains that the recipe names; the embedded default is made on first use."""
    data = recipe.data
    if is_address(data.root):
        limit = int(data.cache_gb * 1e9)
        return read_remote_domains(data.root, data.domains, Path(data.cache_dir), limit)
    root = Path(data.root)
    if recipe.data.root == EMBEDDED_ROOT and not is_generated(root):
        pack_generated(root)
    return read_domains(root, recipe.data.domains)


def build_data(recipe: Recipe, domains: Mapping[str, Domain]) -> MultiDomainData:
    data = recipe.data
    for name in data.per_domain:
        if name not in domains:
            hint = nearest(name, list(domains))
            raise UserError(f"data.per_domain names '{name}', which is no domain here; {hint}")
    own = {name: of.batch_size for name, of in data.per_domain.items()}
    return MultiDomainData(
        domains,
        batch_size=data.batch_size,
        sampling=data.sampling,
        own_batch_size={name: size for name, size in own.items() if size is not None},
        train_splits=data.train_splits,
        held_out_batch_size=(
            recipe.search.held_out_batch_size if recipe.phase == "search" else None
        ),
        held_out=data.held_out,
        image_size=image_sizes(data, domains),
        load_size=load_sizes(data, domains),
        evaluation_batch_size=data.evaluation_batch_size,
        seed=recipe.seed,
        workers=data.workers,
        broken_images_limit=data.broken_images_limit,
        # what domains are to compute in common needs a common input
        common_normalisation=recipe.network.batch_norm == "shared",
    )


def count_classes(domains: Mapping[str, Domain]) -> dict[str, int]:
    return {name: len(domain.classes) for name, domain in domains.items()}


def build_search(recipe: Recipe, domains: Mapping[str, Domain]) -> SearchModule:
    """Super-network, controllers and what the recipe says of their training."""
    space, num_classes = build_space(recipe.space), count_classes(domains)
    private = recipe.network.nodes == "private"
    network = MultiPathNetwork(
        space,
        supernet_users(space, list(domains), private),
        num_classes,
        batch_norm=recipe.network.batch_norm,
        running=False,
    )
    search = recipe.search
    can_share = search.controllers == "per_domain" and not private
    return SearchModule(
        _channels_last(network),
        Controllers(space, list(domains), common=search.controllers == "common"),
        CostTable(space, image_sizes(recipe.data, domains), num_classes),
        seed=recipe.seed,
        controller_learning_rate=search.learning_rate,
        controller_beta1=search.beta1,
        warmup_fraction_paths=search.warmup_fraction,
        warmup_common_path=search.warmup_common_path,
        sharing=search.sharing if can_share else 0.0,
        **vars(search.reward),
        **_weights_training(recipe),
    )


def build_retrain(
    recipe: Recipe, domains: Mapping[str, Domain], architecture: Architecture
) -> RetrainModule:
    """The derived network and what the recipe says of its training."""
    architecture.check_fits(build_space(recipe.space), list(domains))
    paths = {domain: architecture.paths[domain] for domain in domains}
    network = MultiPathNetwork(
        architecture.space,
        path_users(architecture.space, paths, recipe.network.nodes == "private"),
        count_classes(domains),
        batch_norm=recipe.network.batch_norm,
    )
    return RetrainModule(
        _channels_last(network),
        paths,
        ema_decay=recipe.retrain.ema_decay,
        **_weights_training(recipe),
    )


def _channels_last(network: MultiPathNetwork) -> MultiPathNetwork:
    """The memory format in which depthwise convolutions are several times faster."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _weights_training(recipe: Recipe) -> dict[str, Any]:
    return {
        "total_steps": recipe.trainer.max_steps,
        "record_interval": recipe.trainer.record_interval,
        **asdict(recipe.optimizer),
    }


def read_architecture(recipe: Recipe) -> Architecture:
    if recipe.architecture_file is None:
        raise UserError(
            "The recipe names no architecture_file; expected the architecture.json of a finished "
            "search, e.g. architecture_file=runs/mpnas_search/architecture.json"
        )
    return Architecture.read(Path(recipe.architecture_file))


def build_callbacks(recipe: Recipe) -> list[L.Callback]:
    """The recipe's callbacks, by dotted name. Raises UserError where one cannot be made."""
    wanted = {name: of for name, of in recipe.callbacks.items() if of is not None}
    return [_build_callback(name, of) for name, of in wanted.items()]


def _build_callback(name: str, settings: Any) -> L.Callback:
    key = f"callbacks.{name}"
    if not isinstance(settings, dict):
        raise UserError(f"{key} is {settings!r}; expected {{class: dotted.name, ...}} or null.")
    arguments = dict(settings)
    dotted = str(arguments.pop("class", ""))
    module_name, _, class_name = dotted.rpartition(".")
    if module_name.split(".")[0] not in _PACKAGES:
        raise UserError(
            f"{key}.class is '{dotted}'; expected a dotted name in "
            f"{', '.join(_PACKAGES)}, e.g. callbacks.abdp.ABDP"
        )
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}.class is '{dotted}', which cannot be found: {error}") from error
    known = list(inspect.signature(factory).parameters)
    for argument in arguments:
        if argument not in known:
            raise UserError(f"Unknown recipe key '{key}.{argument}'; {nearest(argument, known)}")
    try:
        callback: L.Callback = factory(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key} cannot be made: {error}") from error
    return callback


def build_trainer(
    recipe: Recipe,
    folder: RunFolder,
    domains: Mapping[str, Domain],
    callbacks: list[L.Callback],
) -> L.Trainer:
    """Lightning's trainer with the recipe's devices and callbacks; its loggers come later.

    Raises UserError where Lightning refuses the devices, or the launcher started another number.
    """
    trainer = recipe.trainer
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    # nothing is left to validate on where the validation split is trained on
    validates = recipe.phase == "retrain" and "val" not in recipe.data.train_splits
    checkpoints = Checkpoints(
        folder.checkpoints_dir,
        trainer.checkpoint_interval,
        trainer.validation_interval if validates else None,
        "val/accuracy/mean" if validates else None,
        identity(recipe),
        {name: domain.fingerprint for name, domain in domains.items()},
    )
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        # Lightning's own requeueing saves from inside a signal handler, in the middle of a step
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        made = L.Trainer(
            max_steps=trainer.max_steps,
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            strategy=trainer.strategy,
            precision=trainer.precision,  # type: ignore[arg-type]
            # balancers before the checkpoints, which then hold what they set
            callbacks=[*callbacks, checkpoints],
            logger=False,
            plugins=plugins,
            val_check_interval=trainer.validation_interval,
            check_val_every_n_epoch=None,
            limit_val_batches=None if validates else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder.path,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(
            "Lightning cannot start with the recipe's trainer.accelerator, devices, num_nodes and "
            f"strategy: {' '.join(str(error).split())}"
        ) from error
    _check_launch(made.world_size)
    return made


def _check_launch(world_size: int) -> None:
    """torchrun starts processes by itself: the recipe has to count them too."""
    launched = int(os.environ.get("WORLD_SIZE", world_size))
    if launched != world_size:
        raise UserError(
            f"The launcher started {launched} processes (WORLD_SIZE), the recipe's "
            f"trainer.devices and trainer.num_nodes make {world_size}. Set them to the launcher's."
        )


def build_loggers(recipe: Recipe, folder: RunFolder, last_step: int) -> list[Logger]:
    loggers: list[Logger] = [MetricsFile(folder.metrics_file, last_step)]
    wandb = wandb_logger(folder.path, recipe.name, recipe.wandb.project, recipe.wandb.mode)
    return loggers if wandb is None else [*loggers, wandb]


def read_checkpoint(file: Path, recipe: Recipe, domains: Mapping[str, Domain]) -> dict[str, Any]:
    """Raises UserError where the file is damaged, or belongs to another run or other classes."""
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
    _check_data(file, recipe, data, domains, "classes")
    return content


def check_same_images(file: Path, recipe: Recipe, domains: Mapping[str, Domain]) -> None:
    """Raises UserError where the images are not those that the run began with."""
    data = torch.load(file, map_location="cpu", weights_only=True)["data"]
    _check_data(file, recipe, data, domains, "images")


def _check_data(
    file: Path,
    recipe: Recipe,
    data: Mapping[str, Mapping[str, str]],
    domains: Mapping[str, Domain],
    kind: str,
) -> None:
    for name, domain in domains.items():
        if data[name][kind] != domain.fingerprint[kind]:
            raise UserError(
                f"{file} was trained on other {kind} of '{name}' than {recipe.data.root} now "
                "holds. Restore the packed domain, or start a new run with name=..."
            )


def load_weights(
    module: MultiDomainModule, file: Path, recipe: Recipe, domains: Mapping[str, Domain]
) -> int:
    """Loads a checkpoint's weights and gives the step at which it was saved."""
    content = read_checkpoint(file, recipe, domains)
    module.load_state_dict(content["state_dict"])
    step: int = content["global_step"]
    return step


def quiet() -> None:
    """Lightning's banners and tips say nothing of this run; its warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # the streams need few workers by design: one pool serves all domains
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # a search holds out training images and validates on nothing
    warnings.filterwarnings("ignore", message=".*val_dataloader.* but have no `validation_step`")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # the streams resume by the step, not by the state of a loader
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
