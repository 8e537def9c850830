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


def wandb_logger(run_dir: Path, name: str, project: str, mode: str) -> WandbLogger | None:
    """The logger of a run; None where it is disabled.

    mode: auto | online | offline | disabled; auto is online where credentials are known, and
    follows WANDB_MODE. A run folder keeps one W&B run for life: the id is stored in it.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or _mode_by_login()
    if mode == "disabled":
        return None
    return WandbLogger(
        name=name,
        project=project,
        id=_stored_id(run_dir),
        save_dir=run_dir,
        resume="allow",
        offline=mode == "offline",
        mode=mode,
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )


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
