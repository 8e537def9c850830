"""How fast a run is."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from mdl.training.base import MultiDomainModule


class Throughput(L.Callback):
    """Logs `throughput/images_per_second`, training images of all domains, and step time.

    interval: steps over which it is measured.
    """

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f"interval is {interval}; expected steps, 1 or more")
        self.interval = interval
        self._since: tuple[float, int] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = (time.perf_counter(), trainer.global_step)  # validation is no training

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, MultiDomainModule)
        now = time.perf_counter()
        if self._since is None:  # the first step of a run warms up
            self._since = (now, trainer.global_step)
        if trainer.global_step % self.interval:
            return
        if self._since[1] < trainer.global_step:
            then, step = self._since
            seconds = (now - then) / (trainer.global_step - step)
            images = pl_module.images_per_step(batch) * trainer.world_size
            for logger in trainer.loggers:
                logger.log_metrics(
                    {
                        "throughput/images_per_second": images / seconds,
                        "throughput/seconds_per_step": seconds,
                    },
                    trainer.global_step,
                )
        self._since = (now, trainer.global_step)
