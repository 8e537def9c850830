"""What breaks a run from outside, told in one sentence with its remedy."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mdl.errors import GOES_ON, OwnError, ProcessLost, UserError
from mdl.recipe import Recipe
from mdl.training.ranks import WatchedStrategy
from mdl.training.stop_signal import RunStopped


class ErrorStage(L.Callback):
    """Notes whether images were being evaluated when an error came: Lightning forgets it."""

    evaluating = False

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.evaluating = trainer.validating or trainer.testing


@contextmanager
def faults_told(trainer: L.Trainer, recipe: Recipe) -> Iterator[None]:
    """Raises OwnError where memory is used up, ProcessLost where a process is gone.

    In place of what torch raises then, which says neither at which step nor what to do. And
    KeyboardInterrupt and RunStopped in place of the exits that Lightning makes of Ctrl-C and
    SIGTERM.
    trainer: one with an `ErrorStage`.
    """
    try:
        yield
    except RunStopped:
        raise  # all ranks agreed on it
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        if trainer.received_sigterm:  # before `StopSignal` listened
            raise RunStopped(signal.SIGTERM, trainer.global_step, trainer.global_rank) from None
        raise
    except Exception as error:
        told = _told(error, trainer, recipe)
        if isinstance(trainer.strategy, WatchedStrategy):
            told = trainer.strategy.lost or told
            trainer.strategy.say_ended(told or error)
        if told is None:
            raise
        raise told from error


def _told(error: Exception, trainer: L.Trainer, recipe: Recipe) -> BaseException | None:
    at, again = f" at step {trainer.global_step}", GOES_ON
    if trainer.max_steps < 0:  # nothing is trained
        at, again = "", "Start it again."
    if (worker := _lost_worker(error)) is not None:
        return ProcessLost(
            f"A decoding process was lost{at}: {worker}. Mostly the system ended it for want of "
            f"memory. {again} With a lower data.workers it needs less memory."
        )
    # what Lightning and its callbacks find out about a recipe only when they are at work
    asks_for_a_record = str(error).startswith("Early stopping conditioned on metric")
    if isinstance(error, MisconfigurationException) or asks_for_a_record:
        words = " ".join(str(error).split())
        return UserError(
            f"A callback of the recipe, or Lightning for it, refuses to go on{at}: {words} Mend it "
            "in the recipe, or leave it out with callbacks.<name>=null."
        )
    if _out_of_memory(error):
        return OwnError(_memory_told(error, trainer, recipe, at, again))
    return None


def _lost_worker(error: BaseException) -> str | None:
    """The words of torch, or of the system, about a DataLoader's worker that is no more."""
    words = str(error).partition("\n")[0].rstrip(". ")
    if words.startswith("DataLoader worker (pid"):
        return words
    # one that ended while it handed over what it had decoded
    files = (frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__))
    of_loader = any(Path(file).name == "dataloader.py" for file in files)
    if isinstance(error, ConnectionError | EOFError) and of_loader:
        return f"its DataLoader worker ended ({words or type(error).__name__})"
    return None


def _out_of_memory(error: BaseException) -> bool:
    # the CPU's allocator has no class of its own
    of_cpu = "DefaultCPUAllocator: can't allocate memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or of_cpu


def _memory_told(
    error: BaseException, trainer: L.Trainer, recipe: Recipe, at: str, again: str
) -> str:
    words = (str(error).partition("\n")[0] or "no memory is left").rstrip(". ")
    where = f"Out of memory{at}"
    if any(isinstance(of, ErrorStage) and of.evaluating for of in trainer.callbacks):  # type: ignore[attr-defined]
        size = recipe.data.evaluation_batch_size
        return (
            f"{where}, evaluating {size} images of each domain at once: {words}. Lower "
            f"data.evaluation_batch_size, which changes no result. {again}"
        )
    return (
        f"{where}, with data.batch_size = {recipe.data.batch_size} on {trainer.world_size} "
        f"devices: {words}. Give the same command more trainer.devices, or start a new run with "
        f"name=... and a lower data.batch_size. {again}"
    )
