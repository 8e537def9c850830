"""Ends a run between two steps when the system asks for it, as before the end of a job's time."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import lightning as L
import torch
from torch import distributed as dist

from mdl.networks.rank_norm import several_ranks
from mdl.training.checkpoints import Checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_INTERVAL = 10  # steps between two looks at what other ranks were told


class RunStopped(Exception):
    """Training ended before its last step, with a checkpoint.

    number: of the signal. rank: of the process that raises it.
    """

    def __init__(self, number: int, step: int, rank: int) -> None:
        super().__init__(f"stopped by signal {number} at step {step}")
        self.number, self.step, self.rank = number, step, rank


class StopSignal(L.Callback):
    """A signal sets a flag; ranks agree on it between steps, save and raise RunStopped.

    (Lightning's own handler saves, and talks to other ranks, from inside the signal's handler, in
    the middle of a step. Its `should_stop` adds a validation that an unbroken run has not.)

    checkpoints: what writes the last checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._told: int | None = None  # this rank, maybe no other
        self._stopping: int | None = None  # all ranks, after a validation
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # here, since Lightning sets its own before
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, at: int
    ) -> None:
        step = trainer.global_step
        if step == trainer.max_steps:
            return
        told = self._agreed(step, pl_module.device)
        if self.checkpoints.is_validated(step):
            self._stopping = told  # a validation belongs to its step
        elif told is not None:
            self.checkpoints.save_last(trainer, pl_module)
            raise RunStopped(told, step, trainer.global_rank)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stopping is not None:
            # Lightning's turn for it comes after this one
            self.checkpoints.on_validation_end(trainer, pl_module)
            raise RunStopped(self._stopping, trainer.global_step, trainer.global_rank)

    def _agreed(self, step: int, device: torch.device) -> int | None:
        """The greatest number that a rank was told."""
        if not several_ranks():
            return self._told
        if step % _INTERVAL:
            return None
        flag = torch.tensor([self._told or 0], device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return int(flag) or None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
