"""Checkpoints: written beside and renamed, at the ends of steps; the last one and the best."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from mdl.training.base import MultiDomainModule

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint is either whole or not there, whenever the process ends.

    Lightning's own writes to a temporary folder, maybe on another disk, and moves from there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        beside = final.with_name(f".{final.name}.partial")
        with beside.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, final)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        # whatever the caller asks for: a checkpoint can run no code
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content


class Checkpoints(Checkpoint):
    """Saves `last.ckpt` every `interval` steps and at the end, and `best.ckpt` by validation.

    monitor: the record by which the best is told, greater is better; None: no best.
    identity: what tells this run from others; a checkpoint holds it.
    data: domain -> fingerprint of its classes and images; a checkpoint holds it too.

    A step that ends in a validation is saved after it, so that a resumed run does not miss it.
    """

    def __init__(
        self,
        folder: Path,
        interval: int,
        validation_interval: int | None,
        monitor: str | None,
        identity: str,
        data: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.folder, self.interval = folder, interval
        self.validation_interval = validation_interval
        self.monitor, self.identity = monitor, identity
        self.data = {domain: dict(of) for domain, of in data.items()}
        self.best_score = float("-inf")
        self.best_step = -1
        self._stopped_early = False  # by a callback, such as Lightning's EarlyStopping

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stopped_early:  # and ended before it was done with the rest
            trainer.should_stop = True

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step % self.interval == 0 and not self.is_validated(step):
            self._save(trainer, pl_module, LAST)

    def is_validated(self, step: int) -> bool:
        """Whether a validation follows the step; it is saved then."""
        return bool(self.validation_interval) and step % (self.validation_interval or 1) == 0

    def save_last(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves as after any step that is not validated."""
        self._save(trainer, pl_module, LAST)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or self.monitor is None:
            return
        assert isinstance(pl_module, MultiDomainModule)
        if pl_module.records[self.monitor] > self.best_score:
            self.best_score = pl_module.records[self.monitor]
            self.best_step = trainer.global_step
            self._save(trainer, pl_module, BEST)
        self._save(trainer, pl_module, LAST)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer, pl_module, LAST)

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        assert isinstance(pl_module, MultiDomainModule)
        pl_module.check_finite()
        pl_module.check_ranks()
        trainer.save_checkpoint(self.folder / name)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["run"], checkpoint["data"] = self.identity, self.data
        checkpoint["stopped_early"] = trainer.should_stop

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._stopped_early = checkpoint.get("stopped_early", False)  # earlier versions lack it

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
