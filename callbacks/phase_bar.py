"""A progress bar that names its phase."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import Progress, TaskID

from mdl.console import progress_bar
from mdl.training.base import MultiDomainModule


class PhaseBar(L.Callback):
    """Shows phase, steps, time left, and the mean loss of the last record."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open(pl_module, trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, MultiDomainModule)
        loss = pl_module.records.get("train/loss/mean")
        note = "" if loss is None else f"loss {loss:.3f}"
        self._update(description=pl_module.phase, completed=trainer.global_step, note=note)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update(description="validation")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open(pl_module, int(sum(trainer.num_test_batches)), 0, "test")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    @rank_zero_only
    def _open(
        self, module: L.LightningModule, total: int, completed: int, phase: str | None = None
    ) -> None:
        self._close()
        assert isinstance(module, MultiDomainModule)
        self._progress = progress_bar()
        self._progress.start()
        self._task = self._progress.add_task(
            phase or module.phase, total=total, completed=completed, note=""
        )

    def _update(self, **changes: Any) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, **changes)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None
