"""Lightning's trainer as a recipe wants it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger

from mdl.cluster import check_launch
from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.kept_memory import keep_freed_memory
from mdl.recipe import Recipe, TrainerRecipe
from mdl.results.metrics_logger import MetricsFile
from mdl.results.wandb_run import WandbRun, choose_mode
from mdl.run_folder import RunFolder, identity
from mdl.training.checkpoints import AtomicCheckpointIO, Checkpoints
from mdl.training.ranks import PathsStrategy, WatchedStrategy
from mdl.training.stop_signal import StopSignal


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
    keep_freed_memory()
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
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # Lightning's own requeueing saves from inside a signal handler, in the middle of a step
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        made = L.Trainer(
            max_steps=trainer.max_steps,
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            strategy=_strategy(recipe),
            precision=trainer.precision,  # type: ignore[arg-type]
            # balancers before the checkpoints, which then hold what they set
            callbacks=[*callbacks, checkpoints, StopSignal(checkpoints)],
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
    check_launch(made.world_size)
    return made


def _strategy(recipe: Recipe) -> Any:
    """Lightning's own on one device; on several, ours, which for a search takes its own paths."""
    trainer = recipe.trainer
    if trainer.num_nodes == 1 and _one_device(trainer):
        # Lightning's DDP on one device would look for gradients of blocks that a step leaves out
        return "auto" if trainer.strategy in _START_METHODS else trainer.strategy
    if trainer.strategy in _START_METHODS:
        ours = PathsStrategy if recipe.phase == "search" else WatchedStrategy
        return ours(trainer.timeout, start_method=_START_METHODS[trainer.strategy])
    if recipe.phase == "search":
        raise UserError(
            f"trainer.strategy is {trainer.strategy}; a search on several devices has one of "
            f"{', '.join(_START_METHODS)}: it takes other paths at every step."
        )
    return trainer.strategy


def _one_device(trainer: TrainerRecipe) -> bool:
    if trainer.devices in ("auto", -1, "-1"):
        return trainer.accelerator == "cpu" or torch.cuda.device_count() < 2
    return (len(trainer.devices) if isinstance(trainer.devices, list) else trainer.devices) == 1


_START_METHODS: dict[str, Any] = {
    "auto": "popen",
    "ddp": "popen",
    "ddp_spawn": "spawn",
    "ddp_fork": "fork",
}


def build_loggers(recipe: Recipe, folder: RunFolder, last_step: int) -> list[Logger]:
    """The metrics file, and W&B, which follows it."""
    loggers: list[Logger] = [MetricsFile(folder.metrics_file, last_step)]
    if (mode := choose_mode(recipe.wandb.mode)) == "disabled":
        return loggers
    return [*loggers, open_wandb(recipe, folder, mode)]


def open_wandb(recipe: Recipe, folder: RunFolder, mode: str, strict: bool = False) -> WandbRun:
    """The W&B run of a run folder; see `WandbRun`."""
    project = recipe.wandb.project
    return WandbRun(folder.path, folder.metrics_file, recipe.name, project, mode, strict)


def quiet() -> None:
    """Lightning's banners and tips say nothing of this run; its warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # the streams need few workers by design: one pool serves all domains
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # a search holds out training images and validates on nothing
    warnings.filterwarnings("ignore", message=".*val_dataloader.* but have no `validation_step`")
    # whoever has SLURM's commands at hand need not be in a job; `check_launch` knows
    warnings.filterwarnings("ignore", message=".*`srun` command is available on your system")
    # a frozen backbone is
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # the streams resume by the step, not by the state of a loader
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
