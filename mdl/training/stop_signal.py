"""Ends a run between two steps: for Ctrl-C, and for the system, as before a job's time is over."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

import lightning as L
import torch
from torch import distributed as dist

from mdl.networks.rank_norm import several_ranks
from mdl.training.checkpoints import Checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_INTERVAL = 10  # steps between two looks at what other ranks were told


class RunStopped(Exception):
    """A run ended before its last step, with a checkpoint, or while it was scored after it.

    number: of the signal. rank: of the process that raises it.
    """

    def __init__(self, number: int, step: int, rank: int) -> None:
        super().__init__(f"stopped by signal {number} at step {step}")
        self.number, self.step, self.rank = number, step, rank


class StopSignal(L.Callback):
    """A signal sets a flag; ranks agree on it between steps, save and raise RunStopped.

    (Lightning's own handler saves, and talks to other ranks, from inside the signal's handler, in
    the middle of a step. Its `should_stop` adds a validation that an unbroken run has not.)

    While images are scored, after the last step, there is nothing to save: it ends between two
    batches.

    checkpoints: what writes the last checkpoint; None where nothing is trained.
    """

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self.checkpoints = checkpoints
        self._told: int | None = None  # this rank, maybe no other
        self._stopping: int | None = None  # all ranks, after a validation
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()
        if trainer.received_sigterm:  # by Lightning's own handler, until now
            self._told = signal.SIGTERM

    def _listen(self) -> None:
        # once training or scoring begins, since Lightning sets its own before
        heard = [n for n in SIGNALS if n != signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self._told == signal.SIGINT:
            raise KeyboardInterrupt  # pressed twice: whoever presses it does not want to wait
        if number == signal.SIGINT and os.environ.get("LOCAL_RANK", "0") == "0":
            print("\nStopping after this step; Ctrl-C again stops at once", file=sys.stderr)
        self._told = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, at: int
    ) -> None:
        step = trainer.global_step
        if step == trainer.max_steps or self.checkpoints is None:
            return
        told = self._agreed(step, pl_module.device)
        if self.checkpoints.is_validated(step):
            self._stopping = told  # a validation belongs to its step
        elif told is not None:
            self.checkpoints.save_last(trainer, pl_module)
            raise RunStopped(told, step, trainer.global_rank)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stopping is not None and self.checkpoints is not None:
            # Lightning's turn for it comes after this one
            self.checkpoints.on_validation_end(trainer, pl_module)
            raise RunStopped(self._stopping, trainer.global_step, trainer.global_rank)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if (told := self._agreed(batch_idx, pl_module.device)) is not None:
            raise RunStopped(told, trainer.global_step, trainer.global_rank)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def _agreed(self, step: int, device: torch.device) -> int | None:
        """The greatest number that a rank was told; looked at every so many steps or batches."""
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
