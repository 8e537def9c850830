"""Weights & Biases: online for who is logged in, offline for who is not, never a prompt."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

# before wandb is imported, which else greets on the error stream
os.environ.setdefault("WANDB_SILENT", "true")

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger

from mdl.results.figures import similarity_figure
from mdl.results.path_map import path_map_figure
from mdl.space.architecture import Architecture


def wandb_logger(run_dir: Path, name: str, project: str, mode: str) -> WandbLogger | None:
    """The logger of a run; None where it is disabled.

    mode: auto | online | offline | disabled; auto is online where credentials are known, and
    follows WANDB_MODE. A run folder keeps one W&B run for life: the id is stored in it.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or _mode_by_login()
    if mode == "disabled":
        return None
    logger = WandbLogger(
        name=name,
        project=project,
        id=_stored_id(run_dir),
        save_dir=run_dir,
        resume="allow",
        offline=mode == "offline",
        mode=mode,
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    # Lightning passes it on although W&B dropped it, and W&B then warns of it
    logger._wandb_init.pop("anonymous", None)
    return logger


def log_pictures(loggers: Iterable[Logger], architecture: Architecture) -> None:
    """The similarity matrix and the map of the paths, to W&B."""
    paths = architecture.paths
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            pictures = {
                "architecture/similarity": similarity_figure(paths),
                "architecture/path_map": path_map_figure(architecture.space, paths),
            }
            logger.experiment.log({key: wandb.Image(of) for key, of in pictures.items()})


def finish(loggers: Iterable[Logger]) -> None:
    """Writes out what W&B still holds back, and closes its run."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _mode_by_login() -> str:
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _stored_id(run_dir: Path) -> str:
    file = run_dir / "wandb_id"
    if not file.is_file():
        file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
